"""How much thread time a coroutine's own steps take, by a clock that its steps move."""

from __future__ import annotations

import asyncio

import pytest

from certplane.broker.identity.work import Work
from tests.fakes.clock import ManualClock
from tests.support.waiting import until


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_counts_its_own_steps_alone(clock: ManualClock) -> None:
    """What others do while it waits is theirs."""
    turn, asked = asyncio.Event(), asyncio.Event()

    async def steps() -> str:
        clock.worked += 1
        asked.set()
        await turn.wait()
        clock.worked += 2
        return "done"

    work: Work[str] = Work(clock.thread_time)
    work.steps = steps()

    async def measured() -> str:
        return await work

    task = asyncio.create_task(measured())
    await asked.wait()
    assert (work.since_asked(), work.since_asked()) == (1, 0)
    clock.worked += 100
    turn.set()
    assert await task == "done"
    assert (work.seconds, work.since_asked()) == (3, 2)


async def test_what_it_raises_is_counted_too(clock: ManualClock) -> None:
    """A step that ends in an error has cost what it has cost."""

    async def steps() -> None:
        clock.worked += 5
        raise LookupError("x")

    work: Work[None] = Work(clock.thread_time)
    work.steps = steps()
    with pytest.raises(LookupError, match="x"):
        await work
    assert work.seconds == 5


async def test_passes_on_errors_and_cancellation(clock: ManualClock) -> None:
    """The coroutine meets what it would meet without being measured, and may go on after it."""
    met: list[str] = []
    failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def steps() -> str:
        try:
            await failing
        except LookupError:
            met.append("error")
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            met.append("timeout")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            met.append("cancelled")
            raise
        return "never"

    work: Work[str] = Work(clock.thread_time)
    work.steps = steps()

    async def measured() -> str:
        return await work

    task = asyncio.create_task(measured())
    await asyncio.sleep(0)
    failing.set_exception(LookupError())
    await until(lambda: met == ["error", "timeout"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert met == ["error", "timeout", "cancelled"]
