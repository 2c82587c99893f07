"""Who waits for a place asks when there is one, the most urgent first, and nobody else meanwhile."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest

from certplane.broker.budget.model import BucketKey, Limit, LimitScope, Shortage, Urgency
from certplane.broker.issuance.place_queue import PlaceQueue
from tests.fakes.clock import ManualClock
from tests.support.issuance import settle

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
LIMIT = Limit("orders", LimitScope.ACCOUNT, 3, 3 * MINUTE)
KEY = BucketKey("https://ca.test", "ca", "orders", "")


class Line:
    """Orders of one bucket; `asked` are those that were let ask, in that order."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.queue = PlaceQueue(self.clock)
        self.asked: list[str] = []
        self.told: dict[str, Shortage] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def wait(self, order_id: str, rank: int, free: timedelta, *, ahead: int = 0) -> None:
        shortage = Shortage(LIMIT, KEY, "", self.clock.now() + free, ahead=ahead)
        urgency = Urgency(rank, datetime.fromisoformat("2026-01-01T00:00:00+00:00"), order_id)

        async def run() -> None:
            await self.queue.wait(shortage, urgency, lambda told: self.told.__setitem__(order_id, told))
            self.asked.append(order_id)

        self.tasks[order_id] = asyncio.create_task(run())
        await settle(20)

    async def pass_time(self, span: timedelta) -> None:
        for _ in range(6):
            self.clock.advance(span / 6)
            await settle(20)


@pytest.fixture
def line() -> Line:
    return Line()


async def test_one_asks_at_a_time(line: Line) -> None:
    """The most urgent, whoever came first; the next one an interval later. Each knows how many are ahead."""
    await line.wait("late", 2, MINUTE)
    await line.wait("soon", 1, MINUTE)
    await line.wait("last", 3, MINUTE)
    assert [line.told[each].ahead for each in ("late", "soon", "last")] == [0, 0, 2]
    assert line.told["last"].expected_time == line.clock.now() + 3 * MINUTE
    await line.pass_time(MINUTE)
    assert line.asked == ["soon"]
    await line.pass_time(MINUTE)
    assert line.asked == ["soon", "late"]
    await line.pass_time(MINUTE)
    assert line.asked == ["soon", "late", "last"]


async def test_several_places_are_asked_for_at_once(line: Line) -> None:
    """Who was given one tells when the next is there: now, perhaps."""
    for each in ("a", "b", "c"):
        await line.wait(each, 1, MINUTE)
    await line.pass_time(MINUTE)
    assert line.asked == ["a"]
    line.queue.learn({KEY: line.clock.now()})
    await settle(20)
    assert line.asked == ["a", "b"]


async def test_who_leaves_makes_nobody_wait_longer(line: Line) -> None:
    """An order that is stopped, the first one too: the next has its time."""
    for each in ("a", "b", "c", "d"):
        await line.wait(each, 1, MINUTE)
    for each in ("b", "c", "a"):
        line.tasks[each].cancel()
        await settle(20)
    await line.pass_time(MINUTE)
    assert line.asked == ["d"]


async def test_a_long_wait_is_asked_about_meanwhile(line: Line) -> None:
    """What was given back, or a clock that was set, is found out; once in an hour at most."""
    await line.wait("long", 1, 33 * HOUR)
    await line.pass_time(HOUR - MINUTE)
    assert line.asked == []
    await line.pass_time(MINUTE)
    assert line.asked == ["long"]


async def test_what_was_left_to_others_is_asked_for_again_soon(line: Line) -> None:
    """Within seconds: then it is taken, or anybody's."""
    await line.wait("polite", 1, timedelta(), ahead=1)
    assert (line.told["polite"].ahead, line.asked) == (1, [])
    line.clock.advance(timedelta(seconds=2))
    await settle(20)
    assert line.asked == ["polite"]
    assert not line.queue._lines


async def test_who_has_waited_longer_than_was_said_is_told_anew(line: Line) -> None:
    """More urgent ones have come between: what is told of it is never in the past."""
    await line.wait("late", 9, MINUTE)
    said = line.told["late"].expected_time
    for each in ("a", "b", "c"):
        await line.wait(each, 1, MINUTE)
    await line.pass_time(MINUTE)
    await line.pass_time(MINUTE)
    assert line.asked == ["a", "b"]
    assert line.clock.now() > said
    assert line.told["late"].expected_time == line.clock.now() + 2 * MINUTE
    assert line.told["late"].ahead == 1
