"""The sockets below `acme_http`: asyncio's streams for `httpcore`, which is the engine of httpx.

Its own ones, over anyio, cost more for each request than the blocking library did that ACME used to be sent with, and
leave a connection open whose TLS handshake is cancelled.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import httpcore
from typing_extensions import override

MOST_RECEIVED: Final = 1280 * 1024
"""Of one answer, everything around its body included."""
_SLICE: Final = 4096
"""What is parsed before other tasks have their turn: of a body in single octets, this much takes the parser 20 ms."""
_TAIL: Final = 64
"""Octets at the end of an answer that are compared with the end that it should have."""

_FIRST_ADDRESSES = timedelta(seconds=5)
"""For an address of a host that has another: a machine may have IPv6 that leads nowhere."""


class Sockets(httpcore.AsyncNetworkBackend):
    """Opens connections."""

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _failing(httpcore.ConnectTimeout, httpcore.ConnectError):
            async with asyncio.timeout(timeout):
                return Stream(*await _connect(host, port))

    @override
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Reader(asyncio.StreamReader):
    """A reader that tells how much it was given."""

    fed = 0

    @override
    def feed_data(self, data: Any) -> None:
        self.fed += len(data)
        super().feed_data(data)


class Stream(httpcore.AsyncNetworkStream):
    """A connection to a CA, or to a proxy on the way there."""

    def __init__(self, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._taken = self._answer = 0
        self._tail = b""
        self._spent = False

    def expect_end(self, end: bytes) -> None:
        """Keep the connection for no other request unless what was read last ends so.

        Some servers send a body where there can be none, as with the answer to HEAD; what is left of it would be read
        as the next request's answer.
        """
        self._spent = self._spent or not self._tail.endswith(end[-_TAIL:])

    @property
    def _waiting(self) -> bool:
        return self._reader.fed > self._taken

    @override
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._waiting:  # then reading doesn't give way
            await asyncio.sleep(0)
        with _failing(httpcore.ReadTimeout, httpcore.ReadError):
            async with asyncio.timeout(timeout):
                data = await self._reader.read(min(max_bytes, _SLICE))
        self._taken += len(data)
        self._answer += len(data)
        self._tail = (self._tail + data)[-_TAIL:]
        if self._answer > MOST_RECEIVED:
            raise httpcore.ReadError(f"more than {MOST_RECEIVED} bytes for one answer")
        return data

    @override
    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._answer, self._tail = 0, b""
        with _failing(httpcore.WriteTimeout, httpcore.WriteError):
            self._writer.write(buffer)
            async with asyncio.timeout(timeout):
                await self._writer.drain()

    @override
    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            with _failing(httpcore.ConnectTimeout, httpcore.ConnectError):
                self._check_silent()
                async with asyncio.timeout(timeout):
                    await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
                self._check_silent()
        except BaseException:
            self._writer.transport.abort()
            raise
        return self

    def _check_silent(self) -> None:
        """What came before TLS is anybody's, and asyncio's reader would give it out as what came by TLS."""
        if self._waiting:
            raise ConnectionError("data in the clear where TLS was to begin")

    @override
    async def aclose(self) -> None:
        self._writer.close()
        await asyncio.sleep(0)
        self._writer.transport.abort()  # rather than to wait for the other side's goodbye

    @override
    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # of an idle connection: the other side has closed it, or says what nobody asked for
            gone = self._reader.at_eof() or self._writer.transport.is_closing()
            return gone or self._spent or self._waiting
        return self._writer.get_extra_info("ssl_object" if info == "ssl_object" else "", None)


@contextmanager
def _failing(late: type[Exception], broken: type[Exception]) -> Iterator[None]:
    """Failures as `httpcore`'s, with the cause."""
    try:
        yield
    except TimeoutError as error:
        raise late("") from error
    except OSError as error:
        raise broken(str(error)) from error


async def _connect(host: str, port: int) -> tuple[_Reader, asyncio.StreamWriter]:
    """Try the host's addresses in turn."""
    loop = asyncio.get_running_loop()
    *others, last = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for address in others:
        try:
            async with asyncio.timeout(_FIRST_ADDRESSES.total_seconds()):
                return await _open(address)
        except OSError:  # a TimeoutError is one
            continue
    return await _open(last)


async def _open(address: tuple[Any, ...]) -> tuple[_Reader, asyncio.StreamWriter]:
    family, kind, protocol, _, where = address
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, where)
        reader = _Reader(limit=_SLICE)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, sock=connection)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
    except BaseException:
        connection.close()
        raise
