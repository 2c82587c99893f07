"""Connections that nobody uses: closed after a while, and opened again by whoever wants something."""

import asyncio
import contextlib
import ssl
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from certplane.broker.services import server
from certplane.v1 import enrollment_pb2, enrollment_pb2_grpc
from tests.support.ca import PrivateCa
from tests.support.edge import HOST, serve_edge
from tests.support.http2 import connect, send_call
from tests.support.waiting import HANG

pytestmark = pytest.mark.integration

IDLE = "grpc.max_connection_idle_ms"


def read_to_end(connection: ssl.SSLSocket) -> None:
    """Until the server closes; a connection that it keeps open is a hang."""
    with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
        while connection.recv(4096):
            pass


async def get_identity(channel: grpc.aio.Channel) -> enrollment_pb2.GetIdentityResponse:
    stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
    return await stub.GetIdentity(enrollment_pb2.GetIdentityRequest(), timeout=HANG)


@pytest.mark.parametrize("calls", [0, 1])
async def test_an_idle_connection_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """One that never made a call, and one whose calls have ended; an open call keeps its connection."""
    options = tuple((key, 300 if key == IDLE else value) for key, value in server.SERVER_OPTIONS)
    monkeypatch.setattr(server, "SERVER_OPTIONS", options)
    ca = PrivateCa("internal")
    ca.issue([HOST]).write(tmp_path, "host")
    context = ssl.create_default_context(cadata=ca.root_pem.decode())
    context.load_cert_chain(tmp_path / "host.crt", tmp_path / "host.key")

    def use() -> None:
        with connect(context, edge.port) as connection:
            for _ in range(calls):
                send_call(connection, "/certplane.v1.EnrollmentService/GetIdentity")
            read_to_end(connection)

    async with serve_edge(ca) as edge, edge.channel(ca.issue([HOST])) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=HANG)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        for _ in range(3):
            await asyncio.to_thread(use)
        assert not watch.done()
        assert (await get_identity(channel)).identity.name == HOST
        watch.cancel()


async def test_an_idle_channel_comes_back_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller with something to say once in a while notices nothing but a handshake."""
    options = tuple((key, 100 if key == IDLE else value) for key, value in server.SERVER_OPTIONS)
    monkeypatch.setattr(server, "SERVER_OPTIONS", options)
    ca = PrivateCa("internal")
    async with serve_edge(ca) as edge, edge.channel(ca.issue([HOST])) as channel:
        for _ in range(3):
            await get_identity(channel)
            while channel.get_state() is grpc.ChannelConnectivity.READY:
                await asyncio.wait_for(channel.wait_for_state_change(grpc.ChannelConnectivity.READY), HANG)


def test_what_is_served() -> None:
    """Minutes, not the hours of a connection's age."""
    assert 60_000 <= dict(server.SERVER_OPTIONS)[IDLE] <= 600_000
