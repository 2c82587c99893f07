"""The broker's end of status streams, scripted: it answers as the protocol says unless a test says otherwise."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from certplane.errors import Refusal
from certplane.rpc.status import grpc_status, status_from_refusal
from certplane.runtime.clock import Clock, SystemClock
from certplane.v1 import renewal_pb2 as pb
from certplane.v1 import renewal_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Answer = pb.StreamRenewalStatusResponse


class Stream:
    """One stream as the broker sees it: what came, and the means to say something and to end it."""

    def __init__(self, context: Context, hello: pb.StreamRenewalStatusRequest.Hello) -> None:
        self.context = context
        self.hello = hello
        self.heartbeats = 0
        self.results: list[pb.StreamRenewalStatusRequest.DirectiveResult] = []
        self.reports: list[pb.StreamRenewalStatusRequest.Report] = []
        self.to_say: asyncio.Queue[Answer | Refusal | grpc.StatusCode | None] = asyncio.Queue()
        self.ended = asyncio.Event()

    def say(self, **message: Any) -> None:
        self.to_say.put_nowait(Answer(**message))

    def end(self, why: Refusal | grpc.StatusCode | None = None) -> None:
        self.to_say.put_nowait(why)

    def direct(
        self,
        nonce: str,
        *renewals: pb.Renewal,
        policy_hash: str = "",
        activations: Sequence[pb.Activation] = (),
    ) -> None:
        directive = Answer.Directive(nonce=nonce, renewals=renewals, policy_hash=policy_hash, activations=activations)
        self.say(directive=directive)


@dataclass
class RenewalServer(renewal_pb2_grpc.RenewalServiceServicer):
    """A servicer. `taken` is every report in the order in which it first came, as a broker counts it.

    Attributes:
        greets: whether hello is answered.
        acknowledges: whether reports are.
        beats: whether heartbeats are answered.
        refusal: ends each new stream at once, if set.
        policy_hash: told in welcome, as `retry_epoch` is.
        directive: said after each welcome.
    """

    clock: Clock = field(default_factory=SystemClock)
    heartbeat: timedelta = timedelta(seconds=60)
    greets: bool = True
    acknowledges: bool = True
    beats: bool = True
    refusal: Refusal | None = None
    policy_hash: str = ""
    retry_epoch: str = ""
    directive: Answer.Directive | None = None
    streams: list[Stream] = field(default_factory=list)
    taken: list[pb.CertificateStatus] = field(default_factory=list)
    acknowledged: dict[str, int] = field(default_factory=dict)
    port: int = 0

    @property
    def last(self) -> Stream:
        return self.streams[-1]

    @contextlib.asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[RenewalServer]:
        """Listen in plain text on loopback."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        renewal_pb2_grpc.add_RenewalServiceServicer_to_server(self, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)

    async def StreamRenewalStatus(self, request_iterator: Any, context: Context) -> AsyncIterator[Answer]:  # noqa: N802
        first = await anext(request_iterator)
        assert first.WhichOneof("message") == "hello"
        if self.refusal is not None:
            await context.abort_with_status(grpc_status(status_from_refusal(self.refusal)))
        stream = Stream(context, first.hello)
        self.streams.append(stream)
        for report in first.hello.reports:
            self._take(stream, report)
        reading = asyncio.create_task(self._read(stream, request_iterator))
        try:
            if self.greets:
                yield self._welcome(stream)
            if self.directive is not None:
                yield Answer(directive=self.directive)
            while True:
                message = await stream.to_say.get()
                if isinstance(message, Answer):
                    yield message
                elif isinstance(message, Refusal):
                    await context.abort_with_status(grpc_status(status_from_refusal(message)))
                elif isinstance(message, grpc.StatusCode):
                    await context.abort(message, "by the script")
                else:
                    return
        finally:
            reading.cancel()
            stream.ended.set()

    async def _read(self, stream: Stream, requests: Any) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "report":
                    self._take(stream, request.report)
                    if self.acknowledges:
                        sequence = self.acknowledged[stream.hello.epoch]
                        stream.say(acknowledgement=Answer.Acknowledgement(sequence=sequence))
                case "heartbeat":
                    stream.heartbeats += 1
                    if self.beats:
                        stream.say(heartbeat=Answer.Heartbeat(broker_time=self.now()))
                case "directive_result":
                    stream.results.append(request.directive_result)

    def _take(self, stream: Stream, report: pb.StreamRenewalStatusRequest.Report) -> None:
        stream.reports.append(report)
        if report.sequence > self.acknowledged.get(stream.hello.epoch, 0):
            self.acknowledged[stream.hello.epoch] = report.sequence
            self.taken.append(report.certificate)

    def _welcome(self, stream: Stream) -> Answer:
        welcome = Answer.Welcome(
            broker_time=self.now(),
            broker_version="9.9.9",
            acknowledged_sequence=self.acknowledged.get(stream.hello.epoch, 0) if self.acknowledges else 0,
            policy_hash=self.policy_hash,
            retry_epoch=self.retry_epoch,
        )
        welcome.heartbeat_interval.FromTimedelta(self.heartbeat)
        return Answer(welcome=welcome)

    def now(self) -> Timestamp:
        stamp = Timestamp()
        stamp.FromDatetime(self.clock.now())
        return stamp
