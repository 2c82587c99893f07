"""Hosts that report to brokers that are killed or stand still, as streams of this process over the generated stub.

They do what an agent must: keep what wasn't acknowledged, come back after a jittered wait (to whichever broker chance
names), and say it again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import grpc

from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import KeyPair, channel_credentials
from certplane.v1 import renewal_pb2 as pb
from certplane.v1 import renewal_pb2_grpc
from tests.support.fleet import LOST
from tests.support.streams import report
from tests.support.waiting import HANG

WINDOW = 4
_ELSEWHERE = frozenset({*LOST, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED})
"""How a stream ends that goes on at another broker: lost, refused for now, displaced, or given up by the host itself."""


class ReportingHost:
    """A host that has so many things to say, each of another certificate in use.

    Args:
        name: its identity's, and that of its connections.
        urls: of the brokers.
        roots: PEM of who vouches for the brokers.
        identity: of the host.
        rng: which broker, and when.
        reports: how many.
        patience: seconds without an answer after which it goes elsewhere, as an agent does that a heartbeat isn't
            answered; it needs one only where a broker may stand still.
    """

    def __init__(
        self,
        name: str,
        urls: Sequence[str],
        roots: bytes,
        identity: KeyPair,
        rng: random.Random,
        *,
        reports: int,
        patience: float = HANG,
    ) -> None:
        credentials = channel_credentials(roots, identity)
        # Another channel option is another connection.
        self.channels = [open_channel(url, credentials, user_agent=name) for url in urls]
        self.rng = rng
        self.reports = reports
        self.patience = patience
        self.unacknowledged: dict[int, Any] = {}
        self.said = 0
        self.acknowledged = 0
        self.streams = 0

    async def close(self) -> None:
        """End its connections."""
        for channel in self.channels:
            await channel.close()

    async def run(self) -> None:
        """Report until all is acknowledged."""
        while self.acknowledged < self.reports:
            try:
                await self._stream(self.rng.choice(self.channels))
            except TimeoutError:
                pass
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                # The second is a write on a call that has ended.
                if isinstance(error, grpc.aio.AioRpcError) and error.code() not in _ELSEWHERE:
                    raise
            await asyncio.sleep(self.rng.random() / 2)

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        alone = len(self.channels) == 1
        call: Any = renewal_pb2_grpc.RenewalServiceStub(channel).StreamRenewalStatus(wait_for_ready=alone)
        try:
            await self._converse(call)
        finally:
            call.cancel()

    async def _converse(self, call: Any) -> None:
        hello = pb.StreamRenewalStatusRequest.Hello(
            agent_version="0.1.0",
            epoch="epoch-1",
            certificate_names=["web"],
            reports=list(self.unacknowledged.values()),
            host_time=datetime.now(UTC),
        )
        async with asyncio.timeout(self.patience):
            await call.write(pb.StreamRenewalStatusRequest(hello=hello))
        while (message := await self._read(call)) is not grpc.aio.EOF:
            if message.HasField("welcome"):
                self.streams += 1
                self._acknowledge(message.welcome.acknowledged_sequence)
            elif message.HasField("acknowledgement"):
                self._acknowledge(message.acknowledgement.sequence)
            if self.acknowledged == self.reports:
                return
            while self.said < self.reports and len(self.unacknowledged) < WINDOW:
                self.said += 1
                self.unacknowledged[self.said] = report(self.said, serial=f"{self.said:x}")
                await asyncio.sleep(self.rng.random() / 10)
                await call.write(pb.StreamRenewalStatusRequest(report=self.unacknowledged[self.said]))

    async def _read(self, call: Any) -> Any:
        async with asyncio.timeout(self.patience):
            return await call.read()

    def _acknowledge(self, sequence: int) -> None:
        assert sequence >= self.acknowledged, "what was acknowledged stays"
        assert sequence <= self.said
        self.acknowledged = sequence
        self.unacknowledged = {each: kept for each, kept in self.unacknowledged.items() if each > sequence}


def has_acknowledged(hosts: Sequence[ReportingHost], enough: int) -> bool:
    """Whether so many reports of all hosts together have been acknowledged."""
    return sum(host.acknowledged for host in hosts) >= enough
