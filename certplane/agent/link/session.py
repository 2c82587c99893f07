"""One status stream, from hello to its end.

Three things go on beside the reading: one task writes (gRPC takes one message at a time, and none while the broker
doesn't read), one does what costs the disk, acknowledgements and directives, and one keeps the heart beating and
notices a broker that has gone silent. Each has one slot of what is latest, so that a broker that talks too much fills
no memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import grpc

from certplane import __version__
from certplane.agent.link.messages import directed_renewals, epoch_of, hello, report_message
from certplane.agent.link.pacing import Pace
from certplane.agent.model import DirectedRenewal
from certplane.agent.ports import ReportSpool
from certplane.errors import CertplaneError, Reason, Refusal, RefusalError
from certplane.fleet_report.model import HostFacts
from certplane.rpc.failures import words_of
from certplane.rpc.status import refusal_from_error, status_from_refusal
from certplane.rpc.times import span_of, time_of, timestamp
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool
from certplane.runtime.text import printable
from certplane.v1 import renewal_pb2 as pb

Call = grpc.aio.StreamStreamCall[Any, Any]

_HEARTBEAT: Final = timedelta(seconds=60)
_LEAST_HEARTBEAT, _MOST_HEARTBEAT = timedelta(seconds=1), timedelta(hours=1)
"""Whatever the broker says: no busy loop, and a dead connection is noticed the same day."""
_SILENCE: Final = 3
"""Heartbeats without any answer, after which a stream is over (renewal.proto, Welcome)."""
_READ_BURST: Final = 500
_READ_RATE: Final = 100.0
"""Messages at once and a second. A broker says a thing for each report that it is sent, and else next to nothing; what
more it says waits in its own buffers."""
_OBEY_BURST: Final = 20
_OBEY_RATE: Final = 2.0
"""Directives at once and a second: each reads this host's certificates from disk."""
_QUIET: Final = timedelta(minutes=1)
_MOST_HASH: Final = 64
_MOST_REASON: Final = 500
"""Octets of what the broker says at parting that are passed on."""
_PARTING: Final = timedelta(seconds=5)
"""For the broker to end a stream to which it has said goodbye."""

logger = logging.getLogger(__name__)


class DirectiveTaker(Protocol):
    """Does what the broker wants of this host."""

    async def renew(self, renewals: Sequence[DirectedRenewal]) -> None:
        """Keep the renewal times; durable on return, and the certificates concerned have been woken.

        Raises:
            RefusalError: CERTIFICATE_NOT_FOUND; the others have been taken over.
            OperationError: the disk refuses.
        """
        ...

    async def connected(self) -> None:
        """The broker has answered on a new stream: let those try again that could not reach it."""
        ...

    async def policy_changed(self, policy_hash: str) -> None:
        """Another policy may be in force: if so, let those try again that the one before refused."""
        ...

    async def retry_epoch_changed(self, retry_epoch: str) -> None:
        """What the broker refused or failed at may succeed now: if this is another epoch, let all try again."""
        ...


@dataclass(frozen=True, slots=True)
class SessionParts:
    """What a stream works with; all of it outlives the stream.

    `told_time` hears of the broker's time: what it says, and the host's own before and after the exchange.
    """

    names: Collection[str]
    spool: ReportSpool
    directives: DirectiveTaker
    disk: BlockingPool
    clock: Clock
    rng: random.Random
    told_time: Callable[[datetime, datetime, datetime], None]


@dataclass(frozen=True, slots=True)
class End:
    """How a stream ended: `code` is gRPC's, if it failed; `retry_after` the broker's word on when to come back."""

    text: str
    code: grpc.StatusCode | None = None
    refusal: Refusal | None = None
    retry_after: timedelta | None = None
    goodbye: bool = False

    @property
    def is_lost(self) -> bool:
        """Whether the broker's own word didn't reach us.

        A call that the broker ends while hello is being written has, in grpc.aio, only this status of its own.
        """
        return (
            self.code is grpc.StatusCode.INTERNAL and self.refusal is None and "Internal error from Core" in self.text
        )


class Session:
    """One stream; `run` once.

    Args:
        call: the RPC, on a channel that is connected.
        parts: see there.
        patience: for the answer to hello.
        caution: how long to wait for a refusal before hello is written; see `End.is_lost`.
        on_welcome: called when the broker has answered, with its version.
        on_taken_over: called when what welcome told, an acknowledgement or a directive has been taken over.
    """

    def __init__(
        self,
        call: Call,
        parts: SessionParts,
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
        self._epoch = parts.spool.epoch
        self._sent = 0
        self._asked_time = parts.clock.now()
        self._heard_at = parts.clock.monotonic()
        self._interval = _HEARTBEAT
        self._beat = False
        self._acknowledged = 0
        self._policy_hash = ""
        self._retry_epoch = ""
        self._refused: dict[str, float] = {}
        self._reading = Pace(_READ_BURST, _READ_RATE, parts.clock)
        self._obeying = Pace(_OBEY_BURST, _OBEY_RATE, parts.clock)
        self._directive: pb.StreamRenewalStatusResponse.Directive | None = None
        self._result: pb.StreamRenewalStatusRequest.DirectiveResult | None = None
        self._to_write, self._to_do = asyncio.Event(), asyncio.Event()
        self._end: End | None = None
        self.directed = False
        """Whether a directive has been taken over, or refused."""

    def report(self) -> None:
        """There are new reports."""
        self._to_write.set()

    async def run(self) -> End:
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

    async def _say_hello(self) -> End | None:
        """Hello and welcome; the end, if that came instead."""
        parts = self._parts
        if self._caution:
            await self._await_refusal()
        self._asked_time = parts.clock.now()
        message, self._sent = hello(
            request_id=secrets.token_hex(16),
            facts=HostFacts(agent_version=__version__),
            epoch=self._epoch,
            names=list(parts.names),
            reports=parts.spool.reports(),
            host_time=self._asked_time,
        )
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # reading says why
            await self._call.write(message)
        answer = await self._next()
        if isinstance(answer, End):
            return answer
        if answer.WhichOneof("message") == "goodbye":
            return self._goodbye(answer.goodbye)
        if answer.WhichOneof("message") != "welcome":
            return End("the broker didn't answer hello")
        welcome = answer.welcome
        self._hear(welcome.broker_time)
        interval = span_of(welcome.heartbeat_interval) or _HEARTBEAT
        self._interval = min(max(interval, _LEAST_HEARTBEAT), _MOST_HEARTBEAT)
        self._acknowledged = welcome.acknowledged_sequence
        self._policy_hash = printable(welcome.policy_hash, _MOST_HASH)
        self._retry_epoch = epoch_of(welcome.retry_epoch)
        self._sent = max(self._sent, welcome.acknowledged_sequence)
        self._to_do.set()
        self._to_write.set()
        self._on_welcome(welcome.broker_version)
        return None

    async def _await_refusal(self) -> None:
        waits = [asyncio.ensure_future(wait) for wait in (self._call.code(), self._parts.clock.sleep(self._caution))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _lose_patience(self) -> None:
        await self._parts.clock.sleep(self._patience)
        self._finish(End("the broker didn't answer hello in time"))

    async def _read(self) -> End:
        while True:
            message = await self._next()
            if isinstance(message, End):
                return message
            match message.WhichOneof("message"):
                case "acknowledgement":
                    self._acknowledged = max(self._acknowledged, message.acknowledgement.sequence)
                    self._to_do.set()
                case "directive":
                    self._directive = message.directive
                    self._to_do.set()
                case "heartbeat":
                    self._hear(message.heartbeat.broker_time)
                case "goodbye":
                    return await self._part(message.goodbye)
                case _:  # a newer broker's, or a second welcome: nothing that must be understood
                    pass

    async def _next(self) -> pb.StreamRenewalStatusResponse | End:
        """The next message, or how the stream ended."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            return self._end or _end_of(error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return self._end or End("the connection was closed")  # gRPC cancels those who wait for it then
        if isinstance(message, pb.StreamRenewalStatusResponse):
            self._heard_at = self._parts.clock.monotonic()
            await self._reading.take()
            return message
        return self._end or End("the broker ended the stream")

    async def _part(self, goodbye: pb.StreamRenewalStatusResponse.Goodbye) -> End:
        """Let the broker end the stream, so that what it has acknowledged meanwhile still arrives."""
        end = self._goodbye(goodbye)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
            async with asyncio.timeout(_PARTING.total_seconds()):
                await self._call.done_writing()
                while isinstance(await self._next(), pb.StreamRenewalStatusResponse):
                    pass
        return end

    def _goodbye(self, goodbye: pb.StreamRenewalStatusResponse.Goodbye) -> End:
        text = printable(goodbye.reason, _MOST_REASON) or "no reason given"
        return End(f"the broker said goodbye: {text}", retry_after=span_of(goodbye.reconnect_delay), goodbye=True)

    def _hear(self, broker_time: Any) -> None:
        told = time_of(broker_time)
        if told is not None:
            self._parts.told_time(told, self._asked_time, self._parts.clock.now())

    async def _write(self) -> None:
        """The only one who writes after hello."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # reading says why
            while True:
                await self._to_write.wait()
                self._to_write.clear()
                result, self._result = self._result, None
                if result is not None:
                    await self._call.write(pb.StreamRenewalStatusRequest(directive_result=result))
                if self._beat:
                    self._beat, self._asked_time = False, self._parts.clock.now()
                    beat = pb.StreamRenewalStatusRequest.Heartbeat(host_time=timestamp(self._asked_time))
                    await self._call.write(pb.StreamRenewalStatusRequest(heartbeat=beat))
                for report in self._parts.spool.reports(self._sent):
                    await self._call.write(pb.StreamRenewalStatusRequest(report=report_message(report)))
                    self._sent = report.sequence

    async def _beat_on(self) -> None:
        """Heartbeats, spread so that hosts that came together don't beat together."""
        parts = self._parts
        while True:
            await parts.clock.sleep(self._interval * (0.8 + 0.2 * parts.rng.random()))
            silent = timedelta(seconds=parts.clock.monotonic() - self._heard_at)
            if silent > _SILENCE * self._interval:
                self._finish(End(f"the broker was silent for {silent.total_seconds():.0f} s"))
                return
            self._beat = True
            self._to_write.set()

    async def _do(self) -> None:
        """Acknowledgements and directives, one at a time and only the latest of each: both wait for the disk."""
        nonce, answer = "", None
        done = 0
        await self._parts.directives.connected()
        while True:
            await self._to_do.wait()
            self._to_do.clear()
            # Before the acknowledgement, with which a program that only delivers ends the stream.
            if self._policy_hash:
                policy_hash, self._policy_hash = self._policy_hash, ""
                await self._parts.directives.policy_changed(policy_hash)
            if self._retry_epoch:
                retry_epoch, self._retry_epoch = self._retry_epoch, ""
                await self._parts.directives.retry_epoch_changed(retry_epoch)
            if self._acknowledged > done:
                done = self._acknowledged
                await self._parts.disk.run(self._parts.spool.acknowledge, done)
            self._on_taken_over()
            if self._parts.spool.epoch != self._epoch:
                self._finish(End("the reports are counted anew"))
                return
            directive, self._directive = self._directive, None
            if directive is None:
                continue
            if answer is None or directive.nonce != nonce:  # the same one again has the same answer
                await self._obeying.take()
                nonce, answer = directive.nonce, await self._obey(directive)
            self._result = answer
            self._to_write.set()
            self.directed = True
            self._on_taken_over()

    async def _obey(
        self, directive: pb.StreamRenewalStatusResponse.Directive
    ) -> pb.StreamRenewalStatusRequest.DirectiveResult:
        """Take a directive over; the answer says whether that is done, and durable."""
        result = pb.StreamRenewalStatusRequest.DirectiveResult(nonce=directive.nonce)
        try:
            if directive.policy_hash:
                await self._parts.directives.policy_changed(printable(directive.policy_hash, _MOST_HASH))
            if retry_epoch := epoch_of(directive.retry_epoch):
                await self._parts.directives.retry_epoch_changed(retry_epoch)
            await self._parts.directives.renew(directed_renewals(directive))
        except RefusalError as error:
            refusal = error.refusal
        except CertplaneError as error:
            refusal = Refusal(Reason.STORE_UNAVAILABLE, f"this host can't keep the directive: {error}")
        except Exception:  # a fault of ours must not end the stream, nor be taken for an ACK
            logger.exception("a directive of the broker can't be followed")
            refusal = Refusal(Reason.INTERNAL, "this host failed to follow the directive; its log says why")
        else:
            return result
        self._log_refused(refusal)
        result.error.CopyFrom(status_from_refusal(refusal))
        return result

    def _log_refused(self, refusal: Refusal) -> None:
        """A line for each kind of refusal, and no more than one a minute of a kind, however often it is given."""
        now = self._parts.clock.monotonic()
        told = self._refused.get(refusal.reason)
        if told is None or now - told >= _QUIET.total_seconds():
            self._refused[refusal.reason] = now
            text = printable(refusal.message, _MOST_REASON)
            logger.warning("a directive of the broker is refused: %s: %s", refusal.reason, text)
        else:
            logger.debug("a directive of the broker is refused: %s", refusal.reason)

    def _look_at_end(self, task: asyncio.Task[None]) -> None:
        """A fault of ours in one of the tasks ends the stream: half of one would look well and do nothing."""
        if not task.cancelled() and (fault := task.exception()) is not None:
            logger.error("the status stream failed", exc_info=fault)
            self._finish(End("a fault of this agent; its log says more"))

    def _finish(self, end: End) -> None:
        """End the stream from this side; `run` returns `end`."""
        self._end = self._end or end
        self._call.cancel()


def _end_of(error: grpc.aio.AioRpcError) -> End:
    refusal = refusal_from_error(error)
    if refusal is None:
        return End(words_of(error), error.code())
    return End(f"{refusal.reason}: {refusal.message}", error.code(), refusal, refusal.retry_after)
