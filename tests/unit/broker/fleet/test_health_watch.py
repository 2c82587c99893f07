"""The figures of the whole fleet, by the one broker that tells them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from certplane.broker.fleet.health_watch import HealthWatch
from certplane.broker.fleet.index import FleetIndex
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.telemetry import PrometheusMeter
from certplane.errors import Reason, RefusalError
from certplane.runtime.health import HealthWord
from tests.support.fleet_index import DAY, HOUR, SECOND, SERVICE, IndexWorld, policy_of
from tests.support.stores import StoreHarness, StorePlace


class World(IndexWorld):
    def __init__(self) -> None:
        super().__init__()
        self.policy.policy = policy_of("a", "b", "c", "d", profiles=("web", "mail"))
        self.meter = PrometheusMeter()
        self.watch = HealthWatch(
            index=self.index, policy=self.policy, clock=self.clock, meter=self.meter, settings=StreamSettings()
        )

    @property
    def shown(self) -> dict[str, float]:
        """How many certificates of each health, those with none left out."""
        values = {word: self.value("certplane_fleet_certificates", health=word.value) for word in HealthWord}
        return {word.value: value for word, value in values.items() if value}

    def value(self, metric: str, **labels: str) -> float | None:
        return self.meter.registry.get_sample_value(metric, labels)

    def soonest(self, profile: str) -> float | None:
        return self.value("certplane_fleet_soonest_not_after_timestamp_seconds", profile=profile)

    async def wait(self, minutes: int) -> None:
        for _ in range(minutes * 4):
            self.clock.advance(15 * SECOND)
            for _ in range(20):
                await asyncio.sleep(0)


@asynccontextmanager
async def leading(world: World) -> AsyncIterator[None]:
    works = [asyncio.create_task(work) for work in (world.index.run(), world.watch.lead())]
    for _ in range(50):
        await asyncio.sleep(0)
    try:
        yield
        assert not any(work.done() for work in works)
    finally:
        for work in works:
            work.cancel()
        await asyncio.wait(works)


@pytest.fixture
def world() -> World:
    return World()


async def test_every_word_is_counted_and_the_soonest_end_of_each_profile_is_told(world: World) -> None:
    """Words without a certificate are zero; a profile that policy doesn't have is a host's word, and no label."""
    await world.record("a", world.status(left=80 * DAY))
    await world.record("b", world.status(left=50 * DAY))
    await world.record("c", world.status("mail", left=-HOUR))
    await world.record("d", world.status("invented", dns_names=()))
    async with leading(world):
        assert world.value("certplane_fleet_certificates", health="STALE_SERVED") == 0
        assert world.shown == {"OK": 3, "EXPIRED": 1}
        assert world.soonest("web") == (world.clock.now() + 50 * DAY).timestamp()
        assert world.soonest("mail") == (world.clock.now() - HOUR).timestamp()
        assert world.soonest("invented") is None
        assert [world.value("certplane_hosts", link=link) for link in ("up", "down", "never")] == [0, 4, 0]
        world.watchers.certificate_removed("c", "mail", world.clock.now())
        await world.wait(2)
        assert world.shown == {"OK": 3}
        assert world.soonest("mail") == math.inf
        await world.wait(5)
        assert world.shown == {"UNHEARD": 3}


@pytest.mark.parametrize("fault", [RefusalError(Reason.STORE_UNAVAILABLE, "no disk"), ValueError("a bug")])
async def test_a_fault_is_said_once_and_tried_again(
    world: World, fault: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures come back by themselves."""
    await world.record("a", world.status())

    def fail(_index: FleetIndex) -> None:
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(type(world.index), "walk", fail)
        async with leading(world):
            await world.wait(2)
            assert len([line for line in caplog.records if "health of the fleet" in line.message]) == 1
            patched.undo()
            await world.wait(2)
            assert world.shown == {"OK": 1}


async def test_who_has_lost_the_lead_shows_nothing_more(world: World) -> None:
    """What changes then is another's to show."""
    async with leading(world):
        assert world.shown == {}
    world.report("a", world.status())
    await world.wait(5)
    assert world.shown == {}
    async with leading(world):
        assert world.shown == {"OK": 1}


async def test_a_fleet_that_takes_long_to_count_is_counted_less_often(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A twentieth of the time at most goes into it."""
    walk, walks = type(world.index).walk, 0

    async def slowly(index: FleetIndex) -> AsyncIterator[object]:
        nonlocal walks
        walks += 1
        await world.clock.sleep(30 * SECOND)
        async for host in walk(index):  # type: ignore[arg-type]  # it is one of these
            yield host

    await world.index.settled()
    monkeypatch.setattr(type(world.index), "walk", slowly)
    counting = asyncio.create_task(world.watch.lead())
    await world.wait(42)
    assert walks in (4, 5)
    counting.cancel()
    await asyncio.wait({counting})


async def test_what_a_service_has_replaced_is_no_profiles_soonest_end() -> None:
    """Else the alert for what is about to end would come for each service that renews as it should."""
    world = World()
    harness = StoreHarness(StorePlace("memory", None), world.clock, world.stores)  # type: ignore[arg-type]  # no path
    async with leading(world):
        first = await harness.issue(identity=SERVICE, profile="web", lasts=DAY)
        await world.wait(2)
        assert world.soonest("web") == first.not_after.timestamp()
        second = await harness.issue(identity=SERVICE, profile="web", lasts=90 * DAY)
        await world.wait(2)
        assert world.soonest("web") == second.not_after.timestamp()
        ending = "certplane_fleet_certificates_ending"
        assert world.value(ending, profile="web", days="30") == 0
