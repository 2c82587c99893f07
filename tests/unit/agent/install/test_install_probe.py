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


SMTP_LINES = [
    b"220-mx.example.org ESMTP\r\n220 ready\r\n",
    b"250-mx.example.org\r\n250-STARTTLS\r\n250 DSN\r\n",
    b"220 go\r\n",
]
TALKS = {
    "smtp": (SMTP_LINES, [b"EHLO localhost\r\n", b"STARTTLS\r\n"]),
    "imap": ([b"* OK ready\r\n", b"* CAPABILITY X\r\na1 OK begin\r\n"], [b"a1 STARTTLS\r\n"]),
    "pop3": ([b"+OK ready\r\n", b"+OK begin\r\n"], [b"STLS\r\n"]),
}


@contextlib.asynccontextmanager
async def plain_service(server: Server, said: list[bytes]) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A service that says this, a piece for each line that it hears, and then begins TLS; what it heard."""
    heard: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said[0])
        for piece in said[1:]:
            heard.append(await reader.readline())
            writer.write(piece)
        if len(said) > 1:
            with contextlib.suppress(OSError):
                await writer.start_tls(server.context)
                await reader.read()
        writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1], heard


def starttls_probe(port: int, protocol: str, timeout: float = 5) -> TlsProbe:
    return TlsProbe(
        "127.0.0.1",
        port,
        server_name=NAME,
        timeout=timedelta(seconds=timeout),
        attempts=1,
        interval=timedelta(milliseconds=20),
        clock=SystemClock(),
        starttls=protocol,
    )


@pytest.mark.parametrize("protocol", TALKS)
async def test_a_service_that_begins_in_plain_text_is_asked_for_tls(server: Server, protocol: str) -> None:
    """SMTP, IMAP and POP3: greeting, command, handshake; the leaf is compared as anywhere else."""
    version = server.load()
    said, expected = TALKS[protocol]
    async with plain_service(server, said) as (port, heard):
        view = await starttls_probe(port, protocol).look(version)
    assert view.well, view.problem
    assert heard == expected
    assert server.names == [NAME]


@pytest.mark.parametrize(
    ("protocol", "said", "problem"),
    [
        pytest.param("smtp", [b"* OK imap\r\n"], "doesn't greet as SMTP does", id="another-protocol"),
        pytest.param("smtp", [b"554 no\r\n"], "doesn't greet as SMTP does", id="turned-away"),
        pytest.param("smtp", [b"220 a\r\n", b"250-a\r\n250 DSN\r\n"], "offers no STARTTLS", id="no-starttls"),
        pytest.param("smtp", [b"220 a\r\n", b"250 STARTTLS\r\n", b"454 not now\r\n"], "refuses STARTTLS", id="not-now"),
        pytest.param("smtp", [b"220-a\r\n" * 200], "doesn't greet as SMTP does", id="no-end"),
        pytest.param("smtp", [b"x" * 200_000], "sends a line without an end", id="long-line"),
        pytest.param("smtp", [b""], "closes the connection before TLS begins", id="closes"),
        pytest.param("imap", [b"220 a\r\n"], "doesn't greet as IMAP does", id="imap-another"),
        pytest.param("imap", [b"* OK\r\n", b"a1 NO\r\n"], "refuses STARTTLS", id="imap-refuses"),
        pytest.param("pop3", [b"-ERR\r\n"], "doesn't greet as POP3 does", id="pop3-another"),
        pytest.param("pop3", [b"+OK\r\n", b"-ERR\r\n"], "refuses STLS", id="pop3-refuses"),
    ],
)
async def test_what_keeps_tls_from_beginning_is_told(
    server: Server, protocol: str, said: list[bytes], problem: str
) -> None:
    """A service of another kind, one without TLS, one that ends the talk: the problem says which."""
    version = server.load()
    async with plain_service(server, said) as (port, _):
        view = await starttls_probe(port, protocol).look(version)
    assert not view.well
    assert view.problem == f"127.0.0.1:{port} {problem}"
