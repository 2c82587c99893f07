"""Lists of the fleet, a page at a time, from the index: which come next in an order, and how many there are in all.

A page begins behind a *place*, what the one before ended with, and not at a number: so whatever comes, goes or moves
meanwhile, nothing is shown twice that hasn't moved, and nothing is passed over. Only the few of a page are kept while
the fleet is gone through, in turns with everybody else; what is shown of them is read afterwards.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from operator import attrgetter
from typing import Final, NamedTuple

from certplane.broker.fleet.filter import IDENTITY, PickedAt, silent_since
from certplane.broker.fleet.index import FleetIndex, IndexedCertificate, IndexedHost
from certplane.broker.model import IdentityKind
from certplane.runtime.health import HealthWord

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_NEVER: Final = 1 << 62
"""Behind all times: of what has none."""
_BEFORE_ALL: Final = -1
_RANK: Final[Callable[[HealthWord], int]] = attrgetter("rank")
_END: Final[Callable[[IndexedCertificate], datetime | None]] = attrgetter("end")
_RENEW_TIME: Final[Callable[[IndexedCertificate], datetime | None]] = attrgetter("renew_time")
_SPARE: Final = 4096
"""More than a page that are kept before all but a page of them is dropped."""


class FleetOrder(Enum):
    """The order of a list; the proto file's words of this name."""

    NAME = "name"
    HEALTH = "health"
    EXPIRE_TIME = "expire_time"
    RENEW_TIME = "renew_time"
    LAST_SEEN_TIME = "last_seen_time"


class Place(NamedTuple):
    """Where something stands in an order: compared from the left."""

    first: int
    second: int
    host: str
    name: str = ""
    """Of the certificate, in a list of those."""


@dataclass(slots=True)
class HostsPage:
    """Hosts and services behind a place, in order, and the figures of all pages."""

    places: list[Place]
    host_count: int = 0
    connected_count: int = 0
    counts: Mapping[HealthWord, int] = field(default_factory=dict)


@dataclass(slots=True)
class CertificatesPage:
    """Certificates behind a place, in order, and how many there are on all pages."""

    places: list[Place]
    count: int = 0


class _Next:
    """The first so many places behind one."""

    def __init__(self, after: Place | None, most: int) -> None:
        self._after = after
        self._most = most
        self._found: list[Place] = []

    def add(self, place: Place) -> None:
        if self._after is None or place > self._after:
            self._found.append(place)
            if len(self._found) >= self._most + _SPARE:
                self._found = heapq.nsmallest(self._most, self._found)

    def places(self) -> list[Place]:
        return heapq.nsmallest(self._most, self._found)


async def hosts_page(
    index: FleetIndex, picked: PickedAt, order: FleetOrder, *, after: Place | None, most: int
) -> HostsPage:
    """The next `most` hosts and services, of those that are picked, and the figures of all."""
    following = _Next(after, most)
    page = HostsPage([])
    counts: Counter[HealthWord] = Counter()
    async for host in index.walk():
        certificates = picked.of(host)
        if certificates is None:
            continue
        page.host_count += 1
        page.connected_count += host.connected
        counts.update(each.health for each in certificates)
        following.add(host_place(host, certificates, order))
    page.places, page.counts = following.places(), counts
    return page


async def certificates_page(
    index: FleetIndex,
    picked: PickedAt,
    order: FleetOrder,
    *,
    after: Place | None,
    most: int,
    identities: bool,
) -> CertificatesPage:
    """The next `most` certificates, of those that are picked; the hosts' identities too, if wanted."""
    following = _Next(after, most)
    page = CertificatesPage([])
    async for host in index.walk():
        for each in picked.picked(host):
            if identities or each.name != IDENTITY:
                page.count += 1
                following.add(certificate_place(host, each, order))
    page.places = following.places()
    return page


def host_place(host: IndexedHost, certificates: Sequence[IndexedCertificate], order: FleetOrder) -> Place:
    """Where a host stands, by those of its certificates that are asked about.

    Identities don't count where times do: they end every day or so, and each host would stand where its identity does.
    """
    match order:
        case FleetOrder.NAME:
            return Place(0, 0, host.name)
        case FleetOrder.LAST_SEEN_TIME:
            return Place(_heard(host), 0, host.name)
        case FleetOrder.HEALTH:
            words = {each.health for each in certificates} or {host.health}
            return Place(min(map(_RANK, words)), _soonest(certificates, _END), host.name)
        case _:
            return Place(_soonest(certificates, _END if order is FleetOrder.EXPIRE_TIME else _RENEW_TIME), 0, host.name)


def certificate_place(host: IndexedHost, one: IndexedCertificate, order: FleetOrder) -> Place:
    """Where a certificate stands."""
    match order:
        case FleetOrder.NAME:
            return Place(0, 0, host.name, one.name)
        case FleetOrder.LAST_SEEN_TIME:
            return Place(_heard(host), 0, host.name, one.name)
        case FleetOrder.HEALTH:
            return Place(one.health.rank, _micros(one.end), host.name, one.name)
        case FleetOrder.EXPIRE_TIME:
            return Place(_micros(one.end), 0, host.name, one.name)
        case FleetOrder.RENEW_TIME:
            return Place(_micros(one.renew_time), 0, host.name, one.name)


def _soonest(certificates: Sequence[IndexedCertificate], time: Callable[[IndexedCertificate], datetime | None]) -> int:
    found: datetime | None = None
    for one in certificates:
        moment = time(one)
        if moment is not None and (found is None or moment < found) and one.name != IDENTITY:
            found = moment
    return _micros(found)


def _heard(host: IndexedHost) -> int:
    """When a host was heard last: who never came stands before all, who is there and who isn't to be heard behind."""
    if host.connected or host.kind is not IdentityKind.HOST:
        return _NEVER
    since = silent_since(host)
    return _BEFORE_ALL if since is None else _micros(since)


def _micros(time: datetime | None) -> int:
    return _NEVER if time is None else (time - _EPOCH) // _MICROSECOND
