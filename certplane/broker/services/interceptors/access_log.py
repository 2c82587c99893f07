"""The access log: a line per call, and of what a caller does again and again a line a minute.

Equal are calls of one identity (of an unknown one: address) that ended for the same reason: a refusal's, or the code of
those that failed without one, as calls do that their caller gives up. The first is logged at once; for a minute further
ones are only counted, and at its end one line says how many there were. Calls that were answered have a line each, as
many as an identity makes that isn't in a loop; above that they are counted together in the same way. A host that asks
in a loop would otherwise fill a disk, and journald's limit would drop the lines of others. One who is unknown and comes
from ever another address has as many lines as all who are unknown have together; above that the address doesn't count.

For the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import grpc

from certplane.broker.identity.buckets import TokenBuckets
from certplane.runtime.clock import Clock

_WINDOW: Final = timedelta(minutes=1)
_MOST_WINDOWS: Final = 10_000
_LINES: Final = 1000
"""Of answered calls of one identity at once: as many certificates may a host ask for together."""
_LINES_PER_SECOND: Final = 0.5
"""Then: half a megabyte an hour, and more calls than any host makes that asks for what it needs."""

_STRANGERS: Final = 1000
"""Addresses of unknown callers at once."""
_STRANGERS_PER_SECOND: Final = 0.2

_ANSWERED: Final = grpc.StatusCode.OK.name

_logger = logging.getLogger("certplane.broker.access")

_Key = tuple[str, str]


@dataclass(slots=True)
class _Window:
    ends: float
    fields: dict[str, Any]
    repeats: int = 0


class AccessLog:
    """Writes the lines; its task lives while there is something to count."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lines = TokenBuckets(rate=_LINES_PER_SECOND, burst=_LINES, monotonic=clock.monotonic)
        self._strangers = TokenBuckets(rate=_STRANGERS_PER_SECOND, burst=_STRANGERS, monotonic=clock.monotonic)
        self._windows: OrderedDict[_Key, _Window] = OrderedDict()  # by their end, since all are of one length
        self._closing: asyncio.Task[None] | None = None

    @property
    def enabled(self) -> bool:
        """Whether lines are written at all: making their fields costs something."""
        return _logger.isEnabledFor(logging.INFO)

    def note(self, fields: dict[str, Any]) -> None:
        """A call has ended; `fields` has `identity`, `source_ip`, `code`, and `reason`: a refusal's, or empty."""
        who, why = fields["identity"] or fields["source_ip"], fields["reason"] or fields["code"]
        if why == _ANSWERED and self._lines.take(who) is None:
            _logger.info("call", extra={"fields": fields})
            return
        key = (who, why)
        now = self._clock.monotonic()
        self._close_ended(now)
        if not fields["identity"] and key not in self._windows and self._strangers.take("") is not None:
            key = ("", why)
        window = self._windows.get(key)
        if window is not None:
            window.repeats += 1
            window.fields = fields
            return
        if len(self._windows) >= _MOST_WINDOWS:
            self._close_first()
        self._windows[key] = _Window(now + _WINDOW.total_seconds(), fields)
        if self._closing is None or self._closing.done():
            self._closing = asyncio.create_task(self._close_all_in_time(), name="access-log")
        _logger.info("call", extra={"fields": fields})

    def close(self) -> None:
        """Write what was counted; the broker stops."""
        while self._windows:
            self._close_first()
        if self._closing is not None:
            self._closing.cancel()

    async def _close_all_in_time(self) -> None:
        while self._windows:
            first = next(iter(self._windows.values()))
            await self._clock.sleep(timedelta(seconds=first.ends - self._clock.monotonic()))
            self._close_ended(self._clock.monotonic())

    def _close_ended(self, now: float) -> None:
        while self._windows and next(iter(self._windows.values())).ends <= now:
            self._close_first()

    def _close_first(self) -> None:
        _, window = self._windows.popitem(last=False)
        if window.repeats:
            fields = {**window.fields, "count": window.repeats}
            _logger.info("repeated calls, of which this is the last", extra={"fields": fields})
