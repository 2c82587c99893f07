"""Copies the audit log to its sinks, each at its own pace: events that a sink lacks are read, handed over, and noted.

A position is noted after its events were handed over, so that a kill in between sends a batch again and loses none. A
sink that fails is tried again, later and later; what it lacks stays in the log.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

from certplane.broker import metrics
from certplane.broker.ports import Meter
from certplane.broker.sinks.ports import AuditSink, SinkError, StoredEvents
from certplane.broker.sinks.position import SinkPosition
from certplane.errors import RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock
from certplane.runtime.failpoints import failpoint

_logger = logging.getLogger("certplane.audit")

BATCH: Final = 256
_LOOK: Final = timedelta(seconds=1)
_SCAN: Final = timedelta(seconds=10)
"""Between looks for events that appeared below one that was copied."""
SETTLED: Final = timedelta(minutes=2)
"""For how long an event may appear below others: no transaction of ours lasts so long (`servers.STANDS_STILL`)."""
_NUMBERS: Final = 4096
_BACKOFF: Final = Backoff(timedelta(seconds=2), timedelta(minutes=1), floor=timedelta(seconds=1))


class Forwarding:
    """Copies, while `run` runs. For the event loop's thread."""

    def __init__(
        self, log: StoredEvents, sinks: Mapping[str, AuditSink], *, clock: Clock, rng: random.Random, meter: Meter
    ) -> None:
        """Nothing is read yet."""
        self._log = log
        self._sinks = sinks
        self._clock = clock
        self._rng = rng
        self._meter = meter

    async def run(self) -> None:
        """Copy until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, sink in self._sinks.items():
                group.create_task(self._forward(name, sink), name=f"audit sink {name}")

    async def _forward(self, name: str, sink: AuditSink) -> None:
        copy = _Copy(name, sink, self._log, self._clock, self._meter)
        failures = 0
        while True:
            try:
                more = await copy.go_on()
            except (SinkError, RefusalError) as error:
                copy.forget()
                failures += 1
                self._meter.count(metrics.SINK_FAILURES, sink=name)
                if failures == 1:
                    _logger.warning("the audit sink %s is behind; will retry: %s", name, error)
                await self._clock.sleep(_BACKOFF.wait(failures, self._rng))
                continue
            except Exception:  # a bug, here or in a library, of one sink: the others go on
                copy.forget()
                failures += 1
                self._meter.count(metrics.SINK_FAILURES, sink=name)
                _logger.exception("copying to the audit sink %s failed unexpectedly; will retry", name)
                await self._clock.sleep(_BACKOFF.wait(failures, self._rng))
                continue
            if failures:
                _logger.info("the audit sink %s takes events again", name)
            failures = 0
            if not more:
                await self._clock.sleep(_LOOK)


class _Copy:
    """One sink's."""

    def __init__(self, name: str, sink: AuditSink, log: StoredEvents, clock: Clock, meter: Meter) -> None:
        self._name = name
        self._sink = sink
        self._log = log
        self._clock = clock
        self._meter = meter
        self._position: SinkPosition | None = None
        self._next_scan = float("-inf")
        self._marks: deque[tuple[float, int]] = deque()
        """When which number was the highest that was copied, at the scans of the last `SETTLED`."""
        self._settled = 0
        """Up to which number nothing appears any more."""

    def forget(self) -> None:
        """Read the position anew: another broker may have gone on with it."""
        self._position = None
        self._marks.clear()
        self._next_scan = float("-inf")

    async def go_on(self) -> bool:
        """Copy a batch; whether there is more.

        Raises:
            SinkError: see `AuditSink.send`.
            RefusalError: STORE_UNAVAILABLE.
        """
        position = self._position or await self._begin()
        scans = self._clock.monotonic() >= self._next_scan
        missing = await self._missing(position, position.low if scans else position.high)
        copied = await self._hand_over(position, missing[:BATCH])
        if scans and len(missing) <= BATCH:
            self._settle(copied)
            self._next_scan = self._clock.monotonic() + _SCAN.total_seconds()
        copied = copied.settled(self._settled)
        # A low mark that moves by itself is noted with the next events: a log in which nothing happens is left alone.
        if missing and not await self._log.advance(self._name, position, copied):
            self.forget()
            return True
        # As it is noted; what has only settled since is found to be so again.
        self._position = copied if missing else position
        if not missing:
            self._meter.level(metrics.SINK_LAG, 0, sink=self._name)
        return len(missing) >= BATCH

    async def _begin(self) -> SinkPosition:
        position = await self._log.position(self._name)
        if position is None:
            # A new sink gets what is recorded from now on; what was before can be exported.
            position = SinkPosition(await self._log.newest())
            if not await self._log.advance(self._name, None, position):
                position = await self._log.position(self._name) or position
            _logger.info("the audit sink %s begins with the events that are recorded from now on", self._name)
        self._position = position
        return position

    async def _missing(self, position: SinkPosition, after: int) -> Sequence[int]:
        """Numbers that weren't copied, upwards: all of them up to the first `BATCH`, and perhaps more."""
        missing: list[int] = []
        while len(missing) < BATCH:
            numbers = await self._log.sequences(after, _NUMBERS)
            missing += [number for number in numbers if number not in position]
            if len(numbers) < _NUMBERS:
                break
            after = numbers[-1]
        return missing

    async def _hand_over(self, position: SinkPosition, sequences: Sequence[int]) -> SinkPosition:
        if not sequences:
            return position
        events = await self._log.events(sequences)
        if events:
            lag = self._clock.now() - events[0].time
            self._meter.level(metrics.SINK_LAG, max(0.0, lag.total_seconds()), sink=self._name)
            failpoint("audit.sink.send.before")
            await self._sink.send(events)
            failpoint("audit.sink.send.after")
        for _ in events:
            self._meter.count(metrics.SINK_EVENTS, sink=self._name)
        return position.with_copied(sequences)

    def _settle(self, position: SinkPosition) -> None:
        """Note how far a scan has come, and what a scan of `SETTLED` ago had: nothing appears below that any more."""
        now = self._clock.monotonic()
        self._marks.append((now, position.high))
        while self._marks[0][0] <= now - SETTLED.total_seconds():
            self._settled = self._marks.popleft()[1]
