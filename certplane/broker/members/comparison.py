"""In what brokers differ that should be alike, and what to do about it. Pure.

A host gets to any broker, so what it is told must not depend on which one. Nothing here is refused: brokers are
restarted and reloaded one after the other, and differ meanwhile.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from certplane.broker.members.model import Member
from certplane.broker.members.skew import NOTICED, REMEDY, skew_text

_SHOWN: Final = 12
"""Characters of a hash or an id for people."""
_MOST_NAMED: Final = 10


class Subject(StrEnum):
    """What brokers may differ in; values are those of the metric's label."""

    POLICY = "policy"
    TRUST = "trust"
    CONFIGURATION = "configuration"
    AUDIT_MODE = "audit_mode"
    ACCOUNT = "account"
    VERSION = "version"
    CLOCK = "clock"
    ADDRESS = "address"
    LEASE = "lease"


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that isn't alike, or wrong with one of them.

    Attributes:
        subject: What it is about.
        text: Which broker has what, for people.
        remedy: What to do, for people.
        broker_ids: Who differs from most others; all, where there is no majority.
    """

    subject: Subject
    text: str
    remedy: str
    broker_ids: tuple[str, ...]


_ALIKE: Final[Mapping[Subject, tuple[str, Callable[[Member], str], str]]] = {
    Subject.POLICY: (
        "policies",
        lambda member: member.policy_hash,
        "give all brokers the same policy.yml, and reload it at each (`certplane-broker reload`)",
    ),
    Subject.TRUST: (
        "CAs of the identities",
        lambda member: member.trust_hash,
        "give all brokers the same server.mtls.agent_ca_bundle, and reload it at each (`certplane-broker reload`)",
    ),
    Subject.CONFIGURATION: (
        "configurations",
        lambda member: member.configuration_hash,
        "compare their broker.yml (addresses, files, secrets and logs may differ), and restart those that are wrong",
    ),
    Subject.AUDIT_MODE: (
        "audit modes",
        lambda member: member.audit_mode,
        "set audit.enabled and audit.failure_mode alike at all brokers, and restart those that are wrong",
    ),
    Subject.VERSION: (
        "versions",
        lambda member: member.version,
        "upgrade the brokers that run the older one",
    ),
}
"""What must be alike, as people call it; how it is seen (nothing where it isn't known); and the remedy."""


def compare(members: Sequence[Member], without_lease: Collection[str] = ()) -> list[Difference]:
    """All differences, in the order of `Subject`.

    Args:
        members: The brokers.
        without_lease: The ids of those of them that have lost their lease.
    """
    found = [
        difference
        for subject, (what, value, remedy) in _ALIKE.items()
        if (difference := _unlike(subject, what, remedy, members, value)) is not None
    ]
    found += _accounts(members)
    found += _clocks(members)
    found += _addresses(members)
    lost = [member for member in members if member.broker_id in without_lease]
    if lost:
        text = f"{_all_of(lost)} has no lease, and issues nothing until it has one again"
        remedy = "see its log, and check that it reaches the database"
        found.append(Difference(Subject.LEASE, text, remedy, _ids(lost)))
    order = list(Subject)
    return sorted(found, key=lambda difference: order.index(difference.subject))


def called(member: Member) -> str:
    """What people call a broker."""
    return f"{member.name} {member.address}"


def _unlike(
    subject: Subject, what: str, remedy: str, members: Sequence[Member], value: Callable[[Member], str]
) -> Difference | None:
    """The difference of members whose values aren't alike; an empty value isn't known."""
    groups: defaultdict[str, list[Member]] = defaultdict(list)
    for member in members:
        if value(member):
            groups[value(member)].append(member)
    if len(groups) < 2:
        return None
    (_, most), (_, second) = Counter({each: len(group) for each, group in groups.items()}).most_common(2)
    unlike = [group for group in groups.values() if most == second or len(group) < most]
    parts = [f"{each[:_SHOWN]} at {_all_of(group)}" for each, group in groups.items()]
    ids = tuple(member.broker_id for group in unlike for member in group)
    return Difference(subject, f"{what} differ: {'; '.join(parts)}", remedy, ids)


def _accounts(members: Sequence[Member]) -> Iterator[Difference]:
    keys = {
        member.broker_id: {each.issuer: each.public_key_sha256 for each in member.account_keys} for member in members
    }
    remedy = "let all brokers use one key (issuer.acme.account_key: {secret: NAME} or {store: true})"
    for issuer in sorted({issuer for accounts in keys.values() for issuer in accounts}):
        what = f"ACME accounts of the issuer {issuer}"
        difference = _unlike(
            Subject.ACCOUNT,
            what,
            remedy,
            members,
            lambda member: keys[member.broker_id].get(issuer, ""),  # noqa: B023 - called at once
        )
        if difference is not None:
            yield difference


def _clocks(members: Sequence[Member]) -> Iterator[Difference]:
    for member in members:
        if abs(member.clock_skew) > NOTICED:
            text = f"the clock of {called(member)} is {skew_text(member.clock_skew)}"
            yield Difference(Subject.CLOCK, text, REMEDY, (member.broker_id,))


def _addresses(members: Sequence[Member]) -> Iterator[Difference]:
    """Brokers that people, and agents perhaps, can't tell apart; who shares a port on purpose is none."""
    groups: defaultdict[str, list[Member]] = defaultdict(list)
    for member in members:
        groups[called(member)].append(member)
    for name, group in groups.items():
        if len(group) > 1 and not all(member.reuse_port for member in group):
            text = f"{len(group)} brokers are called {name}"
            remedy = "give each machine its own name; one that was killed is gone when its lease ends, in 20 seconds"
            yield Difference(Subject.ADDRESS, text, remedy, _ids(group))


def _all_of(members: Sequence[Member]) -> str:
    names = [called(member) for member in members[:_MOST_NAMED]]
    more = len(members) - len(names)
    return ", ".join([*names, f"{more} more"] if more else names)


def _ids(members: Sequence[Member]) -> tuple[str, ...]:
    return tuple(member.broker_id for member in members)
