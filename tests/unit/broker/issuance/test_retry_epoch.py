"""The retry epoch: when it moves, and how often at most."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from certplane.broker.issuance.epoch import RetryEpoch
from certplane.broker.members.model import Member
from tests.fakes.clock import ManualClock
from tests.support.issuance import settle
from tests.support.memory_store import MemoryDatabase, MemoryStores


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def epoch(clock: ManualClock) -> RetryEpoch:
    numbers = itertools.count(1)
    return RetryEpoch(clock, lambda: f"epoch-{next(numbers)}")


def test_what_changes_again_and_again_moves_it_once_in_half_a_minute(clock: ManualClock, epoch: RetryEpoch) -> None:
    """A CA that comes and goes doesn't have every waiting host ask each time; the last change isn't forgotten."""
    clock.advance(timedelta(seconds=30))
    for _ in range(5):
        epoch.move("the CA answers again")
    assert epoch.current == "epoch-2"
    clock.advance(timedelta(seconds=29))
    assert epoch.current == "epoch-2"
    clock.advance(timedelta(seconds=1))
    assert epoch.current == "epoch-3"
    clock.advance(timedelta(hours=1))
    assert epoch.current == "epoch-3"


def test_a_person_is_not_made_to_wait(epoch: RetryEpoch) -> None:
    """What an operator asks for moves it at once, and takes what waited along."""
    epoch.move("the CA answers again")
    epoch.ask_again("the files were read again")
    assert epoch.current == "epoch-2"


def test_a_start_is_an_epoch_of_its_own(clock: ManualClock) -> None:
    """Two processes never have the same one."""
    numbers = itertools.count(1)
    assert (
        RetryEpoch(clock, lambda: f"{next(numbers)}").current != RetryEpoch(clock, lambda: f"{next(numbers)}").current
    )


class Fleet:
    """Brokers that share a database: each has an epoch that runs, and hears of the others when it is told to."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.database = MemoryDatabase(clock)
        self._numbers = itertools.count(1)
        self._running: list[asyncio.Task[None]] = []

    async def start(self) -> RetryEpoch:
        """Another broker: it shares the epoch, then joins."""
        stores = MemoryStores.over(self.database)
        epoch = RetryEpoch(self.clock, lambda: f"epoch-{next(self._numbers)}")
        await epoch.share(stores.retry_epoch)
        broker_id = stores.members.broker_id
        member = Member(broker_id, "machine", "[::]:8443", "1", self.clock.now(), "policy", "trust", "configuration")
        await stores.members.renew(member, timedelta(days=1))
        self._running.append(asyncio.create_task(epoch.run()))
        await settle(20)
        return epoch

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


@pytest_asyncio.fixture
async def fleet(clock: ManualClock) -> AsyncIterator[Fleet]:
    fleet = Fleet(clock)
    yield fleet
    await fleet.stop()


async def advance(clock: ManualClock, span: timedelta) -> None:
    clock.advance(span)
    await settle(20)


async def test_brokers_have_one_epoch(clock: ManualClock, fleet: Fleet) -> None:
    """One that starts among others takes theirs; what one moves, the others have once they have heard of it."""
    first = await fleet.start()
    second = await fleet.start()
    assert first.current == second.current
    before = first.current
    await advance(clock, timedelta(seconds=30))
    second.move("the CA answers again")
    await settle(20)
    assert second.current != before
    assert first.current == before
    await first.changed([""])
    assert first.current == second.current
    assert (await fleet.start()).current == second.current


async def test_the_half_minute_is_the_fleet_s(clock: ManualClock, fleet: Fleet) -> None:
    """Brokers that find out one after another have hosts ask at most twice in half a minute and its end."""
    first, second = await fleet.start(), await fleet.start()
    await advance(clock, timedelta(seconds=30))
    first.move("the CA answers again")
    await settle(20)
    await advance(clock, timedelta(seconds=10))
    moved = first.current
    second.move("the CA answers again")
    second.move("a secret has changed")
    await settle(20)
    assert second.current == moved
    await advance(clock, timedelta(seconds=19))
    assert second.current == moved
    await advance(clock, timedelta(seconds=1))
    assert second.current != moved
    latest = second.current
    await advance(clock, timedelta(hours=1))
    assert second.current == latest


async def test_a_move_of_another_broker_answers_what_came_up_before(clock: ManualClock, fleet: Fleet) -> None:
    """Hosts were told after both: no second move for the same."""
    first, second = await fleet.start(), await fleet.start()
    await advance(clock, timedelta(seconds=20))
    second.move("the CA answers again")  # ten seconds too early
    await settle(20)
    await advance(clock, timedelta(seconds=5))
    first.ask_again("an operator has reloaded")
    await settle(20)
    await advance(clock, timedelta(seconds=5))
    assert second.current == first.current
    await advance(clock, timedelta(minutes=2))
    await second.changed([""])
    assert second.current == first.current


async def test_a_person_is_not_made_to_wait_for_the_fleet_either(fleet: Fleet) -> None:
    """And what waited goes along."""
    first, second = await fleet.start(), await fleet.start()
    before = first.current
    second.move("the CA answers again")
    await settle(20)
    assert second.current == before
    second.ask_again("the files were read again")
    await settle(20)
    assert second.current != before
    await first.changed([""])
    assert first.current == second.current


async def test_a_store_that_is_away_keeps_the_epoch_and_the_reason(
    clock: ManualClock, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """What hosts are told is durable: others must be able to hear of it. It is said once."""
    epoch = await fleet.start()
    before = epoch.current
    await advance(clock, timedelta(seconds=30))
    fleet.database.down = True
    epoch.move("the CA answers again")
    for _ in range(3):
        await advance(clock, timedelta(seconds=1))
    assert epoch.current == before
    assert len([record for record in caplog.records if "could not tell" in record.message]) == 1
    fleet.database.down = False
    await advance(clock, timedelta(seconds=1))
    assert epoch.current != before


async def test_a_database_that_was_restored_gets_the_epoch_again(fleet: Fleet) -> None:
    """One of before there was any; a row of before is what all go by."""
    epoch = await fleet.start()
    fleet.database.forget("shared_values")
    await epoch.reread(fleet.clock.now())
    assert (await fleet.start()).current == epoch.current


async def test_the_only_broker_has_another_one_after_its_start(clock: ManualClock, fleet: Fleet) -> None:
    """Something may have been mended meanwhile."""
    before = (await fleet.start()).current
    await fleet.stop()
    clock.advance(timedelta(days=1))
    assert (await fleet.start()).current != before
