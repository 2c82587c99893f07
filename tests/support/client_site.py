"""A real broker with a service, and the service's client.yml: for tests and benchmarks of certplane.client.

async with ClientSite.running(folder) as site:
    async with Client.from_config(await site.config()) as client:
        ...
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from certplane.v1 import fleet_pb2, fleet_pb2_grpc
from tests.support.deployed_broker import DeployedBroker
from tests.support.limits import UNLIMITED
from tests.support.waiting import HANG

SERVICE, HOST, OPERATOR = "api.certplane.test", "web1.certplane.test", "admin.certplane.test"
NAME = "api.example.test"
"""Of the profile `api`."""
POLICY: dict[str, Any] = {
    "hosts": {"web1": {"identity": HOST, "profiles": ["web"]}},
    "services": {"api": {"identity": SERVICE, "profiles": ["api", "wide"]}},
    "operators": {"admin": {"identity": OPERATOR, "roles": ["admin", "operator", "viewer"]}},
    "profiles": {
        "web": {"type": "multi_san", "dns_names": ["web.example.test"]},
        "api": {"type": "multi_san", "dns_names": [NAME]},
        "wide": {"type": "multi_san", "dns_names": ["a.api.example.test", "b.api.example.test"]},
    },
}


@dataclass
class ClientSite:
    """A broker, and clients of its identities from files below `folder`."""

    folder: Path
    broker: DeployedBroker

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[ClientSite]:
        """Everything started."""
        async with DeployedBroker.running(folder / "site", POLICY, rate_limits=UNLIMITED) as broker:
            yield cls(folder, broker)

    async def config(self, name: str = SERVICE) -> Path:
        """client.yml of an identity, beside its files."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (await self.broker.identity(name)).write(folder, "identity")
        deployment = self.broker.deployment
        file = folder / "client.yml"
        file.write_text(
            f'broker: {{url: "https://localhost:{deployment.broker_port}", '
            f"server_ca_bundle: {deployment.broker_folder / 'root.crt'}}}\n"
            "identity: {cert: identity.crt, key: identity.key}\n"
        )
        return file

    async def roots(self) -> Path:
        """The public CA's root, for clients of a service."""
        file = self.folder / "public-root.pem"
        file.write_bytes((await self.broker.deployment.pebble.root()).public_bytes(Encoding.PEM))
        return file

    async def request_renewal(self, certificate_id: str) -> None:
        """Ask for a renewal, as an operator."""
        async with self.broker.channel(OPERATOR) as channel:
            stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
            selection = fleet_pb2.Selection(certificate_ids=[certificate_id])
            request = fleet_pb2.RequestRenewalRequest(selection=selection, reason="a test")
            await stub.RequestRenewal(request, timeout=HANG)


@dataclass
class Load:
    """Requests to an HTTPS server, some each over a connection of its own, the others over lasting ones.

    `lost` says of each that failed how; `serials` which certificates were presented; `reached` the rate that this
    machine could send at.
    """

    port: int
    roots: Path
    rate: float = 200.0
    lasting: int = 10
    own_each: int = 2
    reached: float = 0.0
    answered: int = 0
    lost: list[str] = field(default_factory=list)
    serials: set[int] = field(default_factory=set)
    slowest: float = 0.0

    async def run(self, ended: asyncio.Event) -> None:
        """Send at the rate until `ended` is set; every `own_each`th request has a new connection."""
        context = ssl.create_default_context(cafile=self.roots)
        queue: asyncio.Queue[float] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        workers = [asyncio.create_task(self._over_one(context, queue)) for _ in range(self.lasting)]
        single: set[asyncio.Task[None]] = set()
        begun, sent = loop.time(), 0
        while not ended.is_set():
            due = begun + sent / self.rate
            await asyncio.sleep(max(0.0, due - loop.time()))
            if sent % self.own_each and workers:
                queue.put_nowait(due)
            else:
                task = asyncio.create_task(self._alone(context, due))
                single.add(task)
                task.add_done_callback(single.discard)
            sent += 1
            self.reached = sent / (loop.time() - begun)
        await asyncio.gather(*single)
        await queue.join()
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    async def _alone(self, context: ssl.SSLContext, due: float) -> None:
        try:
            reader, writer = await self._connect(context)
            try:
                await self._ask(reader, writer, due)
            finally:
                writer.close()
        except (OSError, EOFError, AssertionError) as error:
            self.lost.append(f"own connection: {error!r}")

    async def _over_one(self, context: ssl.SSLContext, queue: asyncio.Queue[float]) -> None:
        reader, writer = await self._connect(context)
        try:
            while True:
                due = await queue.get()
                try:
                    await self._ask(reader, writer, due)
                except (OSError, EOFError, AssertionError) as error:
                    self.lost.append(f"lasting connection: {error!r}")
                    with contextlib.suppress(OSError):  # the next request is lost too, then
                        reader, writer = await self._connect(context)
                finally:
                    queue.task_done()
        finally:
            writer.close()

    async def _connect(self, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname=NAME)
        found = writer.get_extra_info("ssl_object").getpeercert()
        self.serials.add(int(found["serialNumber"], 16))
        return reader, writer

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, due: float) -> None:
        writer.write(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.0 200 ", b"HTTP/1.1 200 ")), head
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        assert len(await reader.readexactly(length)) == length
        self.answered += 1
        self.slowest = max(self.slowest, asyncio.get_running_loop().time() - due)
