"""The rhythm that all coalescing of audit events has: summaries are written when their windows end, and at a stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from certplane.broker.audit.windows import Window, Windows
from certplane.broker.events import AuditEvent
from certplane.runtime.clock import Clock

_log = logging.getLogger("certplane.audit")


class Coalescing(ABC):
    """Windows, and the task that writes what they come to."""

    def __init__(self, clock: Clock, new_id: Callable[[], str], windows: Windows) -> None:
        self._clock = clock
        self._new_id = new_id
        self._windows = windows
        self._wake = asyncio.Event()
        self._waiting_for: float | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write summaries when their windows end, and what is left at the end of the block."""
        task = asyncio.create_task(self._run(), name="audit-coalescing")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self._write(self._windows.take_all())

    def _opened(self) -> None:
        """A window was opened: maybe the only one, or one that has taken another's place, which is to be written."""
        if self._waiting_for is None or self._windows.next_end() == float("-inf"):
            self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            self._waiting_for = self._next_end()
            await self._wait(self._waiting_for)
            await self._write(self._windows.take_ended(self._clock.monotonic()))

    async def _wait(self, end: float | None) -> None:
        """Return at `end`, or when woken."""
        waits: list[asyncio.Future[object]] = [asyncio.ensure_future(self._wake.wait())]
        if end is not None:
            left = timedelta(seconds=max(0.0, end - self._clock.monotonic()))
            waits.append(asyncio.ensure_future(self._clock.sleep(left)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _next_end(self) -> float | None:
        """When there is something to write next; None: not before another window is opened."""
        return self._windows.next_end()

    @abstractmethod
    async def _write(self, windows: Sequence[Window]) -> None:
        """Write the summaries of windows that have ended. Never raises `RefusalError`."""

    def _named(self, window: Window) -> AuditEvent:
        """The window's summary as it is now; it keeps its event_id."""
        window.summary_id = window.summary_id or self._new_id()
        return self._summary(window)

    @abstractmethod
    def _summary(self, window: Window) -> AuditEvent:
        """What a window came to."""

    def _log_lost(self, summaries: Sequence[AuditEvent]) -> None:
        # Nobody waits for a summary. It is told here whole, so that a log collector has what the database lacks.
        for event in summaries:
            _log.error("repeated events could not be audited", extra={"fields": {"event": event.record()}})
