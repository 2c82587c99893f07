"""A host as several edges see it: the agent's own link and stream over real mTLS, without its certificates' lives."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from certplane.agent.link.broker import GrpcBroker
from certplane.agent.link.open_stream import StreamParts
from certplane.agent.link.state import LinkPhase, LinkState
from certplane.agent.link.stream import StatusStream
from certplane.agent.model import IssuedCertificate
from certplane.agent.reporting.spool import FileReportSpool
from certplane.fleet_report.model import CertificateState, CertificateStatus
from certplane.runtime.clock import SystemClock
from certplane.runtime.pool import BlockingPool
from tests.support.agent_streams import Taker
from tests.support.ca import PrivateCa
from tests.support.edge import HOST, EdgeServer
from tests.support.identities import store
from tests.support.waiting import HANG


class Host:
    """A host's end: the link to several brokers, and the stream that follows it."""

    def __init__(self, folder: Path, ca: PrivateCa, *urls: str) -> None:
        leaf = ca.issue([HOST])
        chain = leaf.chain_pem.decode().removeprefix(leaf.certificate_pem.decode())
        self.identity = store(folder / "identity", 1, IssuedCertificate(leaf.certificate_pem.decode(), chain), leaf.key)
        self.disk = BlockingPool("disk", 1)
        (folder / "server-ca.crt").write_bytes(ca.root_pem)
        self.clock = SystemClock()
        self.link = GrpcBroker(
            urls,
            server_ca_bundle=folder / "server-ca.crt",
            timeout=timedelta(seconds=HANG),
            clock=self.clock,
            disk=self.disk,
            moved=self.moved,
        )
        self.link._choice.url = urls[0]
        self.spool = FileReportSpool(folder / "reports", names=["web"], new_epoch=lambda: "e1")
        parts = StreamParts(
            names=["web", "identity"],
            spool=self.spool,
            directives=Taker(),
            disk=self.disk,
            clock=self.clock,
            rng=random.Random(1),
            told_time=lambda *_: None,
        )

        async def forget(_: LinkState) -> None: ...

        self.stream = StatusStream(self.link, parts, patience=timedelta(seconds=HANG), save=forget)
        loop = asyncio.get_running_loop()
        self.spool.listen(lambda: loop.call_soon_threadsafe(self.stream.report))

    def moved(self) -> None:
        self.stream.channel_changed()

    async def add(self, state: CertificateState) -> None:
        report = CertificateStatus(
            "web", state, update_time=self.clock.now(), profile="web", dns_names=("web.example",)
        )
        await self.disk.run(self.spool.add, report)

    def is_at(self, edge: EdgeServer) -> bool:
        """Whether its stream is there, and all that it has to say has been acknowledged."""
        state = self.stream.state
        connected = state.phase is LinkPhase.CONNECTED and state.broker_url == edge.url
        return connected and HOST in edge.hub.registry and not self.spool.unacknowledged


@contextlib.asynccontextmanager
async def host_of(folder: Path, ca: PrivateCa, *urls: str) -> AsyncIterator[Host]:
    host = Host(folder, ca, *urls)
    await host.link.use_identity(host.identity)
    task = asyncio.create_task(host.stream.run())
    try:
        yield host
    finally:
        task.cancel()
        await asyncio.wait([task])
        await host.link.close()
        host.disk.close()
