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
        (connection,) = ca.http._idle
        said.set()
        await until(lambda: not connection.usable)
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


@pytest.mark.parametrize("reads", [2, 4])
async def test_a_proxy_that_closes_where_tls_was_to_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    """A tunnel that is granted and closed ends the request at once: whether its head came by two reads, or by more."""

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_OK + b"X-Padding: " + b"x" * 4096 * (reads - 1) + b"\r\n\r\n")
        await writer.drain()

    server = Https(tmp_path, proxy, proxied=True)
    async with server.running() as ca:
        monkeypatch.setenv("https_proxy", server.url.replace("https", "http"))
        with pytest.raises(AcmeError, match="the connection was closed where TLS was to begin") as caught:
            await ca.http.send("GET", server.url)
        assert caught.value.unsent


async def test_proxy_that_is_reached_by_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS to the CA runs inside that to the proxy, which is told its user and password, and the CA is not."""
    heads: list[bytes] = []
    ended = asyncio.Event()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        port = int(heads[0].split(b" ")[1].rpartition(b":")[2])
        onward, away = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_OK + b"\r\n")
        async with asyncio.TaskGroup() as group:
            group.create_task(_pipe(reader, away))
            group.create_task(_pipe(onward, writer))
        ended.set()

    async def serving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(_WHOLE)
        await writer.drain()

    (tmp_path / "proxy").mkdir()
    between, server = Https(tmp_path / "proxy", proxy), Https(tmp_path, serving)
    trusting = ssl.create_default_context(cafile=str(between.roots))
    monkeypatch.setattr("httpcore.default_ssl_context", lambda: trusting)
    async with between.running():
        async with server.running() as ca:
            monkeypatch.setenv("https_proxy", between.url.replace("https://", "https://who:word@"))
            assert (await ca.http.send("GET", server.url)).text == "whole"
        await ended.wait()
    tunnel, request = heads
    assert b"Proxy-Authorization: Basic d2hvOndvcmQ=\r\n" in tunnel
    assert b"Proxy" not in request


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


async def test_a_request_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Head and body leave in one TLS record: a second one costs as much again as the signature."""

    async def serving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"payload"):
            writer.write(_WHOLE)

    written: list[bytes] = []
    write = ssl.SSLObject.write

    def writing(tls: ssl.SSLObject, data: bytes) -> int:
        if not tls.server_side:
            written.append(bytes(data))
        return write(tls, data)

    monkeypatch.setattr(ssl.SSLObject, "write", writing)
    server = Https(tmp_path, serving)
    async with server.running() as ca:
        for _ in range(3):
            assert (await ca.http.send("POST", server.url, b"payload", "application/jose+json")).status == 200
    assert len(written) == 3
    host = server.url.split("/")[2].encode()
    assert written[0].startswith(b"POST / HTTP/1.1\r\nHost: " + host + b"\r\n")
    assert written[0].endswith(b"\r\nContent-Length: 7\r\nContent-Type: application/jose+json\r\n\r\npayload")


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("https://CA.test", b"ca.test", b"/"),
        ("https://ca.test:443/a;b?c=d", b"ca.test", b"/a;b?c=d"),
        ("https://ca.test:14000/dir", b"ca.test:14000", b"/dir"),
        ("https://[::1]/dir", b"[::1]", b"/dir"),
        ("https://[::1]:14000/dir", b"[::1]:14000", b"/dir"),
    ],
)
def test_where_a_request_goes(url: str, host: bytes, target: bytes) -> None:
    """`Host` as URLs have it, without the port that everybody knows (RFC 9110 7.2)."""
    http = AcmeCa(AcmeServer(url), SystemClock()).http
    asked, headers = http._request(url, http.hosts.place(url), None, "")
    assert (asked, headers[0]) == (target, (b"Host", host))


async def test_hints_come_before_the_answer(tmp_path: Path) -> None:
    """An informational answer is none (RFC 9110 15.2)."""
    server = Https(tmp_path, _to_each(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + _WHOLE))
    async with server.running() as ca:
        assert [(await ca.http.send("GET", server.url)).text for _ in range(2)] == ["whole"] * 2
    assert server.connections == 1


async def test_headers_that_come_twice(tmp_path: Path) -> None:
    """One value, as a list (RFC 9110 5.2); names in lower case."""
    answer = _OK + b"LINK: <a>;rel=up\r\nLink: <b>;rel=alternate\r\nContent-Length: 0\r\n\r\n"
    server = Https(tmp_path, _to_each(answer))
    async with server.running() as ca:
        seen = await ca.http.send("GET", server.url)
    assert seen.headers["link"] == "<a>;rel=up, <b>;rel=alternate"
    assert seen.links("alternate") == ("b",)


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
