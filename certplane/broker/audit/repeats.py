"""Repeats of what a caller may do again and again: counted, so that they don't fill the disk, and never lost.

A host that asks for its cached certificate, reports its enrollment or reports that a renewal failed does what it may;
doing it twenty times a second must cost no more than doing it twice an hour. The first event of a kind is written as
ever. Repeats within ten minutes are counted in a row that is rewritten in place, and that is durable before the caller
is answered: a hand-out that can't be counted is not made (`fail_closed`). When the ten minutes are over, the row
becomes an `events_coalesced` event with the count, the first and the last time, and all that the last event said. So it
does at the next start if the broker was killed.

What authorises or makes an order, and what issues, is never counted together: each of those is one event of its own.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

import msgspec
from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.audit.coalescing import Coalescing
from certplane.broker.audit.windows import Window, WindowBudget, Windows
from certplane.broker.events import AuditEvent, AuditEventType, EventKind
from certplane.broker.ports import AuditLog, EventRecorder, Meter, NullMeter, RepeatCounts
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_WINDOW: Final = timedelta(minutes=10)
_BURST: Final = 5_000
"""What a host with a thousand certificates says when all are renewed at once; some 5 MB."""
_REFILL: Final = timedelta(seconds=20)
"""Then 4,320 a day for an identity: with their summaries about 10 MB a day, where 293 million rows were possible."""
_RETRY: Final = timedelta(seconds=10)
_KINDS: Final = 20_000
"""A fleet of some thousand hosts that all renew within ten minutes; about 20 MB."""


class RepeatCoalescer(Coalescing, EventRecorder):
    """`EventRecorder` in front of an audit log."""

    def __init__(
        self,
        audit: AuditLog,
        counts: RepeatCounts,
        clock: Clock,
        new_id: Callable[[], str],
        *,
        windows: Windows | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(clock, new_id, windows or Windows(_WINDOW, _KINDS, WindowBudget(_BURST, _REFILL)))
        self._audit = audit
        self._counts = counts
        self._meter = meter or NullMeter()
        self._changed: dict[tuple[str, ...], Window] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._keeping: asyncio.Task[None] | None = None
        self._unwritten: list[Window] = []
        self._failed = 0.0
        self._writing = asyncio.Lock()

    @override
    async def record(self, kind: EventKind, events: Sequence[AuditEvent]) -> None:
        *_, event = events
        window = self._windows.admit(kind, event, self._clock.monotonic())
        if window is not None:
            self._meter.count(metrics.EVENTS_COALESCED, type=event.event_type.value)
            await self._keep(window)
            return
        self._opened()
        try:
            await self._audit.append(events)
        except RefusalError:
            self._windows.forget(kind, event)
            raise

    @override
    def begin(self, kind: EventKind, event: AuditEvent) -> bool:
        first = self._windows.begin(kind, event, self._clock.monotonic())
        if first:
            self._opened()
        return first

    @override
    def withdraw(self, kind: EventKind, event: AuditEvent) -> None:
        self._windows.forget(kind, event)
        self._opened()

    async def _keep(self, window: Window) -> None:
        """Return when the window's count is durable with this repeat; those that come meanwhile share a write."""
        self._changed[window.key] = window
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(kept)
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep_changed(), name="audit-repeats")
        await kept

    async def _keep_changed(self) -> None:
        async with self._writing:
            self._keeping = None  # who comes from now on is of the next write
            changed, self._changed = self._changed, {}
            waiting, self._waiting = self._waiting, []
            kept = [self._named(window) for window in changed.values() if not window.written]
            try:
                if kept:
                    await self._counts.keep(kept)
            except BaseException as error:
                for future in waiting:
                    if not future.done():
                        _fail(future, error)
                if not isinstance(error, Exception):  # an exception is theirs: raised here too, it is logged twice
                    raise
            else:
                for future in waiting:
                    if not future.done():  # else its caller has gone
                        future.set_result(None)

    def _next_end(self) -> float | None:
        end = self._windows.next_end()
        if not self._unwritten:
            return end
        again = self._failed + _RETRY.total_seconds()
        return again if end is None else min(end, again)

    async def _write(self, windows: Sequence[Window]) -> None:
        """Write what has ended. What can't be written is tried again; meanwhile its count stays kept."""
        async with self._writing:
            waiting = [*self._unwritten, *windows]
            if not waiting:
                return
            try:
                await self._counts.close([self._named(window) for window in waiting])
            except RefusalError:
                self._failed = self._clock.monotonic()
                self._unwritten = waiting[-_KINDS:]
                self._log_lost([self._summary(window) for window in windows])
            else:
                self._unwritten = []
                for window in waiting:
                    window.written = True

    def _summary(self, window: Window) -> AuditEvent:
        """All that the last one said, how many there were, and since when."""
        first, last = window.first, window.last
        said = f"; the last: {last.reason}" if last.reason else ""
        reason = (
            f"{first.event_type} was repeated from {first.timestamp:%Y-%m-%dT%H:%M:%SZ}; "
            f"the first has event_id {first.event_id}{said}"
        )
        return msgspec.structs.replace(
            last,
            event_id=window.summary_id,
            event_type=AuditEventType.EVENTS_COALESCED,
            reason=reason,
            count=window.repeats,
        )


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    """Tell one of those who wait why they wait in vain; a refusal is one of its own for each caller."""
    if isinstance(error, RefusalError):
        refused = RefusalError.of(error.refusal)
        refused.__cause__ = error
        future.set_exception(refused)
    elif isinstance(error, Exception):
        future.set_exception(error)
    else:
        future.cancel()
