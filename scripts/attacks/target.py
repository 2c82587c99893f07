"""What an attack gets: a port, the files of one hostile identity, and ways to reach the broker."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from certplane.rpc.channel import channel_options
from certplane.rpc.credentials import KeyPair, channel_credentials
from certplane.rpc.status import refusal_from_error

PROFILE = "web"


@dataclass(frozen=True, slots=True)
class Target:
    """The broker as one hostile host sees it.

    Attributes:
        folder: `root.crt` is the broker's CA; `hostile<n>.crt` and `.key` are the host's chain and key.
        port: The broker's, on loopback.
        number: Which hostile host this one is, from 1.
    """

    folder: Path
    port: int
    number: int

    @property
    def chain_file(self) -> Path:
        """The identity's leaf and intermediate."""
        return self.folder / f"hostile{self.number}.crt"

    @property
    def key_file(self) -> Path:
        """Its key."""
        return self.folder / f"hostile{self.number}.key"

    @contextlib.asynccontextmanager
    async def channel(self, **options: int) -> AsyncIterator[grpc.aio.Channel]:
        """A connection of the host's own: channels share none."""
        pair = KeyPair(self.key_file.read_bytes(), self.chain_file.read_bytes())
        credentials = channel_credentials((self.folder / "root.crt").read_bytes(), pair)
        own: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1), *options.items()]
        channel = grpc.aio.secure_channel(f"localhost:{self.port}", credentials, [*channel_options(), *own])
        async with channel:
            yield channel

    def context(self, *, identity: bool = True) -> ssl.SSLContext:
        """TLS for a connection of one's own making; `identity`: with the host's certificate."""
        context = ssl.create_default_context(cafile=str(self.folder / "root.crt"))
        context.set_alpn_protocols(["h2"])
        if identity:
            context.load_cert_chain(self.chain_file, self.key_file)
        return context


def until(seconds: float) -> asyncio.Timeout:
    """A block that is cancelled after `seconds`; suppress TimeoutError around it."""
    return asyncio.timeout_at(asyncio.get_running_loop().time() + seconds)


def over(begun: float, seconds: float) -> bool:
    """Whether `seconds` have gone by since `begun` (monotonic)."""
    return time.monotonic() - begun >= seconds


def refusal_of(error: grpc.aio.AioRpcError) -> str:
    """A short word for how a call ended."""
    refusal = refusal_from_error(error)
    return refusal.reason.value if refusal is not None else error.code().name
