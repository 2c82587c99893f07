"""What one policy gives that another doesn't. Pure.

A grant is an identity's right to a certificate of a profile; hosts, services, profiles and grants are compared by name.
So a host that gets another identity's name is one lost and one gained, as it is for the host.

A certificate is *issued again* where identity and profile stay and what decides the certificate changes
(`Profile.hash`): the broker no longer answers with the one that it has, and orders a new one at the next request.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from certplane.broker.model import IdentityKind, Profile
from certplane.broker.policy.document import PolicyDocument
from certplane.runtime.tables import span_text


class Change(StrEnum):
    """What happens."""

    LOST = "lost"
    GAINED = "gained"
    CHANGED = "changed"
    ISSUED_AGAIN = "issued_again"


class Subject(StrEnum):
    """To what it happens."""

    HOST = "host"
    SERVICE = "service"
    OPERATOR = "operator"
    ROLE = "role"
    GRANT = "grant"
    PROFILE = "profile"
    NAME = "name"
    CERTIFICATE = "certificate"


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """One change; the fields that don't belong to its subject are empty.

    Attributes:
        change: What happens.
        subject: To what.
        identity: Of hosts, services, operators, roles, grants, certificates.
        profile: Of grants, profiles, names, certificates.
        name: The DNS name of a name, the role of a role.
        detail: What of a profile changes, for people.
    """

    change: Change
    subject: Subject
    identity: str = ""
    profile: str = ""
    name: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Count:
    """How many of a subject there were and will be; of names, each profile's are counted."""

    subject: Subject
    before: int
    after: int
    gained: int
    lost: int


@dataclass(frozen=True, slots=True)
class PolicyChanges:
    """All that is different: losses first, then gains, changed profiles, certificates that are issued again."""

    before_hash: str
    after_hash: str
    counts: tuple[Count, ...]
    changes: tuple[PolicyChange, ...]

    def count(self, subject: Subject) -> Count:
        """The count of a subject; certificates have none."""
        return next(count for count in self.counts if count.subject is subject)

    @property
    def issued_again(self) -> int:
        """How many grants there are whose certificates are issued again."""
        return sum(change.change is Change.ISSUED_AGAIN for change in self.changes)


_Key = tuple[str, str, str]
"""Identity, profile, name."""

_FACTS: Final[Mapping[str, Callable[[Profile], object]]] = {
    "type": lambda profile: profile.kind,
    "dns_names": lambda profile: profile.dns_names,
    "key_types": lambda profile: sorted(profile.key_types),
    "renew_before": lambda profile: profile.renew_before or "",
    "acme.challenge": lambda profile: profile.challenge,
    "acme.credentials": lambda profile: profile.credentials,
    "acme.profile": lambda profile: profile.acme_profile,
    "acme.issuers": lambda profile: profile.issuers,
}
"""What a profile says, by its keys in the file."""


def compare(before: PolicyDocument, after: PolicyDocument) -> PolicyChanges:
    """What `after` takes away from `before`, and what it adds."""
    counts = []
    lost: list[PolicyChange] = []
    gained: list[PolicyChange] = []
    old_things, new_things = _things(before), _things(after)
    for subject, had in old_things.items():
        has = new_things[subject]
        gone, come = had - has, has - had
        counts.append(Count(subject, len(had), len(has), len(come), len(gone)))
        lost += (PolicyChange(Change.LOST, subject, *key) for key in sorted(gone))
        gained += (PolicyChange(Change.GAINED, subject, *key) for key in sorted(come))
    changed = dict(_changed_profiles(before, after))
    details = [
        PolicyChange(Change.CHANGED, Subject.PROFILE, profile=name, detail=text)
        for name, text in changed.items()
        if text
    ]
    again = [
        PolicyChange(Change.ISSUED_AGAIN, Subject.CERTIFICATE, identity, profile, detail=_why_again(old, new))
        for identity, profile, _ in sorted(old_things[Subject.GRANT] & new_things[Subject.GRANT])
        if profile in changed
        and (old := before.find_profile(profile)) is not None
        and (new := after.find_profile(profile)) is not None
        and old.hash != new.hash
    ]
    return PolicyChanges(before.hash, after.hash, tuple(counts), (*lost, *gained, *details, *again))


def _things(policy: PolicyDocument) -> dict[Subject, set[_Key]]:
    """All that can be gained or lost."""
    grants = policy.grants
    kinds = {
        Subject.HOST: IdentityKind.HOST,
        Subject.SERVICE: IdentityKind.SERVICE,
        Subject.OPERATOR: IdentityKind.OPERATOR,
    }
    return {
        **{subject: {(each.name, "", "") for each in grants if each.kind is kind} for subject, kind in kinds.items()},
        Subject.ROLE: {(each.name, "", role) for each in grants for role in each.roles},
        Subject.GRANT: {(each.name, profile, "") for each in grants for profile in each.profiles},
        Subject.PROFILE: {("", profile.name, "") for profile in policy.profiles},
        Subject.NAME: {("", profile.name, name) for profile in policy.profiles for name in profile.dns_names},
    }


def _changed_profiles(before: PolicyDocument, after: PolicyDocument) -> Iterator[tuple[str, str]]:
    """Profiles of both that say something else, with what; names are changes of their own."""
    for old in before.profiles:
        new = after.find_profile(old.name)
        if new is not None and (keys := _changed_facts(old, new)):
            texts = (
                f"{key}: {_shown(_FACTS[key](old))} -> {_shown(_FACTS[key](new))}" for key in keys if key != "dns_names"
            )
            yield old.name, "; ".join(texts)


def _changed_facts(old: Profile, new: Profile) -> list[str]:
    return [key for key, fact in _FACTS.items() if fact(old) != fact(new)]


def _why_again(old: Profile, new: Profile) -> str:
    if old.dns_names != new.dns_names:
        return "the profile's names change: what the caller asks for (agent.yml) has to change too"
    keys = (key for key in _changed_facts(old, new) if key != "renew_before")
    return f"the profile's {', '.join(keys)} changes"


def _shown(value: object) -> str:
    if isinstance(value, timedelta):
        return span_text(value)
    if isinstance(value, Collection) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "-"
    return str(value) or "-"
