"""A budget never exceeds its limit in any span; a breaker keeps quiet and tries again by itself."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.account_limits import CallBudget, CircuitBreaker
from certplane.errors import Reason, RefusalError
from tests.fakes.clock import ManualClock

MINUTES = timedelta(minutes=5)


def unavailable(retry_after: timedelta | None = None) -> RefusalError:
    return RefusalError(Reason.DNS_UNAVAILABLE, "broken", retry_after=retry_after)


def failing(breaker: CircuitBreaker, error: BaseException) -> None:
    with pytest.raises(type(error)), breaker.call():
        raise error


def wait_of(breaker: CircuitBreaker) -> float | None:
    """Seconds until the breaker lets a call through; None if it does now."""
    try:
        breaker.check()
    except RefusalError as error:
        return (error.refusal.retry_after or timedelta()).total_seconds()
    return None


async def test_budget_is_kept_in_every_span() -> None:
    """However the calls come, no five minutes see more than the limit."""
    clock = ManualClock()
    budget = CallBudget("the API", 100, MINUTES, clock)
    made: list[float] = []

    async def caller() -> None:
        while clock.monotonic() < end:
            await budget.take(Deadline(clock, end + 3600))
            made.append(clock.monotonic())

    end = clock.monotonic() + 900
    callers = [asyncio.create_task(caller()) for _ in range(10)]
    for _ in range(1000):
        await asyncio.sleep(0)
        clock.advance(timedelta(seconds=1))
        await asyncio.sleep(0)
    for task in callers:
        task.cancel()
    await asyncio.wait(callers)
    assert len(made) > 200
    assert max(sum(start <= at < start + 300 for at in made) for start in made) <= 100


async def test_budget_says_when_to_come_back() -> None:
    """Who has no time to wait learns at once how long it would have been."""
    clock = ManualClock()
    budget = CallBudget("the API", 4, MINUTES, clock)
    await budget.take(Deadline(clock, clock.monotonic()))
    with pytest.raises(RefusalError) as caught:
        await budget.take(Deadline.after(timedelta(seconds=99), clock))
    assert caught.value.refusal.retry_after == timedelta(seconds=100)
    assert "4 calls in 300 s" in caught.value.refusal.message


async def test_budget_takes_back_what_was_cancelled() -> None:
    """A caller that is cancelled while it waits has made no call."""
    clock = ManualClock()
    budget = CallBudget("the API", 4, MINUTES, clock)
    await budget.take(Deadline.after(MINUTES, clock))
    waiting = asyncio.create_task(budget.take(Deadline.after(MINUTES, clock)))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    clock.advance(timedelta(seconds=100))
    await budget.take(Deadline(clock, clock.monotonic()))


def test_breaker_opens_after_failures_in_a_row() -> None:
    """Some failures are life; only an unbroken row of them opens it."""
    breaker = CircuitBreaker("the API", ManualClock(), failures=3)
    for error in (unavailable(), unavailable(), RefusalError(Reason.DNS_REJECTED, "no"), unavailable(), unavailable()):
        failing(breaker, error)
    assert wait_of(breaker) is None
    failing(breaker, unavailable())
    assert wait_of(breaker) == 15


def test_open_breaker_lets_nothing_through() -> None:
    """A call isn't even begun, and its caller hears when to come back."""
    clock = ManualClock()
    breaker = CircuitBreaker("the API", clock, failures=1)
    failing(breaker, unavailable())
    clock.advance(timedelta(seconds=5))
    begun = False
    with pytest.raises(RefusalError) as caught, breaker.call():
        begun = True
    assert not begun
    assert caught.value.refusal.retry_after == timedelta(seconds=10)


def test_one_probe_at_a_time() -> None:
    """After the rest one call goes, and the others wait for what becomes of it."""
    clock = ManualClock()
    breaker = CircuitBreaker("the API", clock, failures=1)
    failing(breaker, unavailable())
    clock.advance(timedelta(seconds=15))
    with breaker.call():
        assert wait_of(breaker) == 1
    assert wait_of(breaker) is None
    failing(breaker, unavailable())
    assert wait_of(breaker) == 15


def test_failed_probes_rest_longer() -> None:
    """Twice as long each time, to an end."""
    clock = ManualClock()
    breaker = CircuitBreaker("the API", clock, failures=1)
    rests = []
    for _ in range(7):
        failing(breaker, unavailable())
        rests.append(wait_of(breaker))
        clock.advance(timedelta(seconds=rests[-1] or 0))
    assert rests == [15, 30, 60, 120, 240, 300, 300]


def test_breaker_obeys_the_api() -> None:
    """A failure with a time to come back (429) is enough, and its time counts."""
    clock = ManualClock()
    breaker = CircuitBreaker("the API", clock)
    failing(breaker, unavailable(timedelta(minutes=7)))
    assert wait_of(breaker) == 420
    clock.advance(timedelta(minutes=7))
    with breaker.call():
        pass
    failing(breaker, unavailable(timedelta()))
    assert wait_of(breaker) is None


@pytest.mark.parametrize("fault", [asyncio.CancelledError(), KeyError("a fault")], ids=["cancelled", "fault"])
def test_probe_that_tells_nothing(fault: BaseException) -> None:
    """A probe that was torn leaves the next call to be the probe."""
    clock = ManualClock()
    breaker = CircuitBreaker("the API", clock, failures=1)
    failing(breaker, unavailable())
    clock.advance(timedelta(seconds=15))
    failing(breaker, fault)
    assert wait_of(breaker) is None
