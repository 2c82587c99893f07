"""A host's status stream over the generated stub alone: what it says and hears is the test's."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from datetime import UTC, datetime
from typing import Any

import grpc

from certplane.v1 import renewal_pb2 as pb
from certplane.v1 import renewal_pb2_grpc
from tests.support.waiting import HANG, no_hang

Response = pb.StreamRenewalStatusResponse


def status(name: str = "web", state: str = "SERVING", **fields: Any) -> pb.CertificateStatus:
    """A certificate's status; `serial` is of what is issued, installed and served."""
    serial = fields.pop("serial", "3e7")
    held = pb.CertificateStatus.Held(serial_number=serial, certificate_id=fields.pop("certificate_id", ""))
    values = {"issued": held, "installed": held, "served": held, **fields}
    return pb.CertificateStatus(name=name, state=pb.CertificateStatus.State.Value(f"STATE_{state}"), **values)


def report(sequence: int, name: str = "web", state: str = "SERVING", **fields: Any) -> Any:
    """A report."""
    return pb.StreamRenewalStatusRequest.Report(sequence=sequence, certificate=status(name, state, **fields))


class HostStreamClient:
    """One stream; reads what comes in the order in which it comes."""

    def __init__(self, channel: grpc.aio.Channel, epoch: str = "epoch-1") -> None:
        self.call: Any = renewal_pb2_grpc.RenewalServiceStub(channel).StreamRenewalStatus(timeout=HANG)
        self.epoch = epoch
        self.sequences = itertools.count(1)
        self.last = 0

    async def say(self, **message: Any) -> None:
        """Say something; should the stream end meanwhile, reading tells why."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self.call.write(pb.StreamRenewalStatusRequest(**message))

    async def hello(self, *names: str, **fields: Any) -> pb.StreamRenewalStatusResponse.Welcome:
        """Say hello, and read the welcome."""
        await self.say_hello(*names, **fields)
        welcome = (await self.read()).welcome
        assert welcome.broker_version
        return welcome

    async def say_hello(self, *names: str, **fields: Any) -> None:
        values: dict[str, Any] = {
            "agent_version": "0.1.0",
            "epoch": self.epoch,
            "certificate_names": names or ("identity", "web"),
            "host_time": datetime.now(UTC),
            **fields,
        }
        await self.say(hello=pb.StreamRenewalStatusRequest.Hello(**values))

    async def report(self, name: str = "web", state: str = "SERVING", **fields: Any) -> int:
        """Report with the next sequence."""
        self.last = next(self.sequences)
        await self.say(report=report(self.last, name, state, **fields))
        return self.last

    async def heartbeat(self) -> None:
        await self.say(heartbeat=pb.StreamRenewalStatusRequest.Heartbeat(host_time=datetime.now(UTC)))

    async def answer(self, nonce: str, error: Any = None) -> None:
        await self.say(directive_result=pb.StreamRenewalStatusRequest.DirectiveResult(nonce=nonce, error=error))

    async def read(self, timeout: float = 10) -> Response:
        """The next message."""
        async with asyncio.timeout(timeout):
            message = await self.call.read()
        assert message is not grpc.aio.EOF, await self.call.code()
        return message  # type: ignore[no-any-return]

    async def acknowledged(self, sequence: int) -> list[Response]:
        """Read until the sequence is acknowledged; what else came."""
        others = []
        while True:
            message = await self.read()
            if message.WhichOneof("message") != "acknowledgement":
                others.append(message)
            elif message.acknowledgement.sequence >= sequence:
                return others

    async def directive(self) -> Any:
        """The next directive; other messages are passed over."""
        while True:
            message = await self.read()
            if message.WhichOneof("message") == "directive":
                return message.directive

    async def end(self) -> None:
        """Read on to the end; raises what the stream ended with."""
        async with no_hang():
            while await self.call.read() is not grpc.aio.EOF:
                pass
        if await self.call.code() is not grpc.StatusCode.OK:
            async for _ in self.call:  # raises the call's error
                pass
