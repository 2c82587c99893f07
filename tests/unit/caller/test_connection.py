"""Calls over a connection, at brokers that tests script: what is repeated, where, and what the caller is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest

from certplane.caller.calls import BrokerCalls
from certplane.caller.connection import Connection
from certplane.caller.unreachable import CallerFiles
from certplane.errors import ConfigurationError, OperationError, Reason, Refusal, RefusalError
from certplane.rpc.credentials import KeyPair, ServerTls
from certplane.rpc.status import grpc_status, status_from_refusal
from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import CertificateAuthority
from certplane.v1 import enrollment_pb2 as pb
from certplane.v1 import enrollment_pb2_grpc
from tests.fakes.clock import ManualClock
from tests.support.waiting import no_hang, until, until_in_time

SERVERS, CALLERS = CertificateAuthority.root("Servers"), CertificateAuthority.root("Callers")
SECOND = timedelta(seconds=1)


class Scripted(enrollment_pb2_grpc.EnrollmentServiceServicer):
    """A broker that refuses as often as `refusals` has one, or cancels for None; `calls` has the certificate of each call."""

    def __init__(self, *refusals: Refusal | None) -> None:
        self.refusals = list(refusals)
        self.calls: list[bytes] = []
        self.port = 0

    async def GetIdentity(self, request: Any, context: Any) -> pb.GetIdentityResponse:  # noqa: N802
        self.calls.append(context.auth_context()["x509_pem_cert"][0])
        if self.refusals:
            refusal = self.refusals.pop(0)
            if refusal is None:
                await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
            await context.abort_with_status(grpc_status(status_from_refusal(refusal, request_id=request.request_id)))
        answer = pb.GetIdentityResponse(identity=pb.Identity(name="api", kind=pb.Identity.KIND_SERVICE))
        answer.broker_time.FromDatetime(SystemClock().now())
        answer.identity.expire_time.FromDatetime(SystemClock().now())
        return answer

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Scripted]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(self, server)
        made = SERVERS.issue("broker", ["localhost"])
        tls = ServerTls(KeyPair(made.key_pem, made.chain_pem), CALLERS.pem)
        self.port = server.add_secure_port(f"127.0.0.1:{self.port}", tls.credentials())
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)


class World:
    """A caller of some brokers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock(SystemClock().now())
        self.files = CallerFiles(folder / "me.crt", folder / "me.key", folder / "ca.pem")
        self.files.server_cas.write_bytes(SERVERS.pem)
        self.enroll()

    def enroll(self, **changes: Any) -> None:
        CALLERS.issue("api", ["api.certplane.test"], **changes).write(self.folder, "me")

    @asynccontextmanager
    async def calling(
        self, *brokers: Scripted, port: int = 1, timeout: timedelta = 30 * SECOND
    ) -> AsyncIterator[BrokerCalls]:
        async with AsyncExitStack() as stack:
            for broker in brokers:
                await stack.enter_async_context(broker.running())
            urls = [f"https://localhost:{broker.port}" for broker in brokers] or [f"https://localhost:{port}"]
            connection = Connection(urls, self.files, timeout=timeout, clock=self.clock, rng=random.Random(1))
            await connection.open()
            stack.push_async_callback(connection.close)
            async with no_hang():
                yield BrokerCalls(connection)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_broker_that_drains(world: World) -> None:
    """The call goes on at the other one at once, and later calls too."""
    draining = [Refusal(Reason.DRAINING, "stopping", 10 * SECOND)]
    brokers = [Scripted(*draining), Scripted(*draining)]
    async with world.calling(*brokers) as calls:
        first = next(broker for broker in brokers if broker is not None)
        brokers[1].refusals.clear()
        brokers[0].refusals[:] = draining * 9
        for _ in range(3):
            assert (await calls.identity()).name == "api"
        assert len(brokers[1].calls) == 3
        assert len(first.calls) <= 1


async def test_all_brokers_drain(world: World) -> None:
    """After a round the call waits as long as the brokers say."""
    brokers = [Scripted(Refusal(Reason.DRAINING, "stopping", 10 * SECOND)) for _ in range(2)]
    async with world.calling(*brokers) as calls:
        before = world.clock.now()
        asking = asyncio.create_task(calls.identity())
        await until_in_time(world.clock, asking.done)
        assert (await asking).name == "api"
        assert world.clock.now() - before >= 10 * SECOND


async def test_a_limit(world: World) -> None:
    """RetryInfo is waited for where there is time, and else the refusal is told with it."""
    limited = Scripted(Refusal(Reason.RATE_LIMITED, "too many", 5 * SECOND))
    async with world.calling(limited) as calls:
        before = world.clock.now()
        asking = asyncio.create_task(calls.identity())
        await until_in_time(world.clock, asking.done)
        assert 5 * SECOND <= world.clock.now() - before <= 8 * SECOND
        limited.refusals = [Refusal(Reason.RATE_LIMITED, "too many", 3600 * SECOND)]
        with pytest.raises(RefusalError) as error:
            await calls.identity()
        assert (error.value.retry_after, len(error.value.request_id)) == (3600 * SECOND, 32)


async def test_a_broker_that_stops_in_the_middle(world: World) -> None:
    """A call that the broker cancels, since it ends, is made again."""
    broker = Scripted(None)
    async with world.calling(broker) as calls:
        asking = asyncio.create_task(calls.identity())
        await until_in_time(world.clock, asking.done)
        assert (await asking).name == "api"
        assert len(broker.calls) == 2


async def test_a_broker_that_is_restarted(world: World) -> None:
    """Each try is a connection of its own, every 2 s or sooner: gRPC's waits between connections hold up no call."""
    knocks: list[float] = []

    def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        knocks.append(world.clock.monotonic())
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as nobody:
        begun, port = world.clock.monotonic(), nobody.sockets[0].getsockname()[1]
        async with world.calling(port=port) as calls:
            asking = asyncio.create_task(calls.identity())
            await until(lambda: asking.done() or world.clock.advance(world.clock.next_wake))
            with pytest.raises(OperationError, match=str(port)):
                await asking
    assert max(after - before for before, after in pairwise([begun, *knocks, begun + 30])) <= 2


async def test_what_a_person_must_change(world: World) -> None:
    """It is told after one call."""
    refusing = Scripted(*[Refusal(Reason.IDENTITY_UNKNOWN, "who?")] * 3)
    async with world.calling(refusing) as calls:
        with pytest.raises(RefusalError, match="who"):
            await calls.identity()
        assert len(refusing.calls) == 1


async def test_a_retired_identity_whose_successor_is_on_disk(world: World) -> None:
    """The refusal of the old certificate makes the client look, and the call is made with the new one."""
    broker = Scripted()
    async with world.calling(broker) as calls:
        await calls.identity()
        world.enroll()
        broker.refusals = [Refusal(Reason.IDENTITY_RETIRED, "an old one")]
        assert (await calls.identity()).name == "api"
        assert len(set(broker.calls)) == 2


async def test_an_identity_that_has_ended(world: World) -> None:
    """It is told as what it is, without waiting."""
    world.enroll(not_before=world.clock.now() - timedelta(days=2), lifetime=timedelta(days=1))
    async with world.calling(Scripted()) as calls:
        with pytest.raises(OperationError, match=r"the identity in .*me\.crt expired at .*; renew it"):
            await calls.identity()


async def test_a_ca_that_is_not_the_brokers(world: World) -> None:
    """The error names the setting to look at."""
    world.files.server_cas.write_bytes(CALLERS.pem)
    async with world.calling(Scripted(), timeout=SECOND) as calls:
        asking = asyncio.create_task(calls.identity())
        await until_in_time(world.clock, asking.done)
        with pytest.raises(OperationError, match=r"broker\.server_ca_bundle"):
            await asking


async def test_a_bundle_that_is_mended(world: World) -> None:
    """The right CA on disk makes the next try succeed, with nothing restarted."""
    world.files.server_cas.write_bytes(CALLERS.pem)
    async with world.calling(Scripted(), timeout=timedelta(hours=1)) as calls:
        asking = asyncio.create_task(calls.identity())
        await until(lambda: world.clock.sleepers)
        world.files.server_cas.write_bytes(SERVERS.pem)
        await until_in_time(world.clock, asking.done)
        assert (await asking).name == "api"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        pytest.param("me.key", b"", "is empty", id="empty-key"),
        pytest.param("me.crt", b"no certificate", "holds no certificate", id="no-certificate"),
        pytest.param("ca.pem", b"", "ca.pem", id="empty-bundle"),
    ],
)
async def test_files_that_can_not_be_used(world: World, name: str, content: bytes, said: str) -> None:
    """Opening names the file and what is wrong with it."""
    (world.folder / name).write_bytes(content)
    connection = Connection(["https://localhost:1"], world.files, timeout=SECOND, clock=world.clock)
    with pytest.raises(ConfigurationError, match=said):
        await connection.open()
    await connection.close()


async def test_a_key_that_others_may_read(world: World) -> None:
    """It is refused, with the line that mends it."""
    world.files.key.chmod(0o644)
    connection = Connection(["https://localhost:1"], world.files, timeout=SECOND, clock=world.clock)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        await connection.open()
    await connection.close()


async def test_a_client_that_is_not_open(world: World) -> None:
    """That is a mistake of the program, and told as one."""
    connection = Connection(["https://localhost:1"], world.files, timeout=SECOND, clock=world.clock)
    with pytest.raises(RuntimeError, match="async with"):
        await BrokerCalls(connection).identity()
