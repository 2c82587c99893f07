"""Time as a port: what needs the time or a sleep takes a `Clock`; tests pass one that they advance by hand."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Where a program takes its time from. Safe to call from any thread, `sleep` from the event loop only."""

    def now(self) -> datetime:
        """The wall clock, aware, UTC. It may jump either way."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...

    async def sleep(self, span: timedelta) -> None:
        """Return after `span` of monotonic time; at once if it isn't positive."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """See `Clock.now`."""
        return datetime.now(UTC)  # noqa: TID251 - the one place that reads the wall clock

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    async def sleep(self, span: timedelta) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(max(0.0, span.total_seconds()))
