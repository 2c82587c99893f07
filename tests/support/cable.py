"""A cable on loopback that can be pulled: what a partition between two programs is, without the rights to make one.

async with Cable.to("127.0.0.1", port) as cable:
    ...                 # clients use cable.port
    cable.pull()        # nothing passes any more, and nobody is told: packets that are dropped
    cable.plug()

While it is pulled, what either end sends stays in the kernel, as what TCP sends again and again, and new connections are
heard of by nobody (the kernel's own handshake says little: TLS and PostgreSQL wait for the first word). What was on its
way arrives when the cable is plugged in again, unless the ends have given up meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Self

from certplane.sandbox.loopback import LOOPBACK

_PIECE = 64 * 1024


class Cable:
    """From `port` to a server. See `to`."""

    def __init__(self, host: str, port: int) -> None:
        self._server = host, port
        self._whole = asyncio.Event()
        self._whole.set()
        self._ends: set[asyncio.StreamWriter] = set()
        self._breaking: asyncio.TimerHandle | None = None
        self.port = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, host: str, port: int) -> AsyncIterator[Self]:
        """A cable to a server, plugged in."""
        cable = cls(host, port)
        listener = await asyncio.start_server(cable._carry, LOOPBACK, 0)
        cable.port = listener.sockets[0].getsockname()[1]
        try:
            yield cable
        finally:
            listener.close()
            cable.plug()
            cable._break(cable._ends)
            await cable._gone()

    def pull(self, patience: timedelta | None = None) -> None:
        """Nothing passes from now on; connections that there are break after `patience`, the kernel's of one that waits."""
        self._whole.clear()
        if patience is not None:
            ends = set(self._ends)
            self._breaking = asyncio.get_running_loop().call_later(patience.total_seconds(), self._break, ends)

    def plug(self) -> None:
        """All passes again."""
        if self._breaking is not None:
            self._breaking.cancel()
        self._whole.set()

    def _break(self, ends: Iterable[asyncio.StreamWriter]) -> None:
        for end in ends:
            end.transport.abort()

    async def _gone(self) -> None:
        while self._ends:  # noqa: ASYNC110 - each connection takes itself out; a loop's turn or two
            await asyncio.sleep(0)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.add(writer)
        try:
            await self._whole.wait()
            onward_reader, onward = await asyncio.open_connection(*self._server)
            self._ends.add(onward)
            try:
                await asyncio.gather(self._pass(reader, onward), self._pass(onward_reader, writer))
            finally:
                self._ends.discard(onward)
                onward.transport.abort()
        except OSError:
            pass  # the server refuses, or an end has gone: the other end sees it too
        finally:
            self._ends.discard(writer)
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_PIECE):
            await self._whole.wait()
            writer.write(data)
            await writer.drain()
        await self._whole.wait()
        if writer.can_write_eof():
            writer.write_eof()
