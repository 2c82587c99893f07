"""Pages of the fleet: each order, what stands where, and that ten thousand hosts come each once whatever moves."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import pytest

from certplane.broker.fleet.filter import FleetFilter
from certplane.broker.fleet.index import FleetIndex, IndexedCertificate, IndexedHost
from certplane.broker.fleet.pages import FleetOrder, Place, certificates_page, hosts_page
from certplane.broker.model import IdentityKind
from certplane.fleet_report.model import CertificateState
from certplane.runtime.health import HealthWord

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
DAY = timedelta(days=1)
EVERYTHING = FleetFilter().at(NOW)


class Fleet:
    """An index of these hosts."""

    def __init__(self, hosts: Iterable[IndexedHost]) -> None:
        self.hosts = {host.name: host for host in hosts}

    async def walk(self) -> AsyncIterator[IndexedHost]:
        for host in sorted(self.hosts.values(), key=lambda each: each.name):
            yield host

    @property
    def index(self) -> FleetIndex:
        return cast("FleetIndex", self)


def certificate(name: str = "web", days: float | None = 30, **fields: Any) -> IndexedCertificate:
    """One that ends in so many days, and is renewed at two thirds of them."""
    ends = None if days is None else NOW + days * DAY
    renews = None if days is None else NOW + days * DAY * 2 / 3
    values = {"profile": name, "state": CertificateState.WAITING, "not_after": ends, "renew_time": renews}
    return IndexedCertificate(name=name, **{**values, **fields})


def host(name: str, *certificates: IndexedCertificate, **fields: Any) -> IndexedHost:
    return IndexedHost(name, certificates=certificates, **fields)


IDENTITY = certificate("identity", 0.5)
SMALL = Fleet(
    [
        host("a", IDENTITY, certificate(days=40), last_seen_time=NOW - DAY, end_time=NOW - DAY),
        host("b", IDENTITY, certificate(days=5), certificate("mail", 90), connected=True, last_seen_time=NOW - 9 * DAY),
        host("c", certificate(days=60, health=HealthWord.EXPIRED), last_seen_time=NOW - 3 * DAY),
        host("d", certificate(days=70, health=HealthWord.EXPIRED, renew_time=NOW), last_seen_time=NOW - 2 * DAY),
        host("e"),
        host("s", certificate("id-7", 20), kind=IdentityKind.SERVICE),
    ]
)


async def hosts_in(fleet: Fleet, order: FleetOrder, size: int, wanted: FleetFilter = FleetFilter()) -> list[str]:  # noqa: B008 - frozen
    """The names of all pages."""
    names: list[str] = []
    after: Place | None = None
    while True:
        page = await hosts_page(fleet.index, wanted.at(NOW), order, after=after, most=size)
        if not page.places:
            return names
        names += [place.host for place in page.places]
        after = page.places[-1]


@pytest.mark.parametrize("size", [1, 2, 50])
@pytest.mark.parametrize(
    ("order", "names"),
    [
        (FleetOrder.NAME, "abcdes"),
        (FleetOrder.HEALTH, "cdbsae"),
        (FleetOrder.EXPIRE_TIME, "bsacde"),
        (FleetOrder.RENEW_TIME, "dbsace"),
        (FleetOrder.LAST_SEEN_TIME, "ecdabs"),
    ],
    ids=lambda value: value.value if isinstance(value, FleetOrder) else "",
)
async def test_each_order_of_hosts(order: FleetOrder, names: str, size: int) -> None:
    """Identities decide nothing where times do; who has no time, or isn't to be heard, stands last."""
    assert await hosts_in(SMALL, order, size) == [*names]


async def test_totals_are_of_all_pages_and_of_what_is_picked() -> None:
    """Of hosts, of those that are connected, and of certificates by health."""
    page = await hosts_page(SMALL.index, EVERYTHING, FleetOrder.NAME, after=Place(0, 0, "c"), most=1)
    assert [place.host for place in page.places] == ["d"]
    assert (page.host_count, page.connected_count) == (6, 1)
    assert page.counts == {HealthWord.OK: 6, HealthWord.EXPIRED: 2}
    wanted = FleetFilter(expiring_within=10 * DAY)
    page = await hosts_page(SMALL.index, wanted.at(NOW), FleetOrder.NAME, after=None, most=9)
    assert (page.host_count, page.counts) == (1, {HealthWord.OK: 1})


async def test_an_order_is_by_what_is_picked() -> None:
    """Of the certificates that a filter is about: a host stands where those do."""
    wanted = FleetFilter(profiles=frozenset({"mail", "web"}), healths=frozenset({HealthWord.OK}))
    assert await hosts_in(SMALL, FleetOrder.EXPIRE_TIME, 1, wanted) == ["b", "a"]
    mail = FleetFilter(profiles=frozenset({"mail", "id-7"}))
    assert await hosts_in(SMALL, FleetOrder.EXPIRE_TIME, 1, mail) == ["s", "b"]


async def test_certificates_in_an_order() -> None:
    """Each by itself, with its host; identities where they are wanted."""
    page = await certificates_page(
        SMALL.index, EVERYTHING, FleetOrder.EXPIRE_TIME, after=None, most=3, identities=False
    )
    assert [(place.host, place.name) for place in page.places] == [("b", "web"), ("s", "id-7"), ("a", "web")]
    assert page.count == 6
    page = await certificates_page(SMALL.index, EVERYTHING, FleetOrder.NAME, after=None, most=9, identities=True)
    assert [f"{place.host}/{place.name}" for place in page.places][:3] == ["a/identity", "a/web", "b/identity"]
    assert page.count == 8


@pytest.mark.parametrize("order", [FleetOrder.HEALTH, FleetOrder.EXPIRE_TIME])
async def test_ten_thousand_hosts_come_each_once_though_some_move(order: FleetOrder) -> None:
    """Whoever hasn't moved is shown once, whatever goes, comes or moves between two pages."""
    rng = random.Random(7)
    words = list(HealthWord)
    fleet = Fleet(
        host(f"h{number:05d}", *(certificate(f"c{n}", rng.random() * 90, health=rng.choice(words)) for n in range(4)))
        for number in range(10_000)
    )
    still = set(fleet.hosts)
    seen: list[str] = []
    after: Place | None = None
    while True:
        page = await hosts_page(fleet.index, EVERYTHING, order, after=after, most=2_500)
        if not page.places:
            break
        seen += [place.host for place in page.places]
        after = page.places[-1]
        for name in rng.sample(sorted(fleet.hosts), 200):
            still.discard(name)
            known = fleet.hosts.pop(name)
            if rng.random() < 0.5:
                moved = [msgspec.structs.replace(each, health=rng.choice(words)) for each in known.certificates]
                fleet.hosts[name] = replace(known, certificates=tuple(moved))
            fleet.hosts[f"new-{name}"] = replace(known, name=f"new-{name}")
    assert still <= set(seen)
    assert len([name for name in seen if name in still]) == len(still)
