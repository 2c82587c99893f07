"""policy.yml as an immutable value, or everything that is wrong with the file at once.

Names are held to what the profile's CAs could issue: DNS names with at least two labels, none under a special-use
domain (RFC 6761 and its registry) unless it is one of private networks and the CAs are private, no wildcard for a whole
top-level domain, no name that a wildcard of the same profile covers already, since CAs refuse such an order. `.test`
and `.example` are allowed although no public CA issues for them: a private ACME server does, and that is how a policy
is tried. Public suffixes (`co.uk`) are not known here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from typing_extensions import override

from certplane.broker.model import Grant, IdentityKind, Profile
from certplane.broker.ports import Policy
from certplane.config.decoding import Check, Decoder, KeyProblem
from certplane.config.document import Document, MappingNode, Node, ScalarNode, SequenceNode, Source
from certplane.config.values import DnsName, IdentityName, PositiveSpan, canonical_identity_name
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.pki.csr import MAX_DNS_NAMES
from certplane.pki.keys import KeyType
from certplane.runtime.turns import let_go

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_ROLE = re.compile(r"[a-z][a-z_-]{0,63}", re.ASCII)

_SPECIAL_USE = frozenset({"alt", "arpa", "internal", "invalid", "local", "localhost", "onion"})
"""Top-level domains of the special-use registry, and `internal`, which ICANN reserved: no public CA issues for them."""
_PRIVATE_USE = ("home.arpa", "internal", "local")
"""Of these, what private networks have zones for (RFC 8375, RFC 6762 appendix G): a private CA may issue for them."""

_TRUE = frozenset({"true", "yes", "on"})

_CA_PROFILE_NAMES = {"tlsserver": 25, "shortlived": 25}
"""Names per certificate of Let's Encrypt's profiles, where fewer than `MAX_DNS_NAMES`."""


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


@dataclass(frozen=True, slots=True)
class _AcmeEntry:
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
class _ProfileEntry:
    """One of `profiles`."""

    type: ProfileKind
    dns_names: tuple[DnsName, ...]
    acme: _AcmeEntry = _AcmeEntry()
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
        yield from self._name_problems()

    def _name_problems(self) -> Iterator[KeyProblem]:
        seen = set(self.dns_names)
        for number, name in enumerate(self.dns_names):
            key = f"dns_names[{number}]"
            if problem := _name_problem(name):
                yield KeyProblem(key, f"is {name}: {problem}", "remove it")
        for number, name in enumerate(self.dns_names):
            covering = f"*.{name.partition('.')[2]}"
            if name != covering and covering in seen:
                yield KeyProblem(
                    f"dns_names[{number}]", f"is {name}, which {covering} covers; CAs refuse both together", "remove it"
                )


def _name_problem(name: str) -> str | None:
    """Why no CA would issue for a well-formed name."""
    labels = name.removeprefix("*.").split(".")
    if labels[-1] in _SPECIAL_USE and not _is_private(name):
        return f"names under .{labels[-1]} are not public"
    if name == "*" or len(labels) < 2:
        return "it stands for a whole top-level domain" if name.startswith("*") else "it has one label only"
    return None


def _is_private(name: str) -> bool:
    """Whether a name is at or below a domain of private networks."""
    return any(f".{name}".endswith(f".{domain}") for domain in _PRIVATE_USE)


@dataclass(frozen=True, slots=True)
class _HostEntry:
    """One of `hosts`."""

    identity: IdentityName
    profiles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _ServiceEntry:
    """One of `services`."""

    identity: IdentityName
    profiles: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()


@dataclass(frozen=True, slots=True)
class _OperatorEntry:
    """One of `operators`."""

    identity: IdentityName
    roles: tuple[Role, ...] = ()


@dataclass(frozen=True, slots=True)
class _PolicyFile:
    """The whole file."""

    version: Annotated[int, Check(_version)] = 1
    profiles: Mapping[str, _ProfileEntry] = field(default_factory=dict)
    hosts: Mapping[str, _HostEntry] = field(default_factory=dict)
    services: Mapping[str, _ServiceEntry] = field(default_factory=dict)
    operators: Mapping[str, _OperatorEntry] = field(default_factory=dict)


class PolicyDocument(Policy):
    """A loaded policy, immutable; implements `certplane.broker.ports.Policy`."""

    def __init__(self, file: str, sha256: str, profiles: Mapping[str, Profile], grants: Mapping[str, Grant]) -> None:
        self._file = file
        self._sha256 = sha256
        self._profiles = dict(profiles)
        self._grants = dict(grants)
        self._hosts = {grant.label: grant for grant in grants.values() if grant.kind is IdentityKind.HOST}
        self._host_names = tuple(sorted(grant.name for grant in self._hosts.values()))
        services = (grant.name for grant in grants.values() if grant.kind is IdentityKind.SERVICE)
        self._service_names = tuple(sorted(services))
        others = (grant for grant in grants.values() if grant.kind is not IdentityKind.HOST)
        self._others = {(grant.kind, grant.label): grant.name for grant in others}  # a label names one of each kind

    @property
    @override
    def hash(self) -> str:
        return self._sha256

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """All profiles, in the file's order."""
        return tuple(self._profiles.values())

    @property
    def grants(self) -> tuple[Grant, ...]:
        """All identities, in the file's order: hosts, services, operators."""
        return tuple(self._grants.values())

    def check_grants(self) -> None:
        """Whether anybody has anything by it: an empty policy is what a template writes when its data is missing.

        Raises:
            ConfigurationError: there is no host, no service and no operator.
        """
        if not self._grants:
            message = "gives nothing to anybody: it has no hosts, no services and no operators"
            remedy = "add the first host or operator, or check what wrote the file"
            raise ConfigurationError([ConfigurationProblem(self._file, None, "", message, remedy)])

    @override
    def find_grant(self, identity: str) -> Grant | None:
        return self._grants.get(identity)

    @override
    def find_profile(self, name: str) -> Profile | None:
        return self._profiles.get(name)

    @override
    def find_host(self, label: str) -> Grant | None:
        return self._hosts.get(label)

    @override
    def identities_of(self, name_or_label: str) -> frozenset[str]:
        host = self._hosts.get(name_or_label)
        found = {self._others.get((kind, name_or_label)) for kind in IdentityKind}
        found |= {None if host is None else host.name, name_or_label if name_or_label in self._grants else None}
        return frozenset(name for name in found if name is not None)

    @property
    @override
    def host_names(self) -> tuple[str, ...]:
        return self._host_names

    @property
    @override
    def service_names(self) -> tuple[str, ...]:
        return self._service_names


def load_policy(path: Path, private_issuers: Collection[str] | None = ()) -> PolicyDocument:
    """Read policy.yml.

    Args:
        path: the file.
        private_issuers: broker.yml's issuers that are private CAs; "" stands for the default one. None where it isn't
            known: then names of private networks are taken.

    Raises:
        ConfigurationError: everything that is wrong with it, or nobody has anything by it.
    """
    policy = read_policy(Document.read(path), private_issuers)
    policy.check_grants()
    return policy


def read_policy(document: Document, private_issuers: Collection[str] | None = ()) -> PolicyDocument:
    """The policy of a document, an empty one included. Arguments and errors as `load_policy`'s."""
    decoder = Decoder(document.source)
    file = decoder.section(document.root, _PolicyFile)
    _check_across(document.root, decoder)
    for entry in _entries(document.root, "profiles").values():
        if isinstance(entry, MappingNode) and private_issuers is not None:
            _check_private_names(entry, private_issuers, decoder)
    decoder.finish()
    assert file is not None
    profiles = {name: _profile(name, entry) for name, entry in file.profiles.items()}
    grants = [
        *(Grant(e.identity, IdentityKind.HOST, label, _once(e.profiles)) for label, e in file.hosts.items()),
        *(
            Grant(e.identity, IdentityKind.SERVICE, label, _once(e.profiles), e.roles)
            for label, e in file.services.items()
        ),
        *(Grant(e.identity, IdentityKind.OPERATOR, label, (), e.roles) for label, e in file.operators.items()),
    ]
    read = [*file.profiles.values(), *file.hosts.values()]
    del file
    let_go(read)
    source = document.source
    return PolicyDocument(source.file, source.sha256, profiles, {grant.name: grant for grant in grants})


def check_issuers(policy: PolicyDocument, source: Source, known: Collection[str]) -> None:
    """Whether the issuers that profiles name are among `known`, those of broker.yml.

    Apart from the policy, which doesn't keep its lines: of a large one they are a hundred megabytes.

    Raises:
        ConfigurationError: those that aren't.
    """
    problems = [
        source.problem(
            f"profiles.{profile.name}.acme.issuers[{number}]",
            f"is {name}, which is no issuer of the broker's",
            f"use one of: {', '.join(known)}",
        )
        for profile in policy.profiles
        for number, name in enumerate(profile.issuers)
        if name not in known
    ]
    if problems:
        raise ConfigurationError(problems)


def _once(profiles: tuple[str, ...]) -> tuple[str, ...]:
    """A list of a set of things: what is written twice is there once."""
    return tuple(dict.fromkeys(profiles))


def _profile(name: str, entry: _ProfileEntry) -> Profile:
    dns_names = tuple(sorted(set(entry.dns_names)))
    facts: dict[str, Any] = {
        "name": name,
        "type": entry.type,
        "dns_names": dns_names,
        "key_types": sorted(entry.key_types),
        "challenge": entry.acme.challenge,
        "credentials": entry.acme.credentials,
        "acme_profile": entry.acme.profile,
    }
    if entry.acme.issuers:  # left out where there is none: the profiles of files without it keep their hash
        facts["issuers"] = entry.acme.issuers
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return Profile(
        name=name,
        kind=entry.type,
        dns_names=dns_names,
        hash=hashlib.sha256(canonical.encode("ascii")).hexdigest(),
        challenge=entry.acme.challenge,
        credentials=entry.acme.credentials,
        acme_profile=entry.acme.profile,
        issuers=entry.acme.issuers,
        renew_before=entry.renew_before,
        key_types=tuple(entry.key_types),
    )


def _check_across(root: MappingNode, decoder: Decoder) -> None:
    """What one entry says of another, on the nodes, so that it is told beside whatever else is wrong."""
    profiles = _entries(root, "profiles")
    for name, node in profiles.items():
        _check_label(name, node, decoder)
    owners: dict[str, str] = {}
    for section in ("hosts", "services", "operators"):
        for label, node in _entries(root, section).items():
            _check_label(label, node, decoder)
            if isinstance(node, MappingNode):
                _check_identity(node, owners, decoder)
                _check_profiles(node, profiles.keys(), decoder)


def _entries(root: MappingNode, section: str) -> dict[str, Node]:
    entry = root.entries.get(section)
    if entry is None or not isinstance(entry.value, MappingNode):
        return {}
    return {name: inner.value for name, inner in entry.value.entries.items()}


def _check_private_names(profile: MappingNode, private_issuers: Collection[str], decoder: Decoder) -> None:
    """Names of private networks belong into profiles whose CAs are private."""
    acme = profile.entries.get("acme")
    told = acme.value.entries if acme is not None and isinstance(acme.value, MappingNode) else {}
    said, issuers = (told[key].value if key in told else None for key in ("private_ca", "issuers"))
    if isinstance(said, ScalarNode) and said.text.lower() in _TRUE:
        return
    listed = issuers.items if isinstance(issuers, SequenceNode) else ()
    named = [item.text for item in listed if isinstance(item, ScalarNode)]
    if all(issuer in private_issuers for issuer in named or [""]):
        return
    names = profile.entries.get("dns_names")
    for item in names.value.items if names is not None and isinstance(names.value, SequenceNode) else ():
        if isinstance(item, ScalarNode) and _is_private(name := item.text.lower()):
            domain = next(domain for domain in _PRIVATE_USE if f".{name}".endswith(f".{domain}"))
            remedy = (
                "remove it; or, if the profile's issuers are private ACME CAs, set their ca_bundle in broker.yml or "
                "acme.private_ca: true here"
            )
            decoder.add(item.key, f"is {name[:80]}: names under .{domain} are not public", remedy)


def _check_label(label: str, node: Node, decoder: Decoder) -> None:
    if _NAME.fullmatch(label) is None:
        decoder.add(node.key, "has a name with other characters than A-Z, a-z, 0-9, '.', '_', '-', or over 64 of them")


def _check_identity(node: MappingNode, owners: dict[str, str], decoder: Decoder) -> None:
    entry = node.entries.get("identity")
    if entry is None or not isinstance(entry.value, ScalarNode):
        return
    try:
        identity = canonical_identity_name(entry.value.text)
    except ValueError:
        return  # told already
    first = owners.setdefault(identity, node.key)
    if first != node.key:
        decoder.add(entry.value.key, f"is {identity}, the identity of {first} too", "give each entry its own")


def _check_profiles(node: MappingNode, known: Any, decoder: Decoder) -> None:
    entry = node.entries.get("profiles")
    if entry is None or not isinstance(entry.value, SequenceNode):
        return
    for item in entry.value.items:
        if isinstance(item, ScalarNode) and item.text not in known:
            decoder.add(item.key, f"is {item.text[:64]!a}, which is no profile", "define it under `profiles`")
