"""What a CA's server, or a proxy on the way there, may do on its connections."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import CertificateAuthority
from tests.support.waiting import no_hang, until

_OK = b"HTTP/1.1 200 OK\r\n"
_WHOLE = _OK + b"Content-Length: 5\r\n\r\nwhole"
_FORGED = _OK + b"Content-Length: 6\r\n\r\nforged"

Serving = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Https:
    """Writes what a test tells it to; `proxied` if it is a proxy that begins in the clear."""

    def __init__(self, folder: Path, serving: Serving, *, proxied: bool = False) -> None:
        root = CertificateAuthority.root("Root CA")
        self.roots = folder / "roots.pem"
        self.roots.write_bytes(root.pem)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*root.issue("127.0.0.1", ["127.0.0.1"]).write(folder, "server"))
        self.connections = 0
        self._serving, self._proxied = serving, proxied

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._serving(reader, writer)
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[AcmeCa]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=None if self._proxied else self.context)
        self.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        ca = AcmeCa(AcmeServer(self.url, ca_bundle=self.roots), SystemClock())
        async with no_hang():
            yield ca
            await ca.close()
        server.close()


def _to_each(answer: bytes) -> Serving:
    async def serving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(answer)
            await writer.drain()

    return serving


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        pytest.param("HEAD", _WHOLE, id="head"),
        pytest.param("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nwhole", id="no-content"),
        pytest.param("GET", _WHOLE + _FORGED, id="two-answers"),
        pytest.param("GET", _OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nmore", id="behind-the-last-chunk"),
    ],
)
async def test_what_is_left_of_an_answer_is_not_the_next(tmp_path: Path, method: str, answer: bytes) -> None:
    """A server that sends more than the answer has loses the connection, and the next request has its own answer."""
    server = Https(tmp_path, _to_each(answer))
    async with server.running() as ca:
        first = await ca.http.send(method, server.url)
        assert await ca.http.send(method, server.url) == first
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer", [_WHOLE, _OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n"], ids=["length", "chunked"]
)
async def test_connection_is_kept(tmp_path: Path, answer: bytes) -> None:
    """One connection carries request after request."""
    server = Https(tmp_path, _to_each(answer))
    async with server.running() as ca:
        assert [(await ca.http.send("GET", server.url)).text for _ in range(3)] == ["whole"] * 3
    assert server.connections == 1


async def test_what_comes_unasked_is_no_answer(tmp_path: Path) -> None:
    """A server that announces the end of an idle connection (408) answers no request by that."""
    said = asyncio.Event()

    async def serving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_WHOLE)
        await said.wait()
        writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_WHOLE)
        await writer.drain()

    server = Https(tmp_path, serving)
    async with server.running() as ca:
        await ca.http.send("GET", server.url)
        (pool,) = ca.http._pools.values()
        said.set()
        await until(pool.connections[0].has_expired)
        assert (await ca.http.send("GET", server.url)).status == 200
    assert server.connections == 2


async def test_data_before_tls_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is between the broker and its proxy can put no answer in front of the CA's: TLS is not even begun."""
    granted = _OK + b"X-Padding: "
    granted += b"x" * (4096 - len(granted) - 4) + b"\r\n\r\n"  # as much as is read at once

    async def serving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(granted + _FORGED)
        await writer.drain()
        await writer.start_tls(server.context)
        await _to_each(_WHOLE)(reader, writer)

    server = Https(tmp_path, serving, proxied=True)
    async with server.running() as ca:
        monkeypatch.setenv("https_proxy", server.url.replace("https", "http"))
        with pytest.raises(AcmeError, match="data in the clear where TLS was to begin") as caught:
            await ca.http.send("GET", server.url)
        assert caught.value.unsent


@pytest.mark.parametrize(
    ("head", "pieces", "said"),
    [
        pytest.param(
            _OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", "in more than 10000 pieces", id="chunks"
        ),
        pytest.param(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", "more than 1310720 bytes", id="informational"),
        pytest.param(_OK, b"X: y\r\n", "Receive buffer too long", id="headers"),
        pytest.param(_OK + b"\r\n", b"x", "a body of more than 1048576 bytes", id="body"),
    ],
)
async def test_endless_answer_ends(tmp_path: Path, head: bytes, pieces: bytes, said: str) -> None:
    """An answer without end is no answer, and other tasks have their turn while it comes."""

    async def serving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        while True:
            writer.write(pieces * 10_000)
            await writer.drain()

    server = Https(tmp_path, serving)
    async with server.running() as ca:
        asking = asyncio.create_task(ca.http.send("GET", server.url))
        turns = itertools.count()
        while not asking.done():
            next(turns)
            await asyncio.sleep(0)
        with pytest.raises(AcmeError, match=said):
            await asking
        assert next(turns) > 20


async def test_cancelled_requests_leave_room(tmp_path: Path) -> None:
    """However many requests are cancelled at once, and wherever, the next one is sent."""
    server = Https(tmp_path, _to_each(_WHOLE))
    async with server.running() as ca:
        for turns in range(30):
            asking = [asyncio.create_task(ca.http.send("GET", server.url)) for _ in range(12)]
            for _ in range(turns % 8):
                await asyncio.sleep(0)
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        assert (await ca.http.send("GET", server.url)).text == "whole"
