"""The lease of a broker: kept, given up in time, and had again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from certplane.broker import metrics
from certplane.broker.members.membership import SPAN, Membership
from certplane.broker.members.model import Member
from certplane.errors import Reason, RefusalError
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.support.issuance import settle
from tests.support.memory_store import MemoryStores

SECOND = timedelta(seconds=1)
DOWN = RefusalError(Reason.STORE_UNAVAILABLE, "out of order")


class Broker:
    """One that has joined."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.stores = MemoryStores.open(self.clock)
        self.meter = FakeMeter()
        self.streams = 0
        self.membership = Membership(self.stores.members, self.me, self.clock, self.meter)

    def me(self) -> Member:
        return Member("", "machine", "[::]:8443", "1", self.clock.now(), "p", "t", "c", self.streams)

    async def living(self) -> list[Member]:
        return list(await self.stores.members.living())

    async def pass_time(self, span: timedelta) -> None:
        for _ in range(span // SECOND):
            self.clock.advance(SECOND)
            await settle(20)


@asynccontextmanager
async def running() -> AsyncIterator[Broker]:
    broker = Broker()
    await broker.membership.join()
    task = asyncio.create_task(broker.membership.run())
    await settle(20)
    yield broker
    task.cancel()
    await asyncio.wait({task})


async def test_a_lease_is_kept() -> None:
    """For as long as the broker runs; what it says of itself is renewed with it."""
    async with running() as broker:
        broker.streams = 3
        await broker.pass_time(10 * SPAN)
        assert broker.membership.stands()
        (member,) = await broker.living()
        assert member.stream_count == 3
        assert broker.meter.levels[metrics.LEASE] == 1


async def test_it_is_given_up_before_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    """While the database is away the broker counts for itself; the log says when it has lost it, and has it again."""
    async with running() as broker:
        broker.stores.database.faults.fail_always("renew", DOWN)
        await broker.pass_time(SPAN - 3 * SECOND)
        assert broker.membership.stands()
        await broker.pass_time(SECOND)
        assert not broker.membership.stands()
        assert len(await broker.living()) == 1, "it still has it in the database"
        await broker.pass_time(SPAN)
        assert broker.meter.levels[metrics.LEASE] == 0
        broker.stores.database.faults.heal()
        await broker.pass_time(6 * SECOND)
        assert broker.membership.stands()
    lines = [record.message for record in caplog.records]
    assert lines[0].startswith("this broker's lease could not be renewed")
    assert [line for line in lines if "has lost its lease" in line] == [lines[1]]
    assert lines[2:] == ["this broker has its lease again"]


async def test_a_machine_that_stood_still_has_lost_it() -> None:
    """Of a suspended machine the monotonic clock stands still too: the wall clock tells."""
    broker = Broker()
    await broker.membership.join()
    assert broker.membership.stands()
    broker.clock.jump(SPAN)
    assert not broker.membership.stands()


async def test_the_time_that_an_answer_takes_counts() -> None:
    """The lease may have begun when it was asked for."""
    broker = Broker()
    gate = broker.stores.database.faults.hold("renew")
    joining = asyncio.create_task(broker.membership.join())
    await settle(20)
    broker.clock.advance(SPAN)
    gate.set()
    await joining
    assert not broker.membership.stands()


async def test_a_lease_that_ended_unseen_is_another_term(caplog: pytest.LogCaptureFixture) -> None:
    """Ended and renewed between two looks of the broker's: others may have taken what it runs."""
    async with running() as broker:
        term = broker.membership.term
        await broker.pass_time(2 * SPAN)
        assert broker.membership.term == term
        broker.stores.database.forget("brokers")
        await broker.pass_time(5 * SECOND)
        assert broker.membership.stands()
        assert broker.membership.term > term
    assert [record.message for record in caplog.records] == [
        "this broker's lease had ended before it was renewed; what it ran is taken anew"
    ]


async def test_a_renewal_whose_answer_was_lost_hides_no_end() -> None:
    """The lease had ended, and what the next renewal finds is the lost one's."""
    async with running() as broker:
        term = broker.membership.term
        broker.stores.database.faults.fail_always("renew", DOWN)
        await broker.pass_time(SPAN + SECOND)
        await broker.stores.database.stores.members.renew(broker.me(), SPAN)
        broker.stores.database.faults.heal()
        await broker.pass_time(6 * SECOND)
        assert broker.membership.stands()
        assert broker.membership.term > term


async def test_a_renewal_that_is_durable_late_is_another_term() -> None:
    """The database found that the lease stood, and others saw it end before the commit of that came through."""
    async with running() as broker:
        term = broker.membership.term
        gate = broker.stores.database.faults.hold("renew")
        await broker.pass_time(SPAN - SECOND)
        assert not broker.membership.stands()
        gate.set()
        await settle(20)
        assert broker.membership.term > term


async def test_who_leaves_has_no_lease() -> None:
    """Neither in the database nor for itself; a database that is away only makes the others wait."""
    broker = Broker()
    await broker.membership.join()
    await broker.membership.leave()
    assert not broker.membership.stands()
    assert await broker.living() == []
    await broker.membership.join()
    broker.stores.database.faults.fail_always("leave", DOWN)
    await broker.membership.leave()
    assert not broker.membership.stands()
