"""Connections to a CA: which address, and what is left of one that is given up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.issuers import acme_connection, acme_sockets
from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.broker.issuers.acme_sockets import connect
from certplane.runtime.clock import SystemClock
from tests.support.waiting import no_hang


class Listener:
    """Takes connections and says nothing; `gone` is set when one of them was closed."""

    def __init__(self) -> None:
        self.came, self.gone = asyncio.Event(), asyncio.Event()
        self.port = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came.set()
        with contextlib.suppress(OSError):
            while await reader.read(1024):
                pass
        writer.close()
        self.gone.set()

    @contextlib.asynccontextmanager
    async def running(self) -> Any:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        yield self
        server.close()
        await asyncio.sleep(0.01)  # the loop closes transports in its next rounds


async def test_cancelled_handshake_closes_its_connection() -> None:
    """A server that takes the connection and says nothing sees it closed when the request is cancelled."""
    async with Listener().running() as listener:
        url = f"https://127.0.0.1:{listener.port}/directory"
        ca = AcmeCa(AcmeServer(url), SystemClock())
        asking = asyncio.create_task(ca.http.send("GET", url))
        async with no_hang():
            await listener.came.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await listener.gone.wait()
        await ca.close()


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
async def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch, silent: bool) -> None:
    """A host whose first address leads nowhere is reached by its second."""
    monkeypatch.setattr(acme_sockets, "_FIRST_ADDRESSES", timedelta(seconds=0.1))
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        async with Listener().running() as listener:
            sock_connect = asyncio.get_running_loop().sock_connect

            async def connecting(sock: socket.socket, where: tuple[str, int]) -> None:
                if where == full.getsockname() and silent:
                    await asyncio.Event().wait()
                await sock_connect(sock, where)

            async def addresses(*_: object, **__: object) -> list[tuple[Any, ...]]:
                kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
                return [(*kind, full.getsockname()), (*kind, ("127.0.0.1", listener.port))]

            loop = asyncio.get_running_loop()
            monkeypatch.setattr(loop, "getaddrinfo", addresses)
            monkeypatch.setattr(loop, "sock_connect", connecting)
            async with no_hang():
                asking = asyncio.create_task(connect("ca.test", 443, ssl.create_default_context()))
                await listener.came.wait()
                asking.cancel()
                await listener.gone.wait()


async def test_what_takes_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection, and a server that says nothing, are told apart; neither has seen the request."""
    monkeypatch.setattr(acme_connection, "_WAIT", 0.05)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        refused = await _failure_at(nobody.getsockname()[1])
    assert (refused.unsent, refused.unreachable) == (True, True)
    assert "ConnectionRefusedError" in refused.refusal.message
    async with Listener().running() as listener:
        silent = await _failure_at(listener.port)
        async with no_hang():
            await listener.gone.wait()
    assert (silent.unsent, silent.unreachable) == (True, False)
    assert "it took too long" in silent.refusal.message


async def _failure_at(port: int) -> AcmeError:
    url = f"https://127.0.0.1:{port}/directory"
    ca = AcmeCa(AcmeServer(url), SystemClock())
    with pytest.raises(AcmeError) as caught:
        await ca.http.send("GET", url)
    await ca.close()
    return caught.value
