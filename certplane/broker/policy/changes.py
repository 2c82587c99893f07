"""What one policy gives that another doesn't. Pure.

A grant is an identity's right to a certificate of a profile; hosts, services, profiles and grants are compared by name.
So a host that gets another identity's name is one lost and one gained, as it is for the host.

A certificate is *issued again* where identity and profile stay and what decides the certificate changes
(`Profile.hash`): the broker no longer answers with the one that it has, and orders a new one at the next request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
    RULE = "rule"
    """What policy says of rollouts and incidents."""


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """One change; the fields that don't belong to its subject are empty.

    Attributes:
        change: What happens.
        subject: To what.
        identity: Of hosts, services, operators, roles, grants, certificates.
        profile: Of grants, profiles, names, certificates.
        name: The DNS name of a name, the role of a role, the key of a rule.
        detail: What of a profile, a host's labels or a rule changes, for people.
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
        """The count of a subject; certificates and rules have none."""
        return next(count for count in self.counts if count.subject is subject)

    @property
    def issued_again(self) -> int:
        """How many grants there are whose certificates are issued again."""
        return sum(change.change is Change.ISSUED_AGAIN for change in self.changes)


_Key = tuple[Subject, str, str, str]
"""Subject, identity, profile, name."""

_ORDER: Final = {subject: number for number, subject in enumerate(Subject)}
_SUBJECTS: Final = {
    IdentityKind.HOST: Subject.HOST,
    IdentityKind.SERVICE: Subject.SERVICE,
    IdentityKind.OPERATOR: Subject.OPERATOR,
}

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

_RULES: Final[Mapping[str, Callable[[PolicyDocument], object]]] = {
    "rollouts.approval": lambda policy: policy.rollouts.approval,
    "rollouts.approval_above_hosts": lambda policy: "" if (n := policy.rollouts.approval_above_hosts) is None else n,
    "rollouts.rings": lambda policy: [str(ring) for ring in policy.rollouts.rings],
    "incidents.rollout": lambda policy: policy.incidents.rollout,
    "incidents.at_least": lambda policy: policy.incidents.at_least,
}
"""What it says besides, likewise."""


def compare(before: PolicyDocument, after: PolicyDocument) -> PolicyChanges:
    """What `after` takes away from `before`, and what it adds."""
    lost, gained = (sorted(_lost(*pair), key=_place) for pair in ((before, after), (after, before)))
    counts = _counts(before, after, lost, gained)
    changed = dict(_changed_profiles(before, after))
    details = [
        PolicyChange(Change.CHANGED, Subject.PROFILE, profile=name, detail=text)
        for name, text in changed.items()
        if text
    ]
    again = [
        PolicyChange(Change.ISSUED_AGAIN, Subject.CERTIFICATE, grant.name, profile, detail=_why_again(old, new))
        for grant in before.grants
        for profile in grant.profiles
        if (old := before.granted(grant.name, profile)) is not None
        and (new := after.granted(grant.name, profile)) is not None
        and old.hash != new.hash
    ]
    return PolicyChanges(
        before.hash,
        after.hash,
        counts,
        (
            *(PolicyChange(Change.LOST, *key) for key in lost),
            *(PolicyChange(Change.GAINED, *key) for key in gained),
            *details,
            *_changed_labels(before, after),
            *_changed_rules(before, after),
            *sorted(again, key=lambda change: (change.identity, change.profile)),
        ),
    )


def _lost(before: PolicyDocument, after: PolicyDocument) -> Iterator[_Key]:
    """What the one has and the other hasn't; the other way round it is what is gained.

    Nothing is made of what stays: a policy may be large, and a broker compares it beside its calls.
    """
    for grant in before.grants:
        kept = after.find_grant(grant.name)
        if kept is None or kept.kind is not grant.kind:
            yield _SUBJECTS[grant.kind], grant.name, "", ""
        roles, profiles = ((), ()) if kept is None else (kept.roles, kept.profiles)
        yield from ((Subject.ROLE, grant.name, "", str(role)) for role in grant.roles if role not in roles)
        yield from ((Subject.GRANT, grant.name, name, "") for name in grant.profiles if name not in profiles)
    for profile in before.profiles:
        other = after.find_profile(profile.name)
        if other is None:
            yield Subject.PROFILE, "", profile.name, ""
        names = after.names_of(profile.name)
        yield from (
            (Subject.NAME, "", profile.name, name) for name in before.names_of(profile.name) if name not in names
        )


def _counts(
    before: PolicyDocument, after: PolicyDocument, lost: Sequence[_Key], gained: Sequence[_Key]
) -> tuple[Count, ...]:
    old, new = _sizes(before), _sizes(after)
    gone, come = (Counter(subject for subject, *_ in keys) for keys in (lost, gained))
    return tuple(
        Count(subject, old[subject], new[subject], come[subject], gone[subject])
        for subject in Subject
        if subject not in {Subject.CERTIFICATE, Subject.RULE}
    )


def _sizes(policy: PolicyDocument) -> Counter[Subject]:
    sizes = Counter(_SUBJECTS[grant.kind] for grant in policy.grants)
    for grant in policy.grants:
        sizes[Subject.ROLE] += len(grant.roles)
        sizes[Subject.GRANT] += len(grant.profiles)
    sizes[Subject.PROFILE] = len(policy.profiles)
    sizes[Subject.NAME] = sum(len(policy.names_of(profile.name)) for profile in policy.profiles)
    return sizes


def _place(key: _Key) -> tuple[int, str, str, str]:
    """Where it stands among changes: by subject, then by names."""
    subject, identity, profile, name = key
    return _ORDER[subject], identity, profile, name


def _changed_profiles(before: PolicyDocument, after: PolicyDocument) -> Iterator[tuple[str, str]]:
    """Profiles of both that say something else, with what; names are changes of their own."""
    for old in before.profiles:
        new = after.find_profile(old.name)
        if new is not None and (keys := _changed_facts(old, new)):
            texts = (
                f"{key}: {_shown(_FACTS[key](old))} -> {_shown(_FACTS[key](new))}" for key in keys if key != "dns_names"
            )
            yield old.name, "; ".join(texts)


def _changed_labels(before: PolicyDocument, after: PolicyDocument) -> Iterator[PolicyChange]:
    """Hosts of both that have other labels, with which."""
    for grant in before.grants:
        kept = after.find_grant(grant.name)
        if kept is not None and kept.kind is grant.kind and kept.labels != grant.labels:
            old, new = (sorted(f"{key}={value}" for key, value in each.labels.items()) for each in (grant, kept))
            detail = f"labels: {_shown(old)} -> {_shown(new)}"
            yield PolicyChange(Change.CHANGED, Subject.HOST, grant.name, detail=detail)


def _changed_rules(before: PolicyDocument, after: PolicyDocument) -> Iterator[PolicyChange]:
    """Who is asked, and what begins by itself: as much a matter of who may do what as a role is."""
    for key, rule in _RULES.items():
        old, new = rule(before), rule(after)
        if old != new:
            yield PolicyChange(Change.CHANGED, Subject.RULE, name=key, detail=f"{_shown(old)} -> {_shown(new)}")


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
