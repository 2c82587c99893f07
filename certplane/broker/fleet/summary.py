"""What an operator asks at night, of the whole fleet: who is hurt, who is next, one cause or many, who is missing.

`sum_up` goes through the index once and keeps the few that are shown; texts for people are `FleetView`'s to read.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from certplane.broker.fleet.filter import IDENTITY, PickedAt
from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.model import IdentityKind
from certplane.runtime.health import HealthWord, moment_text

MOST_SHOWN: Final = 20
"""Of each list."""
MOST_VERSIONS: Final = 10
ENDINGS: Final = tuple(timedelta(days=days) for days in (1, 7, 14, 30, 90))
"""Within which the ends are counted of what is in use."""

_HURT: Final = frozenset({HealthWord.EXPIRED, HealthWord.REVOKED_IN_USE, HealthWord.FOREIGN_SERVED})
_RETRIED: Final = frozenset({HealthWord.OVERDUE, HealthWord.FAILING})
_CUT: Final = 512
"""So many are kept before the first of them are chosen."""
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
_FAR: Final = datetime.max.replace(tzinfo=UTC)

T = TypeVar("T")
Held = tuple[IndexedHost, IndexedCertificate]
"""A certificate with its holder."""


@dataclass(slots=True)
class FleetSums:
    """What was found; lists are cut to `MOST_SHOWN`, and the counts beside them say how many there are."""

    host_count: int = 0
    connected_host_count: int = 0
    service_count: int = 0
    connected_service_count: int = 0
    healths: Counter[HealthWord] = field(default_factory=Counter)
    hurt: Sequence[Held] = ()
    hurt_count: int = 0
    next: Sequence[Held] = ()
    next_count: int = 0
    next_wont_heal_count: int = 0
    missing: Sequence[IndexedHost] = ()
    missing_count: int = 0
    endings: Counter[timedelta] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)


async def sum_up(hosts: AsyncIterator[IndexedHost], picked: PickedAt, now: datetime, period: timedelta) -> FleetSums:
    """Sum up what is picked of the fleet.

    Args:
        hosts: All of it (`FleetIndex.walk`).
        picked: What counts.
        now: The time.
        period: What ends within it is next. Identities, which are renewed each day, are only next when something is
            wrong with them.
    """
    sums = FleetSums()
    hurt, coming = _First[Held](_worst_first), _First[Held](_soonest_first)
    missing = _First[IndexedHost](_longest_first)
    async for host in hosts:
        if not picked.picks_host(host):
            continue
        _count_host(sums, host)
        if missing_reason(host):
            missing.add(host)
        for each in picked.picked(host):
            sums.healths[each.health] += 1
            if each.health in _HURT:
                hurt.add((host, each))
            if each.end is None or (each.name == IDENTITY and each.health is HealthWord.OK):
                continue
            left = each.end - now
            for within in ENDINGS:
                sums.endings[within] += left <= within
            if left <= period and each.health not in _HURT:
                coming.add((host, each))
                sums.next_wont_heal_count += not heals(each)
    sums.hurt, sums.hurt_count = hurt.found(), hurt.count
    sums.next, sums.next_count = coming.found(), coming.count
    sums.missing, sums.missing_count = missing.found(), missing.count
    return sums


def heals(certificate: IndexedCertificate) -> bool:
    """Whether a certificate that ends soon is renewed before, without anybody's doing, as far as is known."""
    if certificate.health is HealthWord.OK:
        return True
    again, end = certificate.next_attempt_time, certificate.not_after
    return certificate.health in _RETRIED and again is not None and end is not None and again < end


def missing_reason(host: IndexedHost) -> str:
    """Why a host isn't there, or gets nothing; empty of one that is there, and of a service."""
    if host.kind is IdentityKind.SERVICE:
        return ""
    if host.blocked:
        return host.blocked
    if host.unheard_since is not None:
        return f"its agent should have been heard by {moment_text(host.unheard_since)}"
    return "" if host.connect_time is not None else "it never came"


def soonest_end(host: IndexedHost) -> datetime | None:
    """The soonest end of what it has in use, its identity apart."""
    ends = (each.not_after for each in host.certificates if each.name != IDENTITY)
    return min((end for end in ends if end is not None), default=None)


class _First(Generic[T]):
    """The first of many in an order, and how many there were."""

    def __init__(self, key: Callable[[T], Any]) -> None:
        self._key = key
        self._kept: list[T] = []
        self.count = 0

    def add(self, value: T) -> None:
        self.count += 1
        self._kept.append(value)
        if len(self._kept) >= _CUT:
            self._kept = self.found()

    def found(self) -> list[T]:
        return heapq.nsmallest(MOST_SHOWN, self._kept, key=self._key)


def _worst_first(held: Held) -> tuple[int, datetime, str]:
    host, certificate = held
    return certificate.health.rank, certificate.since or _FAR, host.name


def _soonest_first(held: Held) -> tuple[datetime, str]:
    host, certificate = held
    return certificate.not_after or _FAR, host.name


def _longest_first(host: IndexedHost) -> tuple[datetime, str]:
    return host.end_time or host.last_seen_time or _LONG_AGO, host.name


def _count_host(sums: FleetSums, host: IndexedHost) -> None:
    if host.kind is IdentityKind.SERVICE:
        sums.service_count += 1
        sums.connected_service_count += host.connected
        return
    sums.host_count += 1
    sums.connected_host_count += host.connected
    sums.versions[host.agent_version] += 1
