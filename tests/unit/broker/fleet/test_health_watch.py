"""The health of the whole fleet: its figures, and who is told when time alone changes a certificate's health."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.fleet.health import FLEET_WORDS, HostKnowledge, certificate_health
from certplane.broker.fleet.health_watch import HealthWatch
from certplane.broker.fleet.model import HostRecord
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.fleet.watching import CertificateRecorded, HostChanged, Watchers
from certplane.broker.model import Profile
from certplane.broker.ports import NullMeter
from certplane.broker.telemetry import PrometheusMeter
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate
from certplane.runtime.health import Health
from tests.fakes.clock import ManualClock
from tests.fakes.policy import FakePolicy, FakePolicySource

SECOND = timedelta(seconds=1)


class View:
    """A fleet of certificates, each of a host of its own that is down."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.statuses: dict[str, CertificateStatus] = {}
        self.fault: Exception | None = None
        self.slow = timedelta()
        self.looks = 0
        self.read: list[str] = []

    async def records(self, hosts: Sequence[str]) -> Sequence[HostRecord]:
        self.read += hosts
        if self.fault is not None:
            raise self.fault
        return [HostRecord(host, None, (self.statuses[host],)) for host in hosts]

    def is_connected(self, record: HostRecord) -> bool:
        return False

    async def survey(self) -> AsyncIterator[tuple[HostRecord, Sequence[Health]]]:
        self.looks += 1
        if self.fault is not None:
            raise self.fault
        await self.clock.sleep(self.slow)
        for host, status in self.statuses.items():
            health = certificate_health(status, HostKnowledge(heard=False), self.clock.now())
            yield HostRecord(host, None, (status,)), [health]


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.view = View(self.clock)
        self.watchers = Watchers(1, NullMeter())
        self.meter = PrometheusMeter()
        self.policy = FakePolicySource(
            FakePolicy.of(profiles=[Profile(name, "multi_san", (f"{name}.example",), "h") for name in ("web", "mail")])
        )
        self.watch = HealthWatch(
            view=self.view,  # type: ignore[arg-type]  # a fake
            watchers=self.watchers,
            policy=self.policy,
            clock=self.clock,
            meter=self.meter,
            settings=StreamSettings(),
        )

    def holds(self, host: str, left: timedelta, **fields: Any) -> CertificateStatus:
        """A host's certificate that ends after `left` from now."""
        now = self.clock.now()
        held = HeldCertificate("2", now - timedelta(days=90), now + left, "certificate-2", 2)
        status = CertificateStatus("web", CertificateState.WAITING, **{"profile": "web", "installed": held, **fields})
        self.view.statuses[host] = status
        return status

    @property
    def counts(self) -> dict[str, float]:
        """How many certificates of each health, those with none left out."""
        values = {
            word: self.meter.registry.get_sample_value("certplane_fleet_certificates", {"health": word})
            for word in FLEET_WORDS
        }
        assert None not in values.values()
        return {word: value for word, value in values.items() if value}

    def soonest(self, name: str) -> float | None:
        metric = "certplane_fleet_soonest_not_after_timestamp_seconds"
        return self.meter.registry.get_sample_value(metric, {"profile": name})

    async def pass_time(self, span: timedelta) -> None:
        while span > timedelta():
            self.clock.advance(min(SECOND, span))
            span -= SECOND
            await settled()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def running(world: World, *, leading: bool = True) -> AsyncIterator[None]:
    works = (world.watch.lead(), world.watch.run()) if leading else (world.watch.run(),)
    tasks = [asyncio.create_task(work) for work in works]
    await settled()
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.fixture
def world() -> World:
    return World()


async def test_every_word_is_counted_and_the_soonest_end_of_each_profile_is_told(world: World) -> None:
    """Words without a certificate are zero; a profile that policy doesn't have is a host's word, and no label."""
    world.holds("a", timedelta(days=80))
    world.holds("b", timedelta(days=50))
    world.holds("c", timedelta(hours=-1), profile="mail")
    world.holds("d", timedelta(days=80), profile="invented")
    async with running(world):
        assert world.counts == {"OK": 3, "EXPIRED": 1}
        assert world.soonest("web") == (world.clock.now() + timedelta(days=50)).timestamp()
        assert world.soonest("mail") == (world.clock.now() - timedelta(hours=1)).timestamp()
        assert world.soonest("invented") is None
        del world.view.statuses["c"]
        await world.pass_time(timedelta(minutes=2))
        assert world.counts == {"OK": 3}
        assert world.soonest("mail") == math.inf


async def test_watchers_are_told_when_time_changes_a_health(world: World) -> None:
    """Within a second of the end, once for a host, though it reports nothing; also of what it reported since the look."""
    world.holds("soon", timedelta(seconds=30))
    world.holds("later", timedelta(days=50))
    with world.watchers.watching(lambda _host: True) as watcher:
        async with running(world):
            status = world.holds("reported", timedelta(seconds=40))
            world.watchers.certificate_changed("reported", status, world.clock.now())
            await watcher.next_change()
            await world.pass_time(29 * SECOND)
            assert len(watcher) == 0
            await world.pass_time(2 * SECOND)
            change = await watcher.next_change()
            assert isinstance(change, HostChanged)
            assert change.host == "soon"
            await world.pass_time(10 * SECOND)
            change = await watcher.next_change()
            assert isinstance(change, HostChanged)
            assert change.host == "reported"
            await world.pass_time(timedelta(minutes=5))
            assert len(watcher) == 0
            assert world.counts == {"OK": 1, "EXPIRED": 2}


@pytest.mark.parametrize(
    "fault", [RefusalError(Reason.STORE_UNAVAILABLE, "no disk"), ValueError("a newer release's row")]
)
async def test_a_fault_is_said_once_and_tried_again(
    world: World, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The figures come back by themselves."""
    world.view.fault = fault
    world.holds("a", timedelta(days=80))
    async with running(world):
        await world.pass_time(timedelta(minutes=3))
        assert len([line for line in caplog.records if "health of the fleet" in line.message]) == 1
        world.view.fault = None
        await world.pass_time(timedelta(minutes=2))
        assert world.counts == {"OK": 1}


async def test_a_broker_that_does_not_lead_reads_the_fleet_for_its_watchers_alone(world: World) -> None:
    """It shows no figures; who comes to watch hears of what time changes from that moment on."""
    world.holds("first", 20 * SECOND)
    world.holds("second", 40 * SECOND)
    async with running(world, leading=False):
        await world.pass_time(timedelta(minutes=5))
        assert world.view.looks == 0
        world.holds("first", timedelta())
        world.holds("second", 30 * SECOND)
        with world.watchers.watching(lambda _host: True) as watcher:
            await world.pass_time(29 * SECOND)
            assert world.view.looks == 1
            assert len(watcher) == 0
            await world.pass_time(2 * SECOND)
            change = await watcher.next_change()
            assert isinstance(change, HostChanged)
            assert change.host == "second"
        await world.pass_time(timedelta(minutes=5))
        assert world.view.looks == 1
        assert world.meter.registry.get_sample_value("certplane_fleet_certificates", {"health": "OK"}) is None


@pytest.mark.parametrize("leading", [True, False])
async def test_what_hosts_report_to_other_brokers_is_heard_of(world: World, leading: bool) -> None:
    """A certificate that ends before the next round is told in time; whoever begins to watch before is told too."""
    async with running(world, leading=leading):
        if not leading:
            world.watchers.recorded_elsewhere("web9", ["web"], world.clock.now())  # nobody is told of this one
        with contextlib.nullcontext() if leading else world.watchers.watching(lambda _: True):
            await world.pass_time(5 * SECOND)
            world.holds("web1", 20 * SECOND)
            world.watchers.recorded_elsewhere("web1", ["web"], world.clock.now())
            await world.pass_time(10 * SECOND)
            assert world.view.read == ([] if leading else ["web1"])
        with world.watchers.watching(lambda _: True) as watcher:
            world.view.fault = RefusalError(Reason.STORE_UNAVAILABLE, "no database")
            world.watchers.recorded_elsewhere("web1", ["web"], world.clock.now())
            await world.pass_time(2 * SECOND)
            world.view.fault = None
            assert isinstance(await watcher.next_change(), CertificateRecorded)
            await world.pass_time(7 * SECOND)
            assert not len(watcher)
            await world.pass_time(2 * SECOND)
            assert await watcher.next_change() == HostChanged("web1", world.clock.now() - SECOND)
        assert world.view.looks == 1


async def test_what_time_changes_while_the_fleet_is_read_is_told_too(world: World) -> None:
    """A reading takes seconds in a large fleet, and it may begin some time after the watcher came."""
    world.view.slow = 10 * SECOND
    async with running(world, leading=False):
        world.holds("host", 3 * SECOND)
        with world.watchers.watching(lambda _host: True) as watcher:
            await world.pass_time(13 * SECOND)
            assert isinstance(await watcher.next_change(), HostChanged)
            assert len(watcher) == 0


async def test_who_has_lost_the_lead_shows_nothing_more(world: World) -> None:
    """Also when it was reading at that moment; whoever has it next shows what it has read itself."""
    world.holds("host", timedelta(days=80))
    world.view.slow = 10 * SECOND
    leading = asyncio.create_task(world.watch.lead())
    async with running(world, leading=False):
        leading.cancel()
        await world.pass_time(20 * SECOND)
        assert world.meter.registry.get_sample_value("certplane_fleet_certificates", {"health": "OK"}) is None
        again = asyncio.create_task(world.watch.lead())
        await world.pass_time(timedelta(minutes=5))
        assert world.counts == {"OK": 1}
        again.cancel()
        await asyncio.wait({again})


async def test_a_fleet_that_takes_long_to_read_is_read_less_often(world: World) -> None:
    """A twentieth of the time at most goes into it."""
    world.view.slow = 30 * SECOND
    async with running(world):
        await world.pass_time(timedelta(minutes=42))
        assert world.view.looks in (4, 5)
