"""The sections of policy.yml, and what can be wrong with each by itself.

Names are held to what the profile's CAs could issue: DNS names with at least two labels, none under a special-use
domain (RFC 6761 and its registry) unless it is one of private networks and the CAs are private, no public suffix and no
wildcard for all of one (`*.co.uk`), no name that a wildcard of the same profile covers already, since CAs refuse such
an order. `.test` and `.example` are allowed although no public CA issues for them: a private ACME server does, and that
is how a policy is tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Final, Self

from certplane.broker.policy.placeholders import LABEL, DnsNamePattern, sample_of
from certplane.broker.standing_rules import AT_LEAST, Approval, IncidentRollout
from certplane.config.decoding import Check, KeyProblem
from certplane.config.values import IdentityName, PositiveNumber, PositiveSpan
from certplane.pki.csr import MAX_DNS_NAMES
from certplane.pki.keys import KeyType
from certplane.pki.public_suffixes import is_public_suffix

_ROLE: Final = re.compile(r"[a-z][a-z_-]{0,63}", re.ASCII)

_SPECIAL_USE: Final = frozenset({"alt", "arpa", "internal", "invalid", "local", "localhost", "onion"})
"""Top-level domains of the special-use registry, and `internal`, which ICANN reserved: no public CA issues for them."""
PRIVATE_USE: Final = ("home.arpa", "internal", "local")
"""Of these, what private networks have zones for (RFC 8375, RFC 6762 appendix G): a private CA may issue for them."""

_CA_PROFILE_NAMES: Final = {"tlsserver": 25, "shortlived": 25}
"""Names per certificate of Let's Encrypt's profiles, where fewer than `MAX_DNS_NAMES`."""

_MOST_LABELS: Final = 20
"""Of one host: each is in every answer about it."""
_MOST_RINGS: Final = 20
_HUNDRED: Final = 100


class Challenge(StrEnum):
    """How control of a name is shown."""

    DNS_01 = "dns-01"


class ProfileKind(StrEnum):
    """Which names a profile has: wildcards only, none, or both."""

    WILDCARD = "wildcard"
    MULTI_SAN = "multi_san"
    MIXED = "mixed"


class Role(str):
    """What an operator or a service may do besides certificates; a free word that services look for."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The word as it stands."""
        if _ROLE.fullmatch(text) is None:
            raise ValueError("must be a word of a-z, '_' and '-'")
        return cls(text)


def _version(version: int) -> str | None:
    return None if version == 1 else f"is {version}; this broker reads version 1"


def _not_negative(number: int) -> str | None:
    return None if number >= 0 else "must be 0 or more"


@dataclass(frozen=True, slots=True)
class AcmeEntry:
    """`credentials` names the DNS provider's secret; `profile` is the CA's certificate profile.

    `issuers` are names of broker.yml's issuers, to be tried in this order; none is the default one. `private_ca` says
    that they are private, as `ca_bundle` in broker.yml does.
    """

    challenge: Challenge = Challenge.DNS_01
    credentials: str = ""
    profile: str = ""
    issuers: tuple[str, ...] = ()
    private_ca: bool = False

    def problems(self) -> Iterator[KeyProblem]:
        """No issuer twice."""
        for number, name in enumerate(self.issuers):
            if name in self.issuers[:number]:
                yield KeyProblem(f"issuers[{number}]", f"is {name} again", "write each issuer once")


@dataclass(frozen=True, slots=True)
class ProfileEntry:
    """One of `profiles`."""

    type: ProfileKind
    dns_names: tuple[DnsNamePattern, ...]
    acme: AcmeEntry = AcmeEntry()
    renew_before: PositiveSpan | None = None
    key_types: tuple[KeyType, ...] = tuple(KeyType)

    def problems(self) -> Iterator[KeyProblem]:
        """Names and type agree, and a CA could issue for all of them at once."""
        names = tuple(dict.fromkeys(self.dns_names))
        wildcards = [name for name in names if name.startswith("*")]
        if not names:
            yield KeyProblem("dns_names", "must not be empty")
        elif self.type is ProfileKind.WILDCARD and len(wildcards) < len(names):
            plain = next(name for name in names if name not in wildcards)
            yield KeyProblem(
                "dns_names", f"of a wildcard profile holds {plain}", "use type: mixed, or only wildcard names"
            )
        elif self.type is ProfileKind.MULTI_SAN and wildcards:
            yield KeyProblem("dns_names", f"of a multi_san profile holds {wildcards[0]}", "use type: wildcard or mixed")
        elif self.type is ProfileKind.MIXED and len(wildcards) in {0, len(names)}:
            missing = "other" if wildcards else "wildcard"
            remedy = f"add one, or use type: {'wildcard' if wildcards else 'multi_san'}"
            yield KeyProblem("dns_names", f"of a mixed profile holds no {missing} name", remedy)
        most = min(MAX_DNS_NAMES, _CA_PROFILE_NAMES.get(self.acme.profile, MAX_DNS_NAMES))
        if len(names) > most:
            yield KeyProblem("dns_names", f"holds {len(names)} names; the CA allows {most}", "split the profile")
        if not self.key_types:
            yield KeyProblem("key_types", "must not be empty", f"leave it out for {', '.join(KeyType)}")
        for number, name in enumerate(self.dns_names):
            if problem := name_problem(sample_of(name)):
                yield KeyProblem(f"dns_names[{number}]", f"is {name}: {problem}", "remove it")
        for number, (covered, covering) in covered_names(self.dns_names):
            problem = f"is {covered}, which {covering} covers; CAs refuse both together"
            yield KeyProblem(f"dns_names[{number}]", problem, "remove it")


def name_problem(name: str) -> str | None:
    """Why no CA would issue for a well-formed name."""
    base = name.removeprefix("*.")
    labels, private = base.split("."), is_private(name)
    if labels[-1] in _SPECIAL_USE and not private:
        return f"names under .{labels[-1]} are not public"
    if name == "*" or len(labels) < 2:
        return "it stands for a whole top-level domain" if name.startswith("*") else "it has one label only"
    if not private and is_public_suffix(base):
        return f"{base} is a public suffix, below which others register their names"
    return None


def covered_names(names: Iterable[str]) -> Iterator[tuple[int, tuple[str, str]]]:
    """The names that a wildcard among them covers: the place, the name and the wildcard."""
    names = [*names]
    known = set(names)
    for number, name in enumerate(names):
        covering = f"*.{name.partition('.')[2]}"
        if name != covering and covering in known:
            yield number, (name, covering)


def is_private(name: str) -> bool:
    """Whether a name is at or below a domain of private networks."""
    return any(f".{name}".endswith(f".{domain}") for domain in PRIVATE_USE)


class LabelValue(str):
    """The value of a host's label."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The value as it stands."""
        if LABEL.fullmatch(text) is None:
            raise ValueError("must be 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-', the first a letter or a digit")
        return cls(text)


def _label_problems(labels: Mapping[str, str]) -> Iterator[KeyProblem]:
    for key in labels:
        if LABEL.fullmatch(key) is None:
            problem = "has a name with other characters than A-Z, a-z, 0-9, '.', '_', '-', or over 64 of them"
            yield KeyProblem(f"labels.{key}", problem, "rename it")
    if len(labels) > _MOST_LABELS:
        yield KeyProblem("labels", f"has {len(labels)} labels, more than {_MOST_LABELS}", "leave some out")


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One of `hosts`. Its labels are for names, selections and rings; the host isn't told of them."""

    identity: IdentityName
    profiles: tuple[str, ...] = ()
    labels: Mapping[str, LabelValue] = field(default_factory=dict)

    def problems(self) -> Iterator[KeyProblem]:
        """Labels that can be written everywhere."""
        return _label_problems(self.labels)


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """One of `services`."""

    identity: IdentityName
    profiles: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()


@dataclass(frozen=True, slots=True)
class OperatorEntry:
    """One of `operators`."""

    identity: IdentityName
    roles: tuple[Role, ...] = ()


@dataclass(frozen=True, slots=True)
class RingEntry:
    """One of `rollouts.rings`; the rings of rollouts (RingSpec in the proto) are picked likewise."""

    name: str
    labels: Mapping[str, LabelValue] = field(default_factory=dict)
    percent: int | None = None
    rest: bool = False
    bake: timedelta = timedelta()

    def problems(self) -> Iterator[KeyProblem]:
        """One way to pick hosts."""
        if LABEL.fullmatch(self.name) is None:
            yield KeyProblem("name", "must be 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-'", "rename it")
        ways = [bool(self.labels), self.percent is not None, self.rest]
        if sum(ways) != 1:
            found = "picks no host" if not any(ways) else "picks its hosts in several ways"
            yield KeyProblem("name", f"is of a ring that {found}", "give it one of labels, percent and rest: true")
        if self.percent is not None and not 1 <= self.percent <= _HUNDRED:
            yield KeyProblem("percent", f"is {self.percent}, must be 1 to 100", "")
        yield from _label_problems(self.labels)


@dataclass(frozen=True, slots=True)
class RolloutsEntry:
    """The section `rollouts`."""

    approval: Approval = Approval.NONE
    approval_above_hosts: Annotated[int, Check(_not_negative)] | None = None
    rings: tuple[RingEntry, ...] = ()

    def problems(self) -> Iterator[KeyProblem]:
        """Rings that all hosts are in, each once."""
        if self.approval is Approval.NONE and self.approval_above_hosts is not None:
            yield KeyProblem(
                "approval_above_hosts", "is of no use without approval", "add `approval: required`, or remove it"
            )
        for number, ring in enumerate(self.rings):
            if any(ring.name == earlier.name for earlier in self.rings[:number]):
                yield KeyProblem(f"rings[{number}].name", f"is {ring.name} again", "give each ring its own name")
            if any(earlier.rest for earlier in self.rings[:number]):
                yield KeyProblem(f"rings[{number}].name", "is of a ring after the rest, which takes all", "move it up")
        if self.rings and not self.rings[-1].rest:
            yield KeyProblem(
                f"rings[{len(self.rings) - 1}].name",
                f"is {self.rings[-1].name}, the last ring, and hosts may be left that no ring has",
                "add `{name: rest, rest: true}` as the last ring",
            )
        if len(self.rings) > _MOST_RINGS:
            yield KeyProblem("rings", f"has {len(self.rings)} rings, more than {_MOST_RINGS}", "join some of them")


@dataclass(frozen=True, slots=True)
class IncidentsEntry:
    """The section `incidents`."""

    rollout: IncidentRollout = IncidentRollout.NONE
    at_least: PositiveNumber = AT_LEAST


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """The whole file."""

    version: Annotated[int, Check(_version)] = 1
    profiles: Mapping[str, ProfileEntry] = field(default_factory=dict)
    hosts: Mapping[str, HostEntry] = field(default_factory=dict)
    services: Mapping[str, ServiceEntry] = field(default_factory=dict)
    operators: Mapping[str, OperatorEntry] = field(default_factory=dict)
    rollouts: RolloutsEntry = RolloutsEntry()
    incidents: IncidentsEntry = IncidentsEntry()

    def problems(self) -> Iterator[KeyProblem]:
        """What begins by itself has its rings."""
        if self.incidents.rollout is IncidentRollout.RINGS and not self.rollouts.rings:
            yield KeyProblem("incidents.rollout", "is rings, and there are none", "add them as `rollouts.rings`")
