"""One stream that is being served: sends what its session has to say, has its reports recorded, and ends once.

A quiet stream costs this object and its session, and no task: one writes reports (`_flush`) and one messages
(`_pump`) while there are some.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from certplane.broker import metrics
from certplane.broker.fleet.messages import Goodbye, Hello, Outgoing
from certplane.broker.fleet.model import HostStream
from certplane.broker.fleet.ports import RecordedReports
from certplane.broker.fleet.recording import Recorder
from certplane.broker.fleet.refusals import failed
from certplane.broker.fleet.session import HostSession, InForceHashes
from certplane.broker.fleet.settings import RETRY, StreamSettings
from certplane.broker.model import Caller
from certplane.broker.ports import Meter
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import Report
from certplane.runtime.clock import Clock
from certplane.runtime.rarely import Rarely

_logger = logging.getLogger("certplane.broker.fleet")

LAST_WORDS: Final = timedelta(seconds=5)
"""What streams get to make durable and say what is left, when the broker stops or the host hangs up."""
_AT_ONCE: Final = 64
"""Reports of a hello that are made durable together: all others that wait for the store wait for them."""


@dataclass(slots=True)
class StreamContext:
    """What all streams of a broker share."""

    recorder: Recorder
    hashes: InForceHashes
    settings: StreamSettings
    clock: Clock
    meter: Meter
    rng: random.Random
    lines: Rarely

    def log(self, level: int, what: str, fields: dict[str, Any], *, exc_info: bool = False) -> None:
        """A line about `fields`' host, unless it has brought out many of them: then one a minute, with their number."""
        passed_over = self.lines.take((fields["host"], what))
        if passed_over is None:
            return
        if passed_over:
            fields["passed_over"] = passed_over
        _logger.log(level, what, exc_info=exc_info, extra={"fields": fields})

    def goodbye(self, streams: int, reason: str) -> Goodbye:
        """To each of so many streams, with a time to come back: no more come at once than a broker can take."""
        return Goodbye(self.settings.draw_return(streams, self.rng), reason)

    def new_nonce(self) -> str:
        """Of a directive."""
        return f"{self.rng.getrandbits(64):016x}"


@dataclass(slots=True, eq=False)
class ServedStream:
    """A stream that is being served, by the task that made this.

    Attributes:
        caller: The host.
        request_id: Of the call.
        session: What was said, and is to be said.
        heard_time: When the host said something; monotonic, as all times here.
        recorded_time: When it was last recorded that it is there.
        writing_time: Since when a message waits for its reader; 0 if none does.
        age_time: When it has lasted long enough; infinite for never.
        stream_epoch: Its number among the host's streams, as the store gave it to hello; 0 before.
        ended: Whether it was ended, or has ended.
        end_reason: What the host is refused with at its end; None if it ended well.
    """

    caller: Caller
    request_id: str
    _write: Callable[[Outgoing], Awaitable[None]]
    _context: StreamContext
    session: HostSession = field(default_factory=HostSession)
    heard_time: float = 0.0
    recorded_time: float = 0.0
    writing_time: float = 0.0
    age_time: float = 0.0
    stream_epoch: int = 0
    ended: bool = False
    end_reason: RefusalError | None = None
    _task: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)
    _flushing: asyncio.Task[None] | None = None
    _pumping: asyncio.Task[None] | None = None
    _room: asyncio.Future[None] | None = None

    def __post_init__(self) -> None:
        self.heard_time = self.recorded_time = self._context.clock.monotonic()
        self.age_time = self.heard_time + self._context.settings.draw_age(self._context.rng)

    @property
    def host(self) -> str:
        """The host's identity name."""
        return self.caller.name

    @property
    def hung_up(self) -> bool:
        """Whether it has ended without being ended."""
        return self.ended and self.end_reason is None

    def hear(self) -> None:
        """The host has said something."""
        self.heard_time = self._context.clock.monotonic()

    # What is recorded.

    async def record_hello(self, hello: Hello) -> int:
        """Make durable what hello says, and that the stream is there; the last durable sequence.

        Raises:
            RefusalError: STREAM_DISPLACED, another stream of the host has begun since; STORE_UNAVAILABLE or
                AUDIT_UNAVAILABLE.
        """
        reports = sorted(hello.reports, key=lambda report: report.sequence)
        first = self._record(reports[:_AT_ONCE], names=hello.certificate_names, stream=self._state())
        beginning = asyncio.ensure_future(first)
        try:
            recorded = await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # The host has hung up, and the store may call it connected all the same.
            self._context.recorder.note(self._end_begun(beginning))
            raise
        self.stream_epoch = recorded.stream_epoch
        try:
            for start in range(_AT_ONCE, len(reports), _AT_ONCE):
                recorded = await self._record(reports[start : start + _AT_ONCE])
        except BaseException:
            self.record_end()  # it has begun, and gets no place whose end would be seen
            raise
        return recorded.acknowledged_sequence

    async def record_pending(self) -> None:
        """See that what was taken is made durable; waits while too much of it is not."""
        pending = self.session.pending
        if pending and self._flushing is None:
            self._flushing = self._context.recorder.start(self._flush(), "fleet-reports")
        if pending and len(pending) >= self._context.settings.backlog:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def record_seen(self) -> None:
        """Record when the host was last heard."""
        self.recorded_time = self._context.clock.monotonic()
        self._context.recorder.note(self._record_state(self._state()))

    def record_end(self) -> None:
        """Record that the stream has ended, however long the store is away: other brokers go by what it has."""
        self._context.recorder.start(self._record_end(), "fleet-record")

    async def _record_end(self) -> None:
        state, rng = self._state(ended=True), self._context.rng
        await self._context.recorder.insist(lambda: self._record_state(state), lambda count: RETRY.wait(count, rng))

    async def _record_state(self, state: HostStream) -> None:
        try:
            await self._context.recorder.store.record_stream(state)
        except RefusalError as error:
            if error.refusal.reason is Reason.STREAM_DISPLACED:
                self.end(error)
            raise

    async def _end_begun(self, beginning: asyncio.Future[RecordedReports]) -> None:
        self.stream_epoch = (await beginning).stream_epoch
        await self._record_end()

    def _state(self, *, ended: bool = False) -> HostStream:
        clock, session = self._context.clock, self.session
        now = clock.now()
        connected = session.connect_time or now
        seen = max(connected, now - timedelta(seconds=clock.monotonic() - self.heard_time))
        return HostStream(
            self.caller.name,
            session.facts,
            self.caller.serial_number,
            self.caller.not_after,
            self.caller.source_ip,
            connected,
            seen,
            now if ended else None,
            session.clock_skew,
            self._context.recorder.store.broker_id,
            self.stream_epoch,
            self.caller.anchor,
        )

    async def _record(
        self, reports: list[Report], *, names: tuple[str, ...] | None = None, stream: HostStream | None = None
    ) -> RecordedReports:
        session = self.session
        return await self._context.recorder.record_reports(
            self.caller,
            session.request_id or self.request_id,
            session.epoch,
            reports,
            names=names,
            stream=stream,
            stream_epoch=self.stream_epoch,
        )

    async def _flush(self) -> None:
        """Make what was taken durable, and acknowledge it; ends when nothing is left."""
        context, failures = self._context, 0
        try:
            while reports := self.session.pending:
                try:
                    recorded = await self._record(list(reports))
                except RefusalError as error:
                    if error.refusal.reason is Reason.STREAM_DISPLACED:
                        self.end(error)
                        return
                    context.meter.count(metrics.REPORTS, result="failed")
                    failures += 1
                    if self.ended or len(reports) >= context.settings.backlog:
                        self.end(error)
                        return
                    await context.clock.sleep(RETRY.wait(failures, context.rng))
                    continue
                except Exception:
                    # Taken, never durable: the host keeps it, and says it again on its next stream.
                    _logger.exception("could not record a host's reports", extra={"fields": {"host": self.host}})
                    context.meter.count(metrics.REPORTS, result="failed")
                    self.end(failed())
                    return
                failures = 0
                self.session.made_durable(recorded.acknowledged_sequence)
                self._make_room()
                self.wake()
        finally:
            self._flushing = None
            self._make_room()
            self.wake()

    def _make_room(self) -> None:
        """Let the reader go on."""
        if self._room is not None:
            with contextlib.suppress(asyncio.InvalidStateError):
                self._room.set_result(None)
            self._room = None

    # What is sent.

    def wake(self) -> None:
        """See that what is to be said is said."""
        if self._pumping is None and not self.ended and self.session.has_to_say(self._context.hashes):
            self._pumping = asyncio.create_task(self._pump(), name="fleet-send")

    async def _pump(self) -> None:
        context, session, monotonic = self._context, self.session, self._context.clock.monotonic
        try:
            while (message := session.next_message(monotonic(), context.hashes, context.new_nonce)) is not None:
                self.writing_time = monotonic()
                await self._write(message)
                self.writing_time = 0.0
                if self.ended:
                    return
                if message is session.unanswered:
                    context.meter.count(metrics.DIRECTIVES, result="sent")
                if isinstance(message, Goodbye):
                    self.end()
                    return
        except RefusalError as error:
            self.end(error)
        except ConnectionError:
            self.end()  # what serves the stream learns of it too
        except Exception:  # noqa: BLE001 - logged with its traceback, below
            if not self.ended:
                context.log(logging.ERROR, "could not send a message to a host", {"host": self.host}, exc_info=True)
            self.end()
        finally:
            self._pumping = None

    # The end.

    def end(self, error: RefusalError | None = None) -> None:
        """End the stream: with `error`, or well. The first reason stands."""
        if self.ended:
            return
        self.ended, self.end_reason = True, error
        if error is not None:
            self._context.meter.count(metrics.STREAMS_ENDED, reason=error.refusal.reason.value)
        if self._task is not None:
            self._task.cancel()
        self._make_room()

    def was_ended(self) -> bool:
        """Whether a cancellation that has come is `end`'s, and nobody else's; it is taken back then."""
        return self.ended and self._task is not None and self._task.uncancel() == 0

    async def settle(self) -> None:
        """The host has hung up: what it said is made durable, and what is left is said, as far as that goes quickly."""
        monotonic = self._context.clock.monotonic
        deadline = monotonic() + LAST_WORDS.total_seconds()
        while not self.ended and (busy := {task for task in (self._flushing, self._pumping) if task is not None}):
            left = deadline - monotonic()
            if left <= 0:
                return
            await asyncio.wait(busy, timeout=left)

    def close(self) -> None:
        """Nobody serves the stream any more. What was taken of it is still made durable."""
        self.ended = True
        self._task = None
        self._make_room()  # a message that is going out goes on: a call whose message is cut off can't be refused
