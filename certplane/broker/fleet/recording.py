"""What streams bring, made durable: reports with their audit events, and what is recorded that nobody waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from certplane.broker import metrics
from certplane.broker.events import AuditTrail
from certplane.broker.fleet.events import report_events
from certplane.broker.fleet.model import HostStream
from certplane.broker.fleet.ports import FleetStore, RecordedReports
from certplane.broker.fleet.watching import Watchers
from certplane.broker.model import Caller
from certplane.broker.ports import EventRecorder, Meter
from certplane.errors import Reason, Refusal, RefusalError
from certplane.fleet_report.model import Report
from certplane.runtime.clock import Clock
from certplane.runtime.failpoints import failpoint

_logger = logging.getLogger("certplane.broker.fleet")


@dataclass(slots=True, eq=False)
class Recorder:
    """Writes for the streams of one broker, and tells watchers what is new. For the event loop's thread."""

    store: FleetStore
    repeats: EventRecorder
    watchers: Watchers
    clock: Clock
    meter: Meter
    trail: AuditTrail
    held: Callable[[str], None] = lambda _: None
    """Told of each host that durably holds a certificate for a rollout: it may have been released meanwhile."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _pausing: set[asyncio.Task[Any]] = field(default_factory=set)
    """Those of the tasks that wait for another try."""
    _finishing: bool = False
    _works: bool = True
    """Whether what was last recorded in the background could be."""

    async def record_reports(
        self,
        caller: Caller,
        request_id: str,
        epoch: str,
        reports: Sequence[Report],
        *,
        names: tuple[str, ...] | None = None,
        stream: HostStream | None = None,
        stream_epoch: int = 0,
    ) -> RecordedReports:
        """Make reports durable, and tell watchers. See `FleetStore.record_reports`.

        Raises:
            RefusalError: STREAM_DISPLACED, STORE_UNAVAILABLE or AUDIT_UNAVAILABLE.
        """
        now = self.clock.now()
        told = report_events(caller, request_id, reports, self.trail)
        first = {number: one.event for number, one in told.items() if self.repeats.begin(one.kind, one.event)}
        telling: Collection[int] = ()
        try:
            failpoint("report.store.before")
            recorded = await self.store.record_reports(
                caller.name, epoch, reports, first, names=names, stream=stream, stream_epoch=stream_epoch
            )
            failpoint("report.store.after")
            telling = recorded.telling
        finally:
            for number in first.keys() - set(telling):
                self.repeats.withdraw(told[number].kind, told[number].event)
        # At once: what the host tells another broker next must not be told to watchers before this.
        for report in recorded.new:
            self.meter.count(metrics.REPORTS, result="durable")
            self.watchers.certificate_changed(caller.name, report.certificate, now)
            if report.certificate.held_by_rollout_id:
                self.held(caller.name)
        for name in recorded.forgotten:
            self.watchers.certificate_removed(caller.name, name, now)
        repeated = [told[sequence] for sequence in recorded.telling if sequence not in first]
        await asyncio.gather(*(self.repeats.record(one.kind, [one.event]) for one in repeated))
        return recorded

    def note_directive_error(self, host: str, error: Refusal | None, stream_epoch: int) -> None:
        """Record why the host refused the last directive, or that it took it, in the background."""
        self.note(self.store.record_directive_error(host, error, stream_epoch))

    def note(self, write: Awaitable[None]) -> None:
        """Record something that nobody waits for."""
        self.start(self._note(write), "fleet-record")

    async def insist(self, write: Callable[[], Awaitable[None]], pauses: Callable[[int], timedelta]) -> None:
        """Record something that others go by, again and again while the store fails; after `finish` once.

        `pauses` says how long before another try, from how many have failed.
        """
        task, failures = asyncio.current_task(), 0
        assert task is not None
        while not (await self._try(write()) or self._finishing):
            failures += 1
            self._pausing.add(task)
            try:
                await self.clock.sleep(pauses(failures))
            finally:
                self._pausing.discard(task)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Work on beside the streams; `finish` waits for it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def finish(self, deadline: float) -> None:
        """Wait for what is under way, at most until `deadline`, of the monotonic clock; nothing is tried again."""
        self._finishing = True
        for task in tuple(self._pausing):
            task.cancel()
        while self._tasks and (left := deadline - self.clock.monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=left)

    async def _note(self, write: Awaitable[None]) -> None:
        await self._try(write)

    async def _try(self, write: Awaitable[None]) -> bool:
        """Whether it is recorded, by whoever is to record it."""
        try:
            await write
        except RefusalError as error:
            if error.refusal.reason is Reason.STREAM_DISPLACED:
                return True  # who has the host's stream now records it
            if self._works:  # a store that is down is said once, not for each of ten thousand hosts
                _logger.warning("could not record the state of a host's stream: %s", error)
            self._works = False
            return False
        self._works = True
        return True

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("recording for a host's stream failed", exc_info=error)
