"""Repeated denials, counted together before they fill the audit log (design, fixed decision 12).

Equal denials are those of one event type, identity (of an unknown one: address), reason and profile (of those that
policy has; all others are one, or a caller that invents names would fill the log after all). The first is
audited at once. For a minute from then on further ones are only counted, and at its end, if there were any, one
`denials_coalesced` event says how many. So an agent that asks in vain every second costs two events a minute instead of
sixty, and the log still says all of it.

`DenialWindows` decides and is pure; `DenialCoalescer` writes and waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.model import AuditEvent, AuditEventType
from certplane.broker.ports import AuditLog
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

__all__ = ["DenialCoalescer", "DenialWindows"]

_log = logging.getLogger("certplane.audit")

_WINDOW: Final = timedelta(seconds=60)
_KEYS: Final = 10_000
"""Windows open at once, a few MB: more than the identities of a large fleet that are all denied within a minute."""

_Key = tuple[str, str, str, str]


@dataclass(slots=True)
class _Window:
    ends: float
    first: AuditEvent
    last_time: datetime
    repeats: int = 0


class DenialWindows:
    """Which denials are written when. Times are seconds of monotonic time."""

    def __init__(self, window: timedelta = _WINDOW, most: int = _KEYS) -> None:
        self._length = window.total_seconds()
        self._most = most
        self._windows: OrderedDict[_Key, _Window] = OrderedDict()  # by their end, since all are of one length

    def admit(self, event: AuditEvent, now: float) -> list[AuditEvent]:
        """The events to write now: `event` if it is the first of its kind, and what must make room for it."""
        key = _key(event)
        window = self._windows.get(key)
        if window is not None and now < window.ends:
            window.repeats += 1
            window.last_time = event.timestamp
            return []
        closed = self.take_ended(now)
        while len(self._windows) >= self._most:
            _, oldest = self._windows.popitem(last=False)
            closed += _summary(oldest)
        self._windows[key] = _Window(now + self._length, event, event.timestamp)
        return [*closed, event]

    def forget(self, event: AuditEvent) -> None:
        """`event` could not be written: the next one of its kind is the first again."""
        self._windows.pop(_key(event), None)

    def take_ended(self, now: float) -> list[AuditEvent]:
        """The summaries of the windows that have ended, which are forgotten."""
        ended: list[AuditEvent] = []
        while self._windows and next(iter(self._windows.values())).ends <= now:
            _, window = self._windows.popitem(last=False)
            ended += _summary(window)
        return ended

    def take_all(self) -> list[AuditEvent]:
        """The summaries of all windows, as when the broker stops."""
        windows = list(self._windows.values())
        self._windows.clear()
        return [event for window in windows for event in _summary(window)]

    def next_end(self) -> float | None:
        """When the next window ends; None if none is open."""
        return next(iter(self._windows.values())).ends if self._windows else None


def _key(event: AuditEvent) -> _Key:
    return (event.event_type, event.identity or event.source_ip, event.reason_code, _known_profile(event))


def _known_profile(event: AuditEvent) -> str:
    """The profile, if policy has it: a caller that invents another name each time must not be first each time."""
    return event.profile_name if event.profile_hash else ""


def _summary(window: _Window) -> list[AuditEvent]:
    """What was equal in all of them, and how many there were; nothing if the first was the only one.

    The summary's event_id is given when it is written.
    """
    if not window.repeats:
        return []
    first = window.first
    return [
        AuditEvent(
            event_id="",
            timestamp=window.last_time,
            event_type=AuditEventType.DENIALS_COALESCED,
            severity=first.severity,
            decision=first.decision,
            identity=first.identity,
            profile_name=_known_profile(first),
            reason_code=first.reason_code,
            reason=f"{first.event_type} was repeated; the first has event_id {first.event_id}",
            source_ip=first.source_ip,
            count=window.repeats,
        )
    ]


class DenialCoalescer:
    """`DenialRecorder` in front of an audit log."""

    def __init__(
        self,
        audit: AuditLog,
        clock: Clock,
        new_id: Callable[[], str],
        windows: DenialWindows | None = None,
    ) -> None:
        self._audit = audit
        self._clock = clock
        self._new_id = new_id
        self._windows = windows or DenialWindows()
        self._opened = asyncio.Event()

    async def record(self, event: AuditEvent) -> None:
        """See `DenialRecorder.record`."""
        events = self._windows.admit(event, self._clock.monotonic())
        if not events:
            return
        self._opened.set()
        try:
            await self._audit.append(self._named(events))
        except RefusalError:
            self._windows.forget(event)
            _log_lost(events[:-1])
            raise

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write summaries when their windows end, and what is left at the end of the block."""
        task = asyncio.create_task(self._run(), name="denials")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self._write(self._windows.take_all())

    async def _run(self) -> None:
        while True:
            end = self._windows.next_end()
            if end is None:
                self._opened.clear()
                await self._opened.wait()
                continue
            await self._clock.sleep(timedelta(seconds=end - self._clock.monotonic()))
            await self._write(self._windows.take_ended(self._clock.monotonic()))

    async def _write(self, summaries: Sequence[AuditEvent]) -> None:
        if not summaries:
            return
        try:
            await self._audit.append(self._named(summaries))
        except RefusalError:
            _log_lost(summaries)

    def _named(self, events: Sequence[AuditEvent]) -> list[AuditEvent]:
        return [event if event.event_id else replace(event, event_id=self._new_id()) for event in events]


def _log_lost(summaries: Sequence[AuditEvent]) -> None:
    # Nobody waits for a summary, and each of its denials was refused all the same.
    for event in summaries:
        _log.error("repeated denials could not be audited", extra={"fields": {"event": event.record()}})
