"""How a connection to a CA is opened: which address, by which proxy, and TLS in any case."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from certplane.broker.issuers.acme_connection import Connection, Headers

_FIRST_ADDRESSES = timedelta(seconds=5)
"""For an address of a host that has another: a machine may have IPv6 that leads nowhere."""
_CONNECTING: Final = 30
"""Seconds, for all addresses."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy on the way to a CA; `roots` verify the proxy itself, None where the way to it is in the clear."""

    host: str
    port: int
    roots: ssl.SSLContext | None = None
    headers: Headers = field(default=(), repr=False)


async def connect(host: str, port: int, roots: ssl.SSLContext, proxy: Proxy | None = None) -> Connection:
    """A connection to `host`, which `roots` verify. Whoever is cancelled in it leaves none behind.

    Raises:
        ProxyRefusedError: the proxy opens no tunnel.
        TimeoutError, OSError, h11.ProtocolError: nobody answers, or nobody who can be believed.
    """
    first = (host, port) if proxy is None else (proxy.host, proxy.port)
    async with asyncio.timeout(_CONNECTING):
        connection = await _connect(*first, (host, port))
    try:
        if proxy is not None:
            if proxy.roots is not None:
                await connection.start_tls(proxy.roots, proxy.host)
            await connection.open_tunnel(f"{bracketed(host)}:{port}".encode("ascii"), proxy.headers)
        await connection.start_tls(roots, host)
    except BaseException:
        connection.abort()
        raise
    return connection


def bracketed(host: str) -> str:
    """As URLs and `Host` have it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


async def _connect(host: str, port: int, where: tuple[str, int]) -> Connection:
    """Try the host's addresses in turn."""
    loop = asyncio.get_running_loop()
    *others, last = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for address in others:
        try:
            async with asyncio.timeout(_FIRST_ADDRESSES.total_seconds()):
                return await _open(address, where)
        except OSError:  # a TimeoutError is one
            continue
    return await _open(last, where)


async def _open(address: tuple[Any, ...], where: tuple[str, int]) -> Connection:
    family, kind, protocol, _, socket_address = address
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(opened, socket_address)
        _, connection = await loop.create_connection(lambda: Connection(where), sock=opened)
        return connection
    except BaseException:
        opened.close()
        raise
