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
from typing import Any

import httpcore
from typing_extensions import override

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
                return _Stream(*await _connect(host, port))

    @override
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @override
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _failing(httpcore.ReadTimeout, httpcore.ReadError):
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)

    @override
    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
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
                async with asyncio.timeout(timeout):
                    await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except BaseException:
            self._writer.transport.abort()
            raise
        return self

    @override
    async def aclose(self) -> None:
        self._writer.close()
        await asyncio.sleep(0)
        self._writer.transport.abort()  # rather than to wait for the other side's goodbye

    @override
    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # of an idle connection: the other side has closed it
            return self._reader.at_eof() or self._writer.transport.is_closing()
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


async def _connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
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


async def _open(address: tuple[Any, ...]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    family, kind, protocol, _, where = address
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connection, where)
        return await asyncio.open_connection(sock=connection)
    except BaseException:
        connection.close()
        raise
