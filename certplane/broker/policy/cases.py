"""Cases that a policy is held against: who asks for what, and what is to come of it.

A file of cases is kept beside policy.yml in the repository of policies, whose CI runs it (`certplane-broker policy
test`). It is strict as all configuration files are, and a file without a case is a mistake: it would be green for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from certplane.broker.policy.decision import decide
from certplane.broker.policy.document import PolicyDocument
from certplane.config.decoding import Check, KeyProblem, decode
from certplane.config.document import Document
from certplane.config.values import DnsName, IdentityName
from certplane.errors import Reason, RefusalError
from certplane.pki.keys import KeyType


class Outcome(StrEnum):
    """What comes of a request, as far as policy decides it: allowed, or the reason of the refusal."""

    ALLOWED = "allowed"
    IDENTITY_UNKNOWN = Reason.IDENTITY_UNKNOWN
    PROFILE_NOT_ALLOWED = Reason.PROFILE_NOT_ALLOWED
    NAMES_NOT_ALLOWED = Reason.NAMES_NOT_ALLOWED
    KEY_WEAK = Reason.KEY_WEAK


def _version(version: int) -> str | None:
    return None if version == 1 else f"is {version}; this program reads version 1"


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        identity: Who asks.
        profile: For a certificate of which profile.
        expect: What is to come of it.
        dns_names: With which names; those of the profile where there are none.
        key_type: With which kind of key.
    """

    identity: IdentityName
    profile: str
    expect: Outcome
    dns_names: tuple[DnsName, ...] = ()
    key_type: KeyType = KeyType.EC_P256


@dataclass(frozen=True, slots=True)
class _CasesFile:
    """The whole file."""

    cases: tuple[Case, ...] = ()
    version: Annotated[int, Check(_version)] = 1

    def problems(self) -> Iterator[KeyProblem]:
        """A file without a case tests nothing."""
        if not self.cases:
            yield KeyProblem("cases", "has no case, so that nothing would be tested", "add the first one")


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What came of a case; `why` explains a refusal to the policy's author, who may know what a caller may not."""

    case: Case
    key: str
    line: int | None
    outcome: Outcome
    why: str

    @property
    def passed(self) -> bool:
        """Whether that was expected."""
        return self.outcome is self.case.expect


@dataclass(frozen=True, slots=True)
class _Requested:
    dns_names: tuple[str, ...]
    key_type: KeyType


def run_cases(document: Document, policy: PolicyDocument) -> list[CaseResult]:
    """What the policy says to each case of a file, in the file's order.

    Raises:
        ConfigurationError: everything that is wrong with the file of cases.
    """
    results = []
    for number, case in enumerate(decode(document, _CasesFile).cases):
        at = document.source.problem(f"cases[{number}]", "")
        results.append(CaseResult(case, at.key, at.line, *_outcome(case, policy)))
    return results


def _outcome(case: Case, policy: PolicyDocument) -> tuple[Outcome, str]:
    profile = policy.granted(case.identity, case.profile) or policy.find_profile(case.profile)
    names = case.dns_names or (() if profile is None else profile.dns_names)
    try:
        decide(policy, case.identity, case.profile, _Requested(tuple(sorted(set(names))), case.key_type))
    except RefusalError as error:
        outcome = Outcome(error.refusal.reason)
        return outcome, _why(case, policy, outcome) or error.refusal.message
    return Outcome.ALLOWED, ""


def _why(case: Case, policy: PolicyDocument, outcome: Outcome) -> str:
    """What a refusal doesn't tell a caller."""
    if outcome is Outcome.IDENTITY_UNKNOWN:
        return f"the policy has no identity {case.identity}"
    if outcome is not Outcome.PROFILE_NOT_ALLOWED:
        return ""
    if policy.find_profile(case.profile) is None:
        return f"the policy has no profile {case.profile}"
    grant = policy.find_grant(case.identity)
    given = ", ".join(grant.profiles) if grant is not None else ""
    return f"the policy gives this identity {f'the profiles {given} only' if given else 'no profile'}"
