"""An HTTP proxy on loopback that opens tunnels (CONNECT), or refuses to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass
class ConnectProxy:
    """`targets` has what was asked for, `authorizations` with what; `status` is the answer."""

    status: int = 200
    port: int = 0
    targets: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ConnectProxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        target = head[0].split(" ")[1]
        self.targets.append(target)
        self.authorizations += [line.partition(": ")[2] for line in head if line.lower().startswith("proxy-auth")]
        writer.write(f"HTTP/1.1 {self.status} Whatever\r\n\r\n".encode())
        if self.status == 200:
            host, _, port = target.rpartition(":")
            onward_reader, onward = await asyncio.open_connection(host.strip("[]"), int(port))
            await asyncio.gather(_pump(reader, onward), _pump(onward_reader, writer))
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
