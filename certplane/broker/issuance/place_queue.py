"""The orders of this broker that wait for a place within their CA's limits, and when each asks again.

What is true stands in the ledger (`budget`), which every broker asks; here is only when to ask. Orders that lack a
place of the same bucket stand in one line, the most urgent first, and only its first one is awake: it asks when the
bucket has a place again, and the next one an interval later. So a place costs one question of each broker that has
orders in the line, however many they are.

The first one asks before its time, too, now and then: places are given back, clocks are set and limits changed, and
nobody tells of it.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.budget.model import BucketKey, Shortage, Urgency
from certplane.broker.issuance.waiting import within
from certplane.runtime.clock import Clock

_AGAIN: Final = timedelta(seconds=2)
"""After a place was left to somebody more urgent, who takes it within that as a rule."""
_SOONEST: Final = timedelta(minutes=1)
_LATEST: Final = timedelta(hours=1)
"""Between two questions before the time: a tenth of the wait, within these."""


@dataclass(slots=True)
class _Line:
    """Those who wait for one bucket."""

    free_time: datetime
    waiting: list[Urgency] = field(default_factory=list)
    wakes: dict[Urgency, asyncio.Event] = field(default_factory=dict)
    told: dict[Urgency, tuple[Shortage, Callable[[Shortage], object]]] = field(default_factory=dict)
    """What each was told last, and who hears what is true by now."""

    def tell(self, urgency: Urgency, shortage: Shortage, hear: Callable[[Shortage], object]) -> None:
        """Tell what an order lacks, with those that are ahead of it here."""
        said = shortage if shortage.ahead else replace(shortage, ahead=bisect_left(self.waiting, urgency))
        self.told[urgency] = said, hear
        hear(said)

    def tell_late(self, now: datetime) -> None:
        """Tell those anew whose time has come and who wait still: more urgent ones have come between."""
        late = [urgency for urgency, (said, _) in self.told.items() if said.expected_time < now]
        for urgency in late:
            said, hear = self.told[urgency]
            self.tell(urgency, replace(said, free_time=max(self.free_time, now), ahead=0), hear)

    def wake_first(self) -> None:
        if self.waiting:
            self.wakes[self.waiting[0]].set()


class PlaceQueue:
    """Lets orders wait. For the event loop's thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lines: dict[BucketKey, _Line] = {}

    async def wait(self, shortage: Shortage, urgency: Urgency, tell: Callable[[Shortage], object]) -> None:
        """Return when the order should ask for its places again.

        Args:
            shortage: What it was told when it asked.
            urgency: The order's own.
            tell: Hears the shortage with the orders that are ahead in this line.
        """
        line = self._lines.setdefault(shortage.key, _Line(shortage.free_time))
        now = self._clock.now()
        line.free_time = shortage.free_time if shortage.free_time > now else now + _AGAIN
        line.wakes[urgency] = news = asyncio.Event()
        insort(line.waiting, urgency)
        line.wake_first()
        line.tell(urgency, shortage, tell)
        asks = False
        try:
            while True:
                news.clear()
                if line.waiting[0] != urgency:
                    await news.wait()
                elif not await within(self._clock, self._pause(line), news) and line.waiting[0] == urgency:
                    # For who is next, unless this one's answer says something else (`learn`).
                    line.free_time = max(line.free_time, self._clock.now()) + shortage.limit.rate.interval
                    asks = True
                    break
        finally:
            line.waiting.remove(urgency)
            del line.wakes[urgency], line.told[urgency]
            if asks:  # not with each that is parked
                line.tell_late(self._clock.now())
            if line.waiting:
                line.wake_first()
            elif self._lines.get(shortage.key) is line:
                del self._lines[shortage.key]

    def learn(self, free_times: Mapping[BucketKey, datetime]) -> None:
        """From when on these buckets have a place: who waits there for it asks then."""
        for key, free_time in free_times.items():
            if (line := self._lines.get(key)) is not None and free_time != line.free_time:
                line.free_time = free_time
                line.wake_first()

    def _pause(self, line: _Line) -> timedelta:
        span = line.free_time - self._clock.now()
        return min(span, max(_SOONEST, min(span / 10, _LATEST)))
