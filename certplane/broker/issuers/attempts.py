"""Deadlines of the ports' methods, repeating what is safe to repeat until then, and doing several things at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from certplane.broker.telling import tell
from certplane.errors import RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment at which a method must have ended, on its clock's monotonic time."""

    clock: Clock
    at: float

    @classmethod
    def after(cls, timeout: timedelta, clock: Clock) -> Deadline:
        """`timeout` from now."""
        return cls(clock, clock.monotonic() + timeout.total_seconds())

    def earlier(self, timeout: timedelta) -> Deadline:
        """The earlier of this one and `timeout` from now."""
        return Deadline(self.clock, min(self.at, self.clock.monotonic() + timeout.total_seconds()))

    @property
    def left(self) -> timedelta:
        """The time that is left, never negative."""
        return timedelta(seconds=max(0.0, self.at - self.clock.monotonic()))

    async def sleep(self, span: timedelta) -> bool:
        """Sleep for `span` and return True; False, at once, if the deadline would pass meanwhile."""
        if span >= self.left:
            return False
        await self.clock.sleep(span)
        return True


async def repeat(
    attempt: Callable[[], Awaitable[T]],
    *,
    deadline: Deadline,
    backoff: Backoff,
    rng: random.Random,
    on: type[RefusalError],
    when: Callable[[RefusalError], bool],
) -> T:
    """Await `attempt()` until it returns, fails in a way that may not be repeated, or the deadline leaves no time.

    Waits between tries as `backoff` says, and at least as long as the failure's `retry_after`, and tells whoever waits
    why (`certplane.broker.telling`). A last try that the
    deadline cut off says no more than that: the failure before it is raised, which has the cause.

    Args:
        attempt: one try; it must know the deadline itself.
        deadline: when another try would begin after it, the last failure is raised at once.
        backoff: waits after the first, second, ... failure.
        rng: for the backoff's jitter.
        on: the failures to look at.
        when: whether such a failure may be repeated.
    """
    failures = 0
    earlier: RefusalError | None = None
    while True:
        try:
            return await attempt()
        except on as error:
            if earlier is not None and not deadline.left and when(error):
                raise earlier from error
            earlier = error
            failures += 1
            wait = max(backoff.wait(failures, rng), error.refusal.retry_after or timedelta())
            if not when(error):
                raise
            tell(f"{error.refusal.reason}: {error.refusal.message}")
            if not await deadline.sleep(wait):
                raise


async def all_of(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all at once and return their results in order; the first failure cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as failed:
        first = failed.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]
