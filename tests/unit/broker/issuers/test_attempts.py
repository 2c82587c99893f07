"""Deadlines and repeats."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from certplane.broker.issuers.attempts import Deadline, all_of, repeat
from certplane.broker.telling import telling
from certplane.errors import Reason, RefusalError
from certplane.runtime.backoff import Backoff
from tests.fakes.clock import ManualClock

BACKOFF = Backoff(first=timedelta(seconds=1), most=timedelta(seconds=4), floor=timedelta(seconds=1))
BUSY = RefusalError(Reason.ISSUER_UNAVAILABLE, "busy")


class Steps:
    """Fails as told, then succeeds; each try and when it was."""

    def __init__(self, clock: ManualClock, *failures: RefusalError) -> None:
        self.clock, self.failures, self.times = clock, list(failures), []

    async def __call__(self) -> str:
        self.times.append(self.clock.monotonic() - 1000)
        if self.failures:
            raise self.failures.pop(0)
        return "done"


async def run(clock: ManualClock, steps: Callable[[], Awaitable[str]], timeout: float, *, when: bool = True) -> str:
    call = asyncio.create_task(
        repeat(
            steps,
            deadline=Deadline.after(timedelta(seconds=timeout), clock),
            backoff=BACKOFF,
            rng=random.Random(1),
            on=RefusalError,
            when=lambda _: when,
        )
    )
    while not call.done():
        await asyncio.sleep(0)
        if clock.sleepers:
            clock.advance(timedelta(seconds=1))
    return await call


async def test_repeats_until_it_succeeds() -> None:
    """Waits grow between tries."""
    steps = Steps(ManualClock(), BUSY, BUSY)
    assert await run(steps.clock, steps, 60) == "done"
    assert len(steps.times) == 3
    assert steps.times[1] >= 1
    assert steps.times[2] - steps.times[1] >= 1


async def test_waits_as_long_as_it_is_told() -> None:
    """A failure's own wait counts more than the backoff's."""
    steps = Steps(ManualClock(), RefusalError(Reason.ISSUER_UNAVAILABLE, "x", retry_after=timedelta(seconds=30)))
    await run(steps.clock, steps, 60)
    assert steps.times == [0, 30]


async def test_a_wait_past_the_deadline_is_not_waited() -> None:
    """The last failure is raised at once when no other try would fit."""
    error = RefusalError(Reason.ISSUER_UNAVAILABLE, "x", retry_after=timedelta(seconds=60))
    steps = Steps(ManualClock(), error)
    with pytest.raises(RefusalError) as caught:
        await run(steps.clock, steps, 60)
    assert caught.value is error
    assert steps.clock.monotonic() == 1000


async def test_what_may_not_be_repeated_is_not() -> None:
    """One try, although there is time."""
    steps = Steps(ManualClock(), BUSY)
    with pytest.raises(RefusalError):
        await run(steps.clock, steps, 60, when=False)
    assert steps.times == [0]


async def test_other_errors_pass_through() -> None:
    """A fault of the program isn't repeated."""

    async def broken() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await repeat(
            broken,
            deadline=Deadline.after(timedelta(seconds=9), ManualClock()),
            backoff=BACKOFF,
            rng=random.Random(1),
            on=RefusalError,
            when=lambda _: True,
        )


async def test_a_try_that_the_deadline_cut_off_hides_no_cause() -> None:
    """The last failure with a cause is raised, not the time that ran out while it was asked again."""
    clock = ManualClock()
    told = iter(["the key is refused", "no answer in 1 s"])

    async def attempt() -> str:
        text = next(told)
        if text.startswith("no answer"):
            clock.advance(timedelta(seconds=60))
        raise RefusalError(Reason.DNS_UNAVAILABLE, text)

    with pytest.raises(RefusalError, match="the key is refused"):
        await run(clock, attempt, 30)


def test_deadline_goes_by_monotonic_time() -> None:
    """A step of the wall clock changes no deadline, and what is left is never negative."""
    clock = ManualClock()
    deadline = Deadline.after(timedelta(seconds=10), clock)
    clock.jump(timedelta(hours=1))
    assert deadline.left == timedelta(seconds=10)
    assert deadline.earlier(timedelta(seconds=3)).left == timedelta(seconds=3)
    assert deadline.earlier(timedelta(seconds=30)).left == timedelta(seconds=10)
    clock.advance(timedelta(seconds=11))
    assert deadline.left == timedelta()


async def test_all_of_keeps_order_and_raises_the_first_failure_bare() -> None:
    """Results come in the order of the calls; a failure cancels the rest and is not wrapped in a group."""

    async def give(value: int) -> int:
        await asyncio.sleep(0.001 * (3 - value))
        return value

    cancelled = asyncio.Event()

    async def wait() -> int:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 0

    async def fail() -> int:
        raise BUSY from KeyError("cause")

    assert await all_of(give(value) for value in range(3)) == [0, 1, 2]
    with pytest.raises(RefusalError) as caught:
        await all_of(call() for call in (wait, fail))
    assert caught.value is BUSY
    assert isinstance(caught.value.__cause__, KeyError)
    assert cancelled.is_set()


async def test_whoever_waits_is_told_what_is_repeated() -> None:
    """With each try that fails and may be followed by another; a failure that ends the call is its answer."""
    heard: list[str] = []
    steps = Steps(ManualClock(), BUSY, BUSY)
    with telling(heard.append):
        await run(steps.clock, steps, 60)
        with pytest.raises(RefusalError):
            await run(steps.clock, Steps(steps.clock, BUSY), 60, when=False)
    assert heard == ["ISSUER_UNAVAILABLE: busy"] * 2
