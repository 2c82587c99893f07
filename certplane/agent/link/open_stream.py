"""One open status stream: its call is read and written here, by what `session` says; from hello to its end.

Three things go on beside the reading: one task writes (gRPC takes one message at a time, and none while the broker
doesn't read), one does what costs the disk, acknowledgements and directives, and one keeps the heart beating and
notices a broker that has gone silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from certplane import __version__
from certplane.agent.link.answering import DirectiveAnswers, DirectiveTaker
from certplane.agent.link.ending import StreamEnd
from certplane.agent.link.messages import hello
from certplane.agent.link.pacing import Pace
from certplane.agent.link.session import StreamSession
from certplane.agent.ports import ReportSpool
from certplane.fleet_report.model import HostFacts
from certplane.rpc.failures import is_cancelled
from certplane.rpc.times import time_of
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool
from certplane.v1 import renewal_pb2 as pb

Call = grpc.aio.StreamStreamCall[Any, Any]

_READ_BURST: Final = 500
_READ_RATE: Final = 100.0
"""Messages at once and a second. A broker says a thing for each report that it is sent, and else next to nothing; what
more it says waits in its own buffers."""
_PARTING: Final = timedelta(seconds=5)
"""For the broker to end a stream to which it has said goodbye."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamParts:
    """What a stream works with; all of it outlives the stream.

    `told_time` hears of the broker's time: what it says, and the host's own before and after the exchange. `facts`
    reads what the host says of itself, and may block. `trace_of` says below which span a certificate's report belongs.
    """

    names: Collection[str]
    spool: ReportSpool
    directives: DirectiveTaker
    disk: BlockingPool
    clock: Clock
    rng: random.Random
    told_time: Callable[[datetime, datetime, datetime], None]
    facts: Callable[[], HostFacts] = lambda: HostFacts(agent_version=__version__)
    trace_of: Callable[[str], str] = lambda _: ""


class OpenStream:
    """One stream; `run` once.

    Args:
        call: the RPC, on a channel that is connected.
        parts: see there.
        patience: for the answer to hello.
        caution: how long to wait for a refusal before hello is written; see `StreamEnd.is_lost`.
        on_welcome: called when the broker has answered, with its version.
        on_taken_over: called when what welcome told, an acknowledgement or a directive has been taken over.
    """

    def __init__(
        self,
        call: Call,
        parts: StreamParts,
        *,
        patience: timedelta,
        caution: timedelta = timedelta(),
        on_welcome: Callable[[str], None],
        on_taken_over: Callable[[], None],
    ) -> None:
        self._call = call
        self._parts = parts
        self._patience = patience
        self._caution = caution
        self._on_welcome = on_welcome
        self._on_taken_over = on_taken_over
        self._session = StreamSession(parts.spool.epoch, parts.clock.now())
        self._answers = DirectiveAnswers(parts.directives, parts.clock)
        self._reading = Pace(_READ_BURST, _READ_RATE, parts.clock)
        self._heard_at = parts.clock.monotonic()
        self._to_write, self._to_do = asyncio.Event(), asyncio.Event()
        self._end: StreamEnd | None = None
        self.directed = False
        """Whether a directive has been taken over, or refused."""

    def report(self) -> None:
        """There are new reports."""
        self._to_write.set()

    async def run(self) -> StreamEnd:
        """Speak until the stream ends, whoever ends it. Cancelling it ends the stream."""
        tasks = [asyncio.create_task(self._lose_patience())]
        try:
            end = await self._say_hello()
            if end is None:
                tasks.pop().cancel()
                tasks = [asyncio.create_task(work) for work in (self._write(), self._do(), self._beat_on())]
                for task in tasks:
                    task.add_done_callback(self._look_at_end)
                end = await self._read()
        finally:
            self._call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return end

    async def _say_hello(self) -> StreamEnd | None:
        """Hello and welcome; the end, if that came instead."""
        parts, session = self._parts, self._session
        if self._caution:
            await self._await_refusal()
        session.asked_time = parts.clock.now()
        message, session.sent = hello(
            request_id=secrets.token_hex(16),
            facts=await parts.disk.run(parts.facts),
            epoch=session.epoch,
            names=list(parts.names),
            reports=parts.spool.reports(),
            host_time=session.asked_time,
        )
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # reading says why
            await self._call.write(message)
        answer = await self._next()
        if isinstance(answer, StreamEnd):
            return answer
        match answer.WhichOneof("message"):
            case "welcome":
                self._hear_time(answer.welcome.broker_time)
                session.welcome(answer.welcome)
                self._to_do.set()
                self._to_write.set()
                self._on_welcome(answer.welcome.broker_version)
                return None
            case "goodbye":
                return StreamEnd.by_goodbye(answer.goodbye)
            case _:
                return StreamEnd("the broker didn't answer hello")

    async def _await_refusal(self) -> None:
        waits = [asyncio.ensure_future(wait) for wait in (self._call.code(), self._parts.clock.sleep(self._caution))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _lose_patience(self) -> None:
        await self._parts.clock.sleep(self._patience)
        self._finish(StreamEnd("the broker didn't answer hello in time", unwell=True))

    async def _read(self) -> StreamEnd:
        while True:
            message = await self._next()
            if isinstance(message, StreamEnd):
                return message
            match message.WhichOneof("message"):
                case "acknowledgement":
                    self._session.acknowledge(message.acknowledgement.sequence)
                    self._to_do.set()
                case "directive":
                    self._session.direct(message.directive)
                    self._to_do.set()
                case "heartbeat":
                    self._hear_time(message.heartbeat.broker_time)
                case "goodbye":
                    return await self._part(message.goodbye)
                case _:  # a newer broker's, or a second welcome: nothing that must be understood
                    pass

    async def _next(self) -> pb.StreamRenewalStatusResponse | StreamEnd:
        """The next message, or how the stream ended."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            return self._end or StreamEnd.by_error(error)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            return self._end or StreamEnd("the connection was closed")  # gRPC cancels those who wait for it then
        if isinstance(message, pb.StreamRenewalStatusResponse):
            self._heard_at = self._parts.clock.monotonic()
            await self._reading.take()
            return message
        return self._end or StreamEnd("the broker ended the stream")

    async def _part(self, goodbye: pb.StreamRenewalStatusResponse.Goodbye) -> StreamEnd:
        """Let the broker end the stream, so that what it has acknowledged meanwhile still arrives."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
            async with asyncio.timeout(_PARTING.total_seconds()):
                await self._call.done_writing()
                while isinstance(await self._next(), pb.StreamRenewalStatusResponse):
                    pass
        return StreamEnd.by_goodbye(goodbye)

    def _hear_time(self, broker_time: Timestamp) -> None:
        told = time_of(broker_time)
        if told is not None:
            self._parts.told_time(told, self._session.asked_time, self._parts.clock.now())

    async def _write(self) -> None:
        """The only one who writes after hello."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # reading says why
            while True:
                await self._to_write.wait()
                self._to_write.clear()
                parts = self._parts
                for message in self._session.messages(parts.spool.reports, parts.clock.now, parts.trace_of):
                    await self._call.write(message)

    async def _beat_on(self) -> None:
        """Heartbeats, spread so that hosts that came together don't beat together."""
        clock, session = self._parts.clock, self._session
        while True:
            await clock.sleep(session.interval * (0.8 + 0.2 * self._parts.rng.random()))
            silence = timedelta(seconds=clock.monotonic() - self._heard_at)
            if session.is_silent(silence):
                self._finish(StreamEnd(f"the broker was silent for {silence.total_seconds():.0f} s", unwell=True))
                return
            session.beat()
            self._to_write.set()

    async def _do(self) -> None:
        """Acknowledgements and directives, one at a time and only the latest of each: both wait for the disk."""
        parts, session = self._parts, self._session
        await parts.directives.connected()
        while True:
            await self._to_do.wait()
            self._to_do.clear()
            # Before the acknowledgement, with which a program that only delivers ends the stream.
            if policy_hash := session.take_policy_hash():
                await parts.directives.policy_changed(policy_hash)
            if retry_epoch := session.take_retry_epoch():
                await parts.directives.retry_epoch_changed(retry_epoch)
            if acknowledged := session.take_acknowledged():
                await parts.disk.run(parts.spool.acknowledge, acknowledged)
            self._on_taken_over()
            if parts.spool.epoch != session.epoch:
                self._finish(StreamEnd("the reports are counted anew"))
                return
            if (directive := session.take_directive()) is not None:
                session.answer(await self._answers.answer(directive))
                self._to_write.set()
                self.directed = True
                self._on_taken_over()

    def _look_at_end(self, task: asyncio.Task[None]) -> None:
        """A bug in one of the tasks ends the stream: half of one would look well and do nothing."""
        if not task.cancelled() and (fault := task.exception()) is not None:
            logger.error("the status stream failed", exc_info=fault)
            self._finish(StreamEnd("a bug of this agent; its log says more"))

    def _finish(self, end: StreamEnd) -> None:
        """End the stream from this side; `run` returns `end`."""
        self._end = self._end or end
        self._call.cancel()
