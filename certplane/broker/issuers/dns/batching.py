"""One call of what many orders want written in the same place at about the same time.

While a call is under way, whatever else is wanted gathers for the next one. Where there is company, as when fifty hosts
renew in one zone, a call also waits for more: what is urgent for a moment, what isn't (removals) for longer, unless an
urgent call takes it along. A lone order waits for nobody.

Each wish ends by itself: a wish whose caller has gone before the call is left out, one caller's failure is its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Generic, TypeVar

from certplane.broker.issuers.attempts import Deadline
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock

K = TypeVar("K", bound=Hashable)
W = TypeVar("W")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """How long a call waits for company, where there is some.

    Attributes:
        least: also without company: an order's own records come together, but not in one turn of the loop.
        urgent: for what somebody waits for.
        patient: for what nobody waits for.
        company: wishes within `recently` from which on there is company; a lone order has four, two names written and
            removed.
        recently: see `company`.
    """

    least: timedelta = timedelta(milliseconds=20)
    urgent: timedelta = timedelta(seconds=1)
    patient: timedelta = timedelta(seconds=4)
    company: int = 9
    recently: timedelta = timedelta(seconds=10)


_DEFAULT_TIMES = BatchTimes()


@dataclass(slots=True, eq=False)
class _Wish(Generic[W, R]):
    what: W
    deadline: Deadline
    due: float
    done: asyncio.Future[R]


@dataclass(slots=True, eq=False)
class _Place(Generic[W, R]):
    """One key's wishes. `seen` are the times of the latest ones."""

    waiting: list[_Wish[W, R]] = field(default_factory=list)
    seen: deque[float] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    worker: asyncio.Task[None] | None = None


class Batches(Generic[K, W, R]):
    """Gathers wishes by key, and has one call at a time for each key."""

    def __init__(
        self,
        send: Callable[[K, Sequence[W], Deadline], Awaitable[Sequence[R | RefusalError]]],
        clock: Clock,
        *,
        most: int,
        times: BatchTimes = _DEFAULT_TIMES,
    ) -> None:
        """Make it.

        Args:
            send: makes one call; returns what became of each wish, in order. What it raises is each one's failure.
            clock: for waiting.
            most: wishes in one call.
            times: how long is waited for company.
        """
        self._send, self._clock, self._most, self._times = send, clock, most, times
        self._places: dict[K, _Place[W, R]] = {}

    async def submit(self, key: K, what: W, deadline: Deadline, *, urgent: bool) -> R:
        """Have `what` done with the next call for `key`; returns what became of it.

        Raises:
            RefusalError: as `send` says.
        """
        place = self._places.setdefault(key, _Place())
        now = self._clock.monotonic()
        due = now + self._wait(place, now, deadline, urgent=urgent)
        wish: _Wish[W, R] = _Wish(what, deadline, due, asyncio.get_running_loop().create_future())
        place.waiting.append(wish)
        place.news.set()
        if place.worker is None:
            place.worker = asyncio.create_task(self._work(key, place), name="dns-batches")
        try:
            return await wish.done
        finally:
            if wish in place.waiting:
                place.waiting.remove(wish)  # its caller has gone before it was sent

    async def close(self) -> None:
        """Give up what is under way."""
        workers = {place.worker for place in self._places.values() if place.worker is not None}
        for worker in workers:
            worker.cancel()
        if workers:
            await asyncio.wait(workers)

    def _wait(self, place: _Place[W, R], now: float, deadline: Deadline, *, urgent: bool) -> float:
        """Seconds that a wish waits for company, at most a quarter of its caller's time."""
        place.seen.append(now)
        while place.seen[0] < now - self._times.recently.total_seconds():
            place.seen.popleft()
        if len(place.seen) < self._times.company:
            return self._times.least.total_seconds()
        return min(self._times.urgent if urgent else self._times.patient, deadline.left / 4).total_seconds()

    async def _work(self, key: K, place: _Place[W, R]) -> None:
        try:
            await asyncio.sleep(0)  # an order's own records come in one turn of the loop
            while place.waiting:
                await self._gather(place)
                batch, place.waiting = place.waiting[: self._most], place.waiting[self._most :]
                if batch:
                    await self._call(key, batch)
        finally:
            place.worker = None
            for wish in place.waiting:
                wish.done.cancel()

    async def _gather(self, place: _Place[W, R]) -> None:
        """Wait until a wish is due, or there are enough of them."""
        while place.waiting and len(place.waiting) < self._most:
            wait = min(wish.due for wish in place.waiting) - self._clock.monotonic()
            if wait <= 0:
                return
            place.news.clear()
            timer = asyncio.ensure_future(self._clock.sleep(timedelta(seconds=wait)))
            news = asyncio.ensure_future(place.news.wait())
            try:
                await asyncio.wait({timer, news}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                timer.cancel()
                news.cancel()

    async def _call(self, key: K, batch: Sequence[_Wish[W, R]]) -> None:
        latest = max((wish.deadline for wish in batch), key=lambda deadline: deadline.left)
        results: Sequence[R | RefusalError]
        try:
            results = await self._send(key, [wish.what for wish in batch], latest)
        except RefusalError as error:
            results = [error] * len(batch)
        except asyncio.CancelledError:
            for wish in batch:
                wish.done.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - a fault of the program: everybody who waits must hear of it
            for wish in batch:
                if not wish.done.done():
                    wish.done.set_exception(error)
            return
        missing = RefusalError(Reason.DNS_UNAVAILABLE, "the DNS API's answer omits records")
        for wish, result in zip(batch, [*results, *[missing] * (len(batch) - len(results))], strict=True):
            if wish.done.done():
                continue
            if isinstance(result, RefusalError):
                wish.done.set_exception(RefusalError.of(result.refusal))
            else:
                wish.done.set_result(result)
