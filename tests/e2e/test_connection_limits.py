"""A broker whose connections are used up, by whoever: hosts that are connected are served, and its own calls go out."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc
import pytest

from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import channel_credentials
from certplane.v1 import certificate_pb2, certificate_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc
from tests.e2e import test_broker_program
from tests.e2e.test_broker_program import serving
from tests.support.broker_files import BrokerFiles
from tests.support.waiting import HANG, blocking_until

pytestmark = pytest.mark.e2e

LIMIT: Final = 256
"""Descriptors of the broker: half of them may be connections."""


@pytest.fixture
def few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker may open few files, and can't raise that."""
    command = ["sh", "-c", f'ulimit -n {LIMIT} && exec "$@"', "sh", sys.executable, "-m", "certplane.broker"]
    monkeypatch.setattr(test_broker_program, "PROGRAM", command)


class Flood:
    """Connections of one enrolled host, each with its handshake done, none with a call."""

    def __init__(self, files: BrokerFiles, port: int) -> None:
        self.port = port
        self.open: list[ssl.SSLSocket] = []
        files.identity().write(files.directory, "flood")
        self.context = ssl.create_default_context(cadata=files.ca.root_pem.decode())
        self.context.load_cert_chain(files.directory / "flood.crt", files.directory / "flood.key")
        self.context.set_alpn_protocols(["h2"])

    def connect(self) -> bool:
        """Whether one more connection is taken: it stays open, and the broker's HTTP/2 settings come."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=HANG)
        try:
            connection = self.context.wrap_socket(plain, server_hostname="localhost")
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            taken = connection.recv(9) != b""
        except OSError:
            plain.close()
            return False
        if taken:
            self.open.append(connection)
        return taken

    def close(self) -> None:
        for connection in self.open:
            connection.close()
        self.open.clear()


@contextmanager
def flood(files: BrokerFiles, port: int) -> Iterator[Flood]:
    flooding = Flood(files, port)
    with contextlib.closing(flooding):
        yield flooding


def get_identity(
    channel: grpc.aio.Channel,
) -> grpc.aio.UnaryUnaryCall[enrollment_pb2.GetIdentityRequest, enrollment_pb2.GetIdentityResponse]:
    stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
    return stub.GetIdentity(enrollment_pb2.GetIdentityRequest(), timeout=HANG)


async def ask_for_a_certificate(channel: grpc.aio.Channel) -> None:
    csr = build_csr(generate_private_key(KeyType.EC_P256), sans=["a.certplane.test", "b.certplane.test"])
    request = certificate_pb2.IssueCertificateRequest(profile="web", csr_pem=csr)
    request.wait_duration.seconds = 0
    await certificate_pb2_grpc.CertificateServiceStub(channel).IssueCertificate(request, timeout=HANG)


@pytest.mark.usefixtures("few_descriptors")
def test_connections_without_end_leave_the_broker_its_own_calls(tmp_path: Path) -> None:
    """Whoever is connected is served, and an order reaches its CA; the next ones come in when there is room again."""
    files = BrokerFiles(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as ca:
        ca.settimeout(HANG)
        files.settings["issuer"]["acme"]["directory_url"] = f"https://127.0.0.1:{ca.getsockname()[1]}/directory"
        files.write()
        with serving(files) as program, flood(files, program.port) as flooding:

            async def use() -> None:
                credentials = channel_credentials(files.ca.root_pem, files.identity().pair)
                async with open_channel(f"https://localhost:{program.port}", credentials) as channel:
                    await get_identity(channel)
                    taken = 0
                    while await asyncio.to_thread(flooding.connect):
                        taken += 1
                        assert taken <= LIMIT, "connections are bounded"
                    assert taken >= LIMIT // 2 - 8
                    assert not await asyncio.to_thread(flooding.connect)
                    await get_identity(channel)
                    await ask_for_a_certificate(channel)
                    connection, _ = await asyncio.to_thread(ca.accept)
                    connection.close()
                    await get_identity(channel)

            asyncio.run(use())
            flooding.close()
            blocking_until(flooding.connect, what="room for another connection")
    assert "Too many open files" not in program.log_path.read_text()


def test_the_limit_of_the_shell_is_the_limit(tmp_path: Path) -> None:
    """What the tests above rest on: the program can't raise a hard limit."""
    script = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    command = ["sh", "-c", f'ulimit -n {LIMIT} && exec "$@"', "sh", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == f"({LIMIT}, {LIMIT})"
