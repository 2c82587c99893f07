"""Wishes of one place at one time are one call, and each wisher's end is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.batching import Batches, BatchTimes
from certplane.errors import Reason, RefusalError
from tests.fakes.clock import ManualClock
from tests.support.waiting import HANG

Made = Batches[str, str, str]

AT_ONCE = BatchTimes(least=timedelta())


class Api:
    """What is sent, and what each wish gets: itself in capitals, unless `answer` says otherwise."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.answer: Callable[[str], str | RefusalError] = str.upper
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, key: str, wishes: Sequence[str], deadline: Deadline) -> Sequence[str | RefusalError]:
        self.calls.append((key, list(wishes)))
        await self.open.wait()
        return [self.answer(wish) for wish in wishes]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def made(api: Api, clock: ManualClock) -> Made:
    return Batches(api.send, clock, most=4, times=AT_ONCE)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def asked(
    made: Made, clock: ManualClock, *wishes: str, key: str = "zone", urgent: bool = True
) -> list[asyncio.Task[str]]:
    deadline = Deadline.after(timedelta(minutes=1), clock)
    return [asyncio.create_task(made.submit(key, wish, deadline, urgent=urgent)) for wish in wishes]


async def test_lone_order_waits_for_nobody(api: Api, made: Made, clock: ManualClock) -> None:
    """Two names, written and later removed, are two calls, each at once."""
    assert await asyncio.gather(*asked(made, clock, "a", "b")) == ["A", "B"]
    assert await asyncio.gather(*asked(made, clock, "c", "d", urgent=False)) == ["C", "D"]
    assert api.calls == [("zone", ["a", "b"]), ("zone", ["c", "d"])]


async def test_gathers_while_a_call_is_under_way(api: Api, made: Made, clock: ManualClock) -> None:
    """One call at a time for a place; what comes meanwhile goes with the next; other places aren't held up."""
    api.open.clear()
    tasks = asked(made, clock, "a")
    await turns()
    tasks += asked(made, clock, "b") + asked(made, clock, "c") + asked(made, clock, "x", key="other")
    await turns()
    assert api.calls == [("zone", ["a"]), ("other", ["x"])]
    api.open.set()
    await asyncio.gather(*tasks)
    assert api.calls[2:] == [("zone", ["b", "c"])]


async def test_full_batches_go_at_once(api: Api, made: Made, clock: ManualClock) -> None:
    """Nobody waits for company that there would be no room for."""
    assert len(await asyncio.gather(*asked(made, clock, *map(str, range(12))))) == 12
    assert [len(wishes) for _, wishes in api.calls] == [4, 4, 4]


async def test_waits_for_company(api: Api, clock: ManualClock) -> None:
    """Where there is company urgent wishes wait for a moment, others for longer unless an urgent one takes them along."""
    made: Made = Batches(api.send, clock, most=99, times=replace(AT_ONCE, company=3))
    await asyncio.gather(*asked(made, clock, "a", "b"))
    tasks = asked(made, clock, "lazy", urgent=False)
    await turns()
    clock.advance(timedelta(seconds=3.9))
    await turns()
    assert len(api.calls) == 1
    tasks += asked(made, clock, "urgent")
    await turns()
    assert len(api.calls) == 1
    clock.advance(timedelta(seconds=0.2))
    await turns()
    assert api.calls[1:] == [("zone", ["lazy", "urgent"])]
    await asyncio.gather(*tasks)
    tasks = asked(made, clock, "soon")
    await turns()
    clock.advance(timedelta(seconds=1))
    await asyncio.gather(*tasks)
    clock.advance(timedelta(seconds=60))
    await asyncio.gather(*asked(made, clock, "alone again"))
    assert api.calls[-1] == ("zone", ["alone again"])


async def test_each_has_its_own_end(api: Api, made: Made, clock: ManualClock) -> None:
    """One that is refused fails for itself."""
    api.answer = lambda wish: RefusalError(Reason.DNS_REJECTED, "bad") if wish == "bad" else wish.upper()
    results = await asyncio.gather(*asked(made, clock, "a", "bad", "c"), return_exceptions=True)
    assert (results[0], results[2]) == ("A", "C")
    assert isinstance(results[1], RefusalError)


@pytest.mark.parametrize("failure", [RefusalError(Reason.DNS_UNAVAILABLE, "away"), KeyError("a fault")])
async def test_failure_of_a_call_is_everybodys(api: Api, made: Made, clock: ManualClock, failure: Exception) -> None:
    """All that were in the call hear of it, and the next call is a new one."""

    def fail(_: str) -> str:
        raise failure

    api.answer = fail
    for result in await asyncio.gather(*asked(made, clock, "a", "b"), return_exceptions=True):
        assert isinstance(result, type(failure))
    api.answer = str.upper
    assert await asyncio.gather(*asked(made, clock, "c")) == ["C"]


async def test_short_answer(api: Api, made: Made, clock: ManualClock) -> None:
    """A wish that the answer leaves out is not taken for granted."""

    async def send(key: str, wishes: Sequence[str], deadline: Deadline) -> Sequence[str | RefusalError]:
        return ["A"]

    made = Batches(send, clock, most=4, times=AT_ONCE)
    first, second = await asyncio.gather(*asked(made, clock, "a", "b"), return_exceptions=True)
    assert first == "A"
    assert isinstance(second, RefusalError)


async def test_who_has_gone_is_left_out(api: Api, made: Made, clock: ManualClock) -> None:
    """A wish whose caller was cancelled before the call isn't sent; one in a call under way disturbs nobody."""
    api.open.clear()
    first = asked(made, clock, "a", "b")
    await turns()
    gone = asked(made, clock, "gone")
    await turns()
    for task in (gone[0], first[0]):
        task.cancel()
    await turns()
    api.open.set()
    assert await first[1] == "B"
    assert await asyncio.gather(*asked(made, clock, "c")) == ["C"]
    assert [wishes for _, wishes in api.calls] == [["a", "b"], ["c"]]


async def test_closing_ends_everybodys_wait(api: Api, made: Made, clock: ManualClock) -> None:
    """Neither those in a call nor those before one wait for ever."""
    api.open.clear()
    tasks = asked(made, clock, "a")
    await turns()
    tasks += asked(made, clock, "b")
    await turns()
    await made.close()
    await asyncio.wait(tasks, timeout=HANG)
    assert all(task.cancelled() for task in tasks)
