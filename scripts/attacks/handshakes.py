"""Who has no identity and only connects."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections import Counter

from attacks.target import Target, over


async def hellos(target: Target, seconds: float) -> Counter[str]:
    """Send a ClientHello and hang up, as fast as one process can."""
    return await asyncio.to_thread(_hellos, target, seconds)


async def junk(target: Target, seconds: float) -> Counter[str]:
    """Send what is no TLS and hang up, as fast as one process can."""
    return await asyncio.to_thread(_send, target, seconds, os.urandom(600))


async def nothing(_target: Target, seconds: float) -> Counter[str]:
    """Use as much of a processor as any attacker does, and leave the broker alone: what the machine itself costs."""
    begun, turns = time.monotonic(), 0
    while not over(begun, seconds):
        turns += 1
        await asyncio.sleep(0)
    return Counter(turns=turns)


async def whole(target: Target, seconds: float) -> Counter[str]:
    """Do all of the handshake, without a certificate."""
    return await asyncio.to_thread(_whole, target, seconds)


def _hellos(target: Target, seconds: float) -> Counter[str]:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        target.context(identity=False).wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return _send(target, seconds, outgoing.read())


def _send(target: Target, seconds: float, message: bytes) -> Counter[str]:
    counts: Counter[str] = Counter()
    begun = time.monotonic()
    while not over(begun, seconds):
        try:
            with socket.create_connection(("127.0.0.1", target.port), timeout=5) as connection:
                connection.sendall(message)
                counts["sent"] += 1
        except OSError:
            counts["no connection"] += 1
    return counts


def _whole(target: Target, seconds: float) -> Counter[str]:
    context = target.context(identity=False)
    counts: Counter[str] = Counter()
    begun = time.monotonic()
    while not over(begun, seconds):
        try:
            with (
                socket.create_connection(("127.0.0.1", target.port), timeout=5) as raw,
                context.wrap_socket(raw, server_hostname="localhost") as connection,
            ):
                connection.settimeout(5)
                connection.recv(1)
        except OSError:
            counts["refused"] += 1
        else:
            counts["closed"] += 1
    return counts
