"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta


class ManualClock:
    """`Clock` for tests: `advance` moves wall and monotonic time together and wakes the sleepers that are due."""

    def __init__(self, now: datetime = datetime(2026, 11, 23, 12, tzinfo=UTC)) -> None:
        self._now = now
        self._monotonic = 1000.0
        self.worked = 0.0
        """Thread time: what a test says that its work has cost."""
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def thread_time(self) -> float:
        return self.worked

    async def sleep(self, span: timedelta) -> None:
        if span <= timedelta():
            await asyncio.sleep(0)
            return
        event = asyncio.Event()
        entry = (self._monotonic + span.total_seconds(), event)
        self._sleepers.append(entry)
        try:
            await event.wait()
        finally:
            self._sleepers.remove(entry)

    def advance(self, span: timedelta) -> None:
        """Move time forward."""
        self._now += span
        self._monotonic += span.total_seconds()
        for due, event in self._sleepers:
            if due <= self._monotonic:
                event.set()

    def jump(self, span: timedelta) -> None:
        """Step the wall clock alone, as NTP or an operator does."""
        self._now += span

    @property
    def next_wake(self) -> timedelta:
        """How long the first of those sleeps still who sleep now; zero if nobody does, or one is about to go on."""
        return timedelta(seconds=max(0, min((due - self._monotonic for due, _ in self._sleepers), default=0)))

    @property
    def sleepers(self) -> int:
        """How many tasks sleep now."""
        return len(self._sleepers)
