"""Who does what is done once for all brokers: taken, kept, left to others, and had again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from prometheus_client import generate_latest

from certplane.broker import metrics
from certplane.broker.members.ports import LastingLease, Lease
from certplane.broker.members.roles import Roles, SoleRoleStore
from certplane.broker.telemetry import PrometheusMeter
from tests.fakes.clock import ManualClock
from tests.support.issuance import settle
from tests.support.memory_store import MemoryStores
from tests.support.stores import StoreHarness, StorePlace, member

SECOND = timedelta(seconds=1)
SPAN = timedelta(seconds=20)


class FakeLease(Lease):
    """`Lease` that a test takes and gives."""

    shared = True
    term = 0

    def __init__(self) -> None:
        self.lost = False

    def stands(self) -> bool:
        return not self.lost


class Broker:
    """One of several on one database, whose work is to be there."""

    def __init__(self, clock: ManualClock, stores: MemoryStores) -> None:
        self.clock = clock
        self.stores = stores
        self.lease = FakeLease()
        self.meter = PrometheusMeter()
        self.roles = Roles(stores.roles, self.lease, clock, self.meter)
        self.working: set[str] = set()
        self.bug: Exception | None = None
        for role in ("health", "upkeep"):
            self.roles.add(role, partial(self.work, role), [metrics.STORE_DAMAGED] * (role == "health"))

    async def work(self, role: str) -> None:
        self.working.add(role)
        try:
            while self.bug is None:
                await self.clock.sleep(SECOND)
            raise self.bug
        finally:
            self.working.discard(role)

    async def join(self, span: timedelta = SPAN) -> None:
        harness = StoreHarness(StorePlace("memory", Any), self.clock, self.stores)  # type: ignore[arg-type] # the harness is given its stores
        await self.stores.members.renew(member(harness), span)

    async def pass_time(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.clock.advance(SECOND)
            await settle(20)

    def shown(self) -> str:
        """What a scrape finds."""
        return generate_latest(self.meter.registry).decode()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.roles.run())
        await settle(20)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


@asynccontextmanager
async def two_brokers() -> AsyncIterator[tuple[Broker, Broker, AsyncExitStack]]:
    """Of which the first has all roles; leaving the stack stops it."""
    clock = ManualClock()
    database = MemoryStores.open(clock).database
    first, second = (Broker(clock, MemoryStores.over(database)) for _ in range(2))
    await first.join()
    await second.join()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(first.running())
        async with second.running():
            yield first, second, stack


async def test_one_does_it_for_all() -> None:
    """Whoever comes first, and for good: nothing is asked of the database any more."""
    async with two_brokers() as (first, second, _):
        commits = first.stores.database.commits
        await first.pass_time(30)
        assert first.working == {"health", "upkeep"}
        assert first.roles.holds("upkeep")
        assert second.working == set()
        assert not second.roles.holds("upkeep")
        assert first.stores.database.commits == commits


async def test_another_goes_on_after_a_stop() -> None:
    """Within a second of the news, in the same lease of the one that has stopped."""
    async with two_brokers() as (first, second, stack):
        await stack.aclose()
        assert first.working == set()
        await second.roles.changed(["broker"])
        await second.pass_time()
        assert second.working == {"health", "upkeep"}


async def test_another_goes_on_after_a_kill() -> None:
    """Once its lease has ended, as this broker has found itself or heard; others that come and go are no reason."""
    async with two_brokers() as (first, second, _):
        second.roles.heard(["first", "second"])
        second.roles.heard(["first", "second", "third"])
        commits = first.stores.database.commits
        await second.pass_time(5)
        assert first.stores.database.commits == commits
        await first.stores.members.leave()
        second.roles.heard(["second", "third"])
        await second.pass_time()
        assert second.working == {"health", "upkeep"}


async def test_a_broker_that_has_lost_its_lease_stops_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """What it held others may do; what none has taken it has again with its lease."""
    caplog.set_level(logging.INFO)
    async with two_brokers() as (first, second, _):
        first.lease.lost = True
        assert not first.roles.holds("upkeep")
        await first.stores.members.leave()
        await first.pass_time()
        assert first.working == set()
        await second.stores.roles.take(["upkeep"])
        await first.join()
        first.lease.lost, first.lease.term = False, 1
        await first.pass_time(2)
        assert first.working == {"health"}
        assert "this broker has the role health" in caplog.text


async def test_a_lease_that_ended_between_two_looks_is_another(caplog: pytest.LogCaptureFixture) -> None:
    """All that was taken under it is taken anew, and what another one has taken meanwhile is left."""
    async with two_brokers() as (first, second, _):
        await first.stores.members.leave()
        await second.stores.roles.take(["health"])
        await first.join()
        first.lease.term = 1
        assert not first.roles.holds("upkeep")
        await first.pass_time()
        assert first.working == {"upkeep"}


async def test_a_store_that_fails_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    """It is said once."""
    clock = ManualClock()
    broker = Broker(clock, MemoryStores.open(clock))
    await broker.join()
    broker.stores.database.down = True
    async with broker.running():
        await broker.pass_time(5)
        assert broker.working == set()
        broker.stores.database.down = False
        await broker.pass_time()
        assert broker.working == {"health", "upkeep"}
        said = [record for record in caplog.records if "could not look which roles" in record.message]
        assert len(said) == 1


async def test_a_bug_is_said_and_the_role_left_to_others(caplog: pytest.LogCaptureFixture) -> None:
    """The broker goes on, and doesn't take that role again."""
    async with two_brokers() as (first, second, _):
        first.bug = ValueError("a bug")
        await first.pass_time(2)
        assert first.working == set()
        assert "upkeep has ended unexpectedly; restart the broker" in caplog.text
        for broker in (first, second):
            await broker.roles.changed(["broker"])
        await first.pass_time(2)
        assert (first.working, second.working) == (set(), {"health", "upkeep"})


async def test_only_who_has_the_role_shows_its_figures() -> None:
    """Or a sum over all brokers would count them twice, and one that has lost it would show old ones for ever."""
    async with two_brokers() as (first, second, stack):
        assert "certplane_store_damaged 0.0" in first.shown()
        assert "certplane_store_damaged" not in second.shown()
        assert 'certplane_role_held{role="health"} 1.0' in first.shown()
        assert 'certplane_role_held{role="health"} 0.0' in second.shown()
        first.meter.level(metrics.STORE_DAMAGED, 1)
        await stack.aclose()
        assert "certplane_store_damaged" not in first.shown()
        await second.roles.reread(second.clock.now())
        await second.pass_time()
        assert "certplane_store_damaged 0.0" in second.shown()


def test_forgotten_labels_are_not_shown_again() -> None:
    """A gauge that is set again shows what was set since."""
    meter = PrometheusMeter()
    meter.level(metrics.CERTIFICATES, 4, state="INSTALLED")
    for _ in range(2):
        meter.forget(metrics.CERTIFICATES)
        assert b"certplane_host_certificates" not in generate_latest(meter.registry)
    meter.level(metrics.CERTIFICATES, 5, state="WAITING")
    shown = generate_latest(meter.registry).decode()
    assert 'certplane_host_certificates{state="WAITING"} 5.0' in shown
    assert "INSTALLED" not in shown


async def test_a_broker_that_has_its_database_alone_has_all_roles() -> None:
    """From the first moment on, and no row is written."""
    clock = ManualClock()
    roles = Roles(SoleRoleStore(), LastingLease(), clock, PrometheusMeter())
    roles.add("upkeep", lambda: clock.sleep(SECOND))
    task = asyncio.create_task(roles.run())
    await settle(20)
    assert roles.holds("upkeep")
    task.cancel()
    await asyncio.wait({task})
    assert not roles.holds("upkeep")
