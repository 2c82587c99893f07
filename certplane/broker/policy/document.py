"""policy.yml as an immutable value, or everything that is wrong with the file at once.

What its sections may hold is `entries`, what they may say of each other `across`. A profile whose names have
placeholders is expanded here, once for each set of names that identities get by it (`PolicyDocument.granted`).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from certplane.broker.model import Grant, IdentityKind, Profile
from certplane.broker.policy.across import check_across
from certplane.broker.policy.entries import HostEntry, PolicyFile, ProfileEntry, RingEntry, RolloutsEntry
from certplane.broker.policy.placeholders import expand, has_placeholder
from certplane.broker.ports import Policy
from certplane.broker.standing_rules import IncidentRules, RingRule, RolloutRules
from certplane.config.decoding import Decoder
from certplane.config.document import Document, Source
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime.turns import let_go

_NO_RULES: Final = (RolloutRules(), IncidentRules())


class PolicyDocument(Policy):
    """A loaded policy, immutable; implements `certplane.broker.ports.Policy`."""

    def __init__(
        self,
        file: str,
        sha256: str,
        profiles: Mapping[str, Profile],
        grants: Mapping[str, Grant],
        *,
        expanded: Mapping[str, Mapping[str, Profile]] | None = None,
        rules: tuple[RolloutRules, IncidentRules] = _NO_RULES,
    ) -> None:
        """`expanded` are the profiles whose names have placeholders, by name, as each identity has them."""
        self._file = file
        self._sha256 = sha256
        self._profiles = dict(profiles)
        self._grants = dict(grants)
        self._expanded = expanded or {}
        self._rollouts, self._incidents = rules
        labelled = defaultdict[str, list[str]](list)
        for grant in grants.values():
            for key, value in grant.labels.items():
                labelled[f"{key}={value}"].append(grant.name)
        self._labelled = dict(labelled)
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
    @override
    def rollouts(self) -> RolloutRules:
        return self._rollouts

    @property
    @override
    def incidents(self) -> IncidentRules:
        return self._incidents

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """All profiles as they are written, in the file's order."""
        return tuple(self._profiles.values())

    def issued(self, profile: str) -> Sequence[Profile]:
        """A profile as certificates are issued by it: itself, or one for each set of names that identities get."""
        expanded = self._expanded.get(profile)
        if expanded is not None:
            return [*{id(each): each for each in expanded.values()}.values()]
        written = self._profiles.get(profile)
        return [] if written is None else [written]

    @property
    def issued_profiles(self) -> Iterator[Profile]:
        """All profiles as certificates are issued by them."""
        return (each for name in self._profiles for each in self.issued(name))

    def names_of(self, profile: str) -> Collection[str]:
        """All names that certificates of a profile have."""
        issued = self.issued(profile)
        return issued[0].dns_names if len(issued) == 1 else {name for each in issued for name in each.dns_names}

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
    def granted(self, identity: str, profile: str) -> Profile | None:
        grant = self._grants.get(identity)
        if grant is None or profile not in grant.profiles:
            return None
        expanded = self._expanded.get(profile)
        return self._profiles.get(profile) if expanded is None else expanded.get(identity)

    @override
    def find_host(self, label: str) -> Grant | None:
        return self._hosts.get(label)

    @override
    def hosts_with(self, labels: Iterable[str]) -> frozenset[str]:
        return frozenset(name for label in labels for name in self._labelled.get(label, ()))

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
    file = decoder.section(document.root, PolicyFile)
    check_across(document.root, private_issuers, decoder)
    decoder.finish()
    assert file is not None
    profiles = {name: _profile(name, entry) for name, entry in file.profiles.items()}
    grants = {grant.name: grant for grant in _grants(file)}
    expanded = {
        name: _expanded(profile, file.profiles[name], grants)
        for name, profile in profiles.items()
        if any(map(has_placeholder, profile.dns_names))
    }
    rules = (_rollout_rules(file.rollouts), IncidentRules(file.incidents.rollout, file.incidents.at_least))
    read = [*file.profiles.values(), *file.hosts.values()]
    del file
    let_go(read)
    source = document.source
    return PolicyDocument(source.file, source.sha256, profiles, grants, expanded=expanded, rules=rules)


def _grants(file: PolicyFile) -> Iterator[Grant]:
    """What each identity is given. Hosts that have the same labels share them: of a large policy they are few."""
    known: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}

    def labels(entry: HostEntry) -> Mapping[str, str]:
        return known.setdefault(tuple(entry.labels.items()), entry.labels)

    for label, host in file.hosts.items():
        yield Grant(host.identity, IdentityKind.HOST, label, _once(host.profiles), labels=labels(host))
    for label, service in file.services.items():
        yield Grant(service.identity, IdentityKind.SERVICE, label, _once(service.profiles), service.roles)
    for label, operator in file.operators.items():
        yield Grant(operator.identity, IdentityKind.OPERATOR, label, (), operator.roles)


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


def _profile(name: str, entry: ProfileEntry) -> Profile:
    dns_names = tuple(sorted(set(entry.dns_names)))
    return Profile(
        name=name,
        kind=entry.type,
        dns_names=dns_names,
        hash=_hash(name, entry, dns_names),
        challenge=entry.acme.challenge,
        credentials=entry.acme.credentials,
        acme_profile=entry.acme.profile,
        issuers=entry.acme.issuers,
        renew_before=entry.renew_before,
        key_types=tuple(entry.key_types),
    )


def _hash(name: str, entry: ProfileEntry, dns_names: Sequence[str]) -> str:
    """`Profile.hash`: of names from placeholders it is the one that the profile would have with these names written."""
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
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _expanded(written: Profile, entry: ProfileEntry, grants: Mapping[str, Grant]) -> Mapping[str, Profile]:
    """The profile as each identity has it that it is given to; identities with the same names share one."""
    profiles: dict[tuple[str, ...], Profile] = {}
    found = {}
    for identity, grant in grants.items():
        if written.name in grant.profiles:
            names = expand(written.dns_names, grant.label, grant.labels)
            own = profiles.get(names)
            if own is None:
                own = replace(written, dns_names=names, hash=_hash(written.name, entry, names))
                profiles[names] = own
            found[identity] = own
    return found


def _rollout_rules(entry: RolloutsEntry) -> RolloutRules:
    return RolloutRules(entry.approval, entry.approval_above_hosts, tuple(map(_ring, entry.rings)))


def _ring(entry: RingEntry) -> RingRule:
    return RingRule(entry.name, entry.labels, entry.percent or 0, entry.rest, entry.bake)
