"""What a watcher of the fleet is told, of its own broker's hosts and of those of others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from certplane.broker.fleet.elsewhere import BrokersElsewhere
from certplane.broker.fleet.watching import (
    CertificateChanged,
    CertificateRecorded,
    Change,
    FleetChanged,
    HostChanged,
    Watcher,
    Watchers,
)
from certplane.broker.members.known import KnownMembers
from certplane.broker.members.model import Member
from certplane.broker.ports import NullMeter
from certplane.fleet_report.model import CertificateState, CertificateStatus
from tests.fakes.clock import ManualClock
from tests.support.memory_store import MemoryStores

NOW = datetime(2026, 11, 28, tzinfo=UTC)
WEB = CertificateStatus("web", CertificateState.DUE)


@pytest.fixture
def watchers() -> Watchers:
    return Watchers(8, NullMeter())


async def told(watcher: Watcher) -> list[Change]:
    return [change for _ in range(len(watcher)) if (change := await watcher.next_change()) is not None]


async def test_what_another_broker_recorded_takes_the_place_of_what_is_known(watchers: Watchers) -> None:
    """Whatever was put for that certificate before: it is read when it is told; the host's name alone means any."""
    with watchers.watching(lambda host: host != "other.example") as watcher:
        watchers.certificate_changed("web1.example", WEB, NOW)
        watchers.recorded_elsewhere("web1.example", ["web", "mail"], NOW)
        watchers.recorded_elsewhere("web2.example", [], NOW)
        watchers.recorded_elsewhere("other.example", ["web"], NOW)
        assert await told(watcher) == [
            CertificateRecorded("web1.example", "web", NOW),
            CertificateRecorded("web1.example", "mail", NOW),
            HostChanged("web2.example", NOW),
        ]
        watchers.recorded_elsewhere("web1.example", ["web"], NOW)
        watchers.certificate_changed("web1.example", WEB, NOW)
        assert await told(watcher) == [CertificateChanged("web1.example", WEB, NOW)]


async def test_what_is_read_with_its_host_is_not_read_alone_too(watchers: Watchers) -> None:
    """A host that comes to another broker says all that it has: one reading, not one for each certificate."""
    with watchers.watching(lambda _: True) as watcher:
        watchers.host_changed("web1.example", NOW)
        watchers.recorded_elsewhere("web1.example", ["web", "mail"], NOW)
        assert await told(watcher) == [HostChanged("web1.example", NOW)]
        watchers.fleet_changed(NOW)
        watchers.recorded_elsewhere("web1.example", ["web"], NOW)
        assert await told(watcher) == [FleetChanged(NOW)]
        watchers.recorded_elsewhere("web1.example", ["web"], NOW)
        assert await told(watcher) == [CertificateRecorded("web1.example", "web", NOW)]


async def test_a_fleet_that_is_to_be_read_again_is_so_once(watchers: Watchers) -> None:
    """It stands for all that was not told yet, and what comes after it is told after it."""
    with watchers.watching(lambda host: host == "web1.example") as watcher:
        watchers.host_changed("web1.example", NOW)
        watchers.fleet_changed(NOW)
        watchers.fleet_changed(NOW)
        watchers.certificate_changed("web1.example", WEB, NOW)
        assert await told(watcher) == [FleetChanged(NOW), CertificateChanged("web1.example", WEB, NOW)]


async def test_the_fleet_is_read_again_when_a_broker_has_come_or_gone(watchers: Watchers) -> None:
    """The hosts of one that was killed are nowhere, and nobody else says so; a renewed lease is nothing new."""
    clock = ManualClock()
    mine = MemoryStores.open(clock)
    other = MemoryStores.over(mine.database)

    def of(stores: MemoryStores) -> Member:
        return Member(stores.members.broker_id, "machine", "[::]:8443", "1", clock.now(), "p", "t", "c")

    known = KnownMembers(mine.members, lambda: of(mine))
    BrokersElsewhere(known, watchers, clock)
    with watchers.watching(lambda _: True) as watcher:
        await other.members.renew(of(other), timedelta(seconds=20))
        await known.read()
        assert await told(watcher) == [FleetChanged(clock.now())]
        await other.members.renew(of(other), timedelta(seconds=20))
        await known.read()
        assert await told(watcher) == []
        clock.advance(timedelta(seconds=21))
        await known.read()
        assert await told(watcher) == [FleetChanged(clock.now())]
