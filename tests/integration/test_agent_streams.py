"""The agent's status stream against the broker's own edge and hub, over real mTLS: what the two make of each other."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from typing_extensions import override

from certplane.agent.link.open_stream import StreamParts
from certplane.agent.link.state import LinkPhase, LinkState
from certplane.agent.link.stream import StatusStream
from certplane.agent.reporting.spool import FileReportSpool
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import channel_credentials
from certplane.runtime.clock import SystemClock
from certplane.runtime.pool import BlockingPool
from tests.support.agent_streams import OneBroker, Taker
from tests.support.ca import Leaf, PrivateCa
from tests.support.edge import HOST, EdgeServer, serve_edge
from tests.support.waiting import until

pytestmark = pytest.mark.integration


class Agent(OneBroker):
    """A host's end: a spool, a stream, and the identity in use."""

    def __init__(self, folder: Path, edge: EdgeServer, identity: Leaf) -> None:
        super().__init__()
        self.edge = edge
        self.opened: list[grpc.aio.Channel] = []
        self.disk = BlockingPool("disk", 1)
        self.spool = FileReportSpool(folder / "reports", names=["web"], new_epoch=lambda: "e1")
        self.taker = Taker()
        clock = SystemClock()
        parts = StreamParts(
            names=["web", "identity"],
            spool=self.spool,
            directives=self.taker,
            disk=self.disk,
            clock=clock,
            rng=random.Random(1),
            told_time=lambda *_: None,
        )

        async def forget(_: LinkState) -> None: ...

        self.stream = StatusStream(self, parts, patience=timedelta(seconds=10), save=forget)
        loop = asyncio.get_running_loop()
        self.spool.listen(lambda: loop.call_soon_threadsafe(self.stream.report))
        self.use(identity)

    @property
    @override
    def channel(self) -> grpc.aio.Channel:
        return self.opened[-1]

    def use(self, identity: Leaf) -> None:
        credentials = channel_credentials(self.edge.ca.root_pem, identity.pair)
        self.opened.append(open_channel(self.edge.url, credentials))
        self.stream.channel_changed()

    async def add(self, state: CertificateState, version: int = 1) -> None:
        now = SystemClock().now()
        held = HeldCertificate(f"1{version}", now, now + timedelta(days=90), f"c{version}", version)
        report = CertificateStatus(
            "web", state, update_time=now, profile="web", dns_names=("web.example",), issued=held, installed=held
        )
        await self.disk.run(self.spool.add, report)

    @property
    def told(self) -> bool:
        return self.spool.unacknowledged == 0

    @property
    def connected(self) -> bool:
        return self.stream.state.phase is LinkPhase.CONNECTED


@contextlib.asynccontextmanager
async def agent_of(folder: Path, edge: EdgeServer, identity: Leaf) -> AsyncIterator[Agent]:
    agent = Agent(folder, edge, identity)
    task = asyncio.create_task(agent.stream.run())
    try:
        yield agent
    finally:
        task.cancel()
        await asyncio.wait([task])
        for channel in agent.opened:
            await channel.close()
        agent.disk.close()


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


async def test_each_step_arrives_and_is_acknowledged(ca: PrivateCa, tmp_path: Path) -> None:
    """What the spool makes is what the broker's checks let in; and welcome tells the policy and the retry epoch."""
    async with serve_edge(ca) as edge, agent_of(tmp_path, edge, ca.issue([HOST])) as agent:
        await agent.add(CertificateState.WAITING)
        await until(lambda: agent.told)
        for state in CertificateState:
            await agent.add(state)
        await until(lambda: agent.told)
        record = await edge.stores.fleet.get_host(HOST)
        assert record is not None
        assert record.acknowledged_sequence == agent.spool.reports()[-1].sequence
        (web,) = [each for each in record.certificates if each.name == "web"]
        assert web.state.value == agent.spool.reports()[-1].certificate.state.value
        assert agent.taker.hashes == [edge.policy.current.hash]
        (epoch,) = agent.taker.epochs
        assert epoch


async def test_a_rotation_displaces_nothing_of_its_own_and_loses_nothing(ca: PrivateCa, tmp_path: Path) -> None:
    """A new identity's stream takes over while reports are made, and the broker counts no second holder."""
    first, second = ca.issue([HOST]), ca.issue([HOST])
    async with serve_edge(ca) as edge, agent_of(tmp_path, edge, first) as agent:
        await until(lambda: agent.connected)
        await agent.add(CertificateState.DUE)
        agent.use(second)
        await agent.add(CertificateState.REQUESTING)

        def rotated() -> bool:
            stream = edge.hub.registry.place_of(HOST)
            return stream is not None and stream.caller.serial_number == second.serial_number

        await until(lambda: rotated() and len(edge.hub.registry) == 1 and agent.told)
        await agent.add(CertificateState.WAITING)
        await until(lambda: agent.told)
        record = await edge.stores.fleet.get_host(HOST)
        assert record is not None
        assert record.stream is not None
        assert record.stream.identity_serial_number == second.serial_number
        assert (await edge.view.host(HOST)).displaced_streams == 0
        assert agent.stream.state.last_error == ""


async def test_a_restarted_broker_is_found_and_told(ca: PrivateCa, tmp_path: Path) -> None:
    """The same stream object, the same channel: back by itself, with what happened meanwhile, none of it twice."""
    identity = ca.issue([HOST])
    async with contextlib.AsyncExitStack() as stack:
        async with serve_edge(ca) as edge:
            agent = await stack.enter_async_context(agent_of(tmp_path, edge, identity))
            await agent.add(CertificateState.DUE)
            await until(lambda: agent.told)
            address = f"127.0.0.1:{edge.port}"
        await until(lambda: not agent.connected)
        await agent.add(CertificateState.REQUESTING)
        async with serve_edge(ca, address=address) as edge:
            await until(lambda: agent.connected and agent.told)
            record = await edge.stores.fleet.get_host(HOST)
            assert record is not None
            assert record.acknowledged_sequence == agent.spool.reports()[-1].sequence
            for channel in agent.opened:
                await channel.close()
