"""What a look at a service finds, on real TLS servers of this machine that behave in every way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.agent.install.probe import TlsProbe, server_name_of
from certplane.agent.model import ServiceView, Version
from certplane.pki.chain import leaf_facts
from certplane.runtime.clock import SystemClock
from tests.support.lineages import LocalIssuer
from tests.support.waiting import until

ISSUER = LocalIssuer()
NAME = "www.example.org"


class Server:
    """A TLS server whose certificate can be changed; `names` is what clients asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str | None] = []
        self.connections = 0
        self.context = self._context()
        self.port = 0

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        def asked(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> None:
            self.names.append(name)

        context.sni_callback = asked
        return context

    def load(self) -> Version:
        """Serve a new certificate."""
        key, certificate = ISSUER.pair(NAME)
        path = self.folder / "pair.pem"
        path.write_bytes(key + certificate.encode())
        self.context.load_cert_chain(path)
        facts = leaf_facts(certificate)
        return Version(
            1, path, (NAME,), facts.serial_number, facts.public_key_sha256, facts.not_before, facts.not_after
        )

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path)
    listening = await asyncio.start_server(server.answer, "127.0.0.1", 0, ssl=server.context)
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    listening.close()
    await listening.wait_closed()


def probe(port: int, *, attempts: int = 1, timeout: float = 5, name: str = NAME) -> TlsProbe:
    return TlsProbe(
        "127.0.0.1",
        port,
        server_name=name,
        timeout=timedelta(seconds=timeout),
        attempts=attempts,
        interval=timedelta(milliseconds=20),
        clock=SystemClock(),
    )


async def test_own_certificate_is_recognised(server: Server) -> None:
    """The leaf is told by serial number and key; the name is asked for; trust and dates don't matter."""
    version = server.load()
    view = await probe(server.port).look(version)
    assert view.well
    assert view.leaf is not None
    assert (view.leaf.serial_number, view.leaf.not_after) == (version.serial_number, version.not_after)
    assert server.names == [NAME]


async def test_another_certificate_is_told(server: Server) -> None:
    """The problem names what is served instead, so that its owner can be found."""
    version = server.load()
    other = server.load()
    view = await probe(server.port).look(version)
    assert not view.well
    assert view.leaf is not None
    assert f"serial {other.serial_number}, until {other.not_after:%Y-%m-%d %H:%M} UTC" in view.problem
    assert NAME in view.problem


async def test_reload_that_takes_a_moment_is_waited_for(server: Server) -> None:
    """The old certificate is asked away: a later attempt sees the new one."""
    server.load()
    looking = asyncio.ensure_future(_look_while_it_changes(server))
    view = await looking
    assert view.well
    assert len(server.names) >= 2


async def _look_while_it_changes(server: Server) -> ServiceView:
    key, certificate = ISSUER.pair(NAME)
    facts = leaf_facts(certificate)
    wanted = Version(
        2, server.folder, (NAME,), facts.serial_number, facts.public_key_sha256, facts.not_before, facts.not_after
    )

    async def reload() -> None:
        await until(lambda: server.names, poll=0.005)
        (server.folder / "next.pem").write_bytes(key + certificate.encode())
        server.context.load_cert_chain(server.folder / "next.pem")

    reloading = asyncio.ensure_future(reload())
    view = await probe(server.port, attempts=200).look(wanted)
    await reloading
    return view


@contextlib.contextmanager
def listener() -> Iterator[int]:
    """A port that takes connections in the kernel and never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        yield silent.getsockname()[1]


async def test_handshake_that_never_completes_costs_its_deadline(tmp_path: Path) -> None:
    """A service that accepts and says nothing is a problem after the time limit, for each attempt."""
    version = Server(tmp_path).load()
    with listener() as port:
        view = await probe(port, attempts=2, timeout=0.2).look(version)
    assert view == ServiceView(None, f"127.0.0.1:{port} completes no TLS handshake in 0.2 s")


async def test_nobody_listens(tmp_path: Path) -> None:
    """A port without a service is told as such."""
    with listener() as port:
        pass
    view = await probe(port).look(Server(tmp_path).load())
    assert view.leaf is None
    assert view.problem == f"127.0.0.1:{port} can't be reached: Connection refused"


@pytest.mark.parametrize(
    "greeting",
    [
        pytest.param(b"220 mail.example.org ESMTP\r\n", id="another protocol"),
        pytest.param(b"", id="closed at once"),
        pytest.param(b"\x15\x03\x03\x00\x02\x02\x28", id="a TLS alert"),
    ],
)
async def test_what_speaks_no_tls_is_told(tmp_path: Path, greeting: bytes) -> None:
    """Whatever answers instead, it is a view and no exception."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    view = await probe(port).look(Server(tmp_path).load())
    listening.close()
    assert view.leaf is None
    assert view.problem.startswith(f"127.0.0.1:{port} ")


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        pytest.param(("example.org", "www.example.org"), "example.org", id="the first"),
        pytest.param(("*.example.org", "example.org"), "example.org", id="the first that is no wildcard"),
        pytest.param(("*.example.org",), "certplane.example.org", id="one below the wildcard"),
    ],
)
def test_name_that_is_asked_for(names: tuple[str, ...], asked: str) -> None:
    """A service with several certificates chooses by the name; a wildcard is no name of a server."""
    assert server_name_of(names) == asked
