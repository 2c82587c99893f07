"""One connection to a CA: requests out, answers in, one after the other. HTTP/1.1 is h11's, the bytes are asyncio's.

An exchange is one write and, mostly, one read. An HTTP client's engine (locks, pools, tracing, a task's state at each
step) took two thirds of the processor time of a request; nothing here needs one, since `acme_http` lends a connection
to one exchange at a time and `asyncio.timeout` bounds it.

What the CA sends beside the answer to a request is nobody's answer: a connection that says more than it was asked, or
speaks before it is asked, carries no further request.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import h11
from typing_extensions import override

from certplane.broker.issuers.acme_errors import AcmeError
from certplane.errors import Reason

LARGEST_BODY: Final = 1024 * 1024
"""Chains, orders and directories of real CAs stay below 64 KiB."""
MOST_RECEIVED: Final = 1280 * 1024
"""Of one answer, everything around its body included."""

_LARGEST_HEAD: Final = 100 * 1024
_MOST_PIECES: Final = 10_000
"""Of a body; each takes the event loop 30 us, however small."""
_SLICE: Final = 4096
"""What is parsed before other tasks have their turn: of a body in single octets, this much takes the parser 20 ms."""
_MOST_WAITING: Final = 64 * 1024
"""Received and not parsed yet: then no more is taken from the socket for now."""
_WAIT: Final = 30
"""Seconds for each wait on the socket."""

Headers = Sequence[tuple[bytes, bytes]]


class ProxyRefusedError(Exception):
    """The proxy opens no tunnel; the text is its status."""


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """A whole answer; names of headers are in lower case."""

    status: int
    headers: Headers
    body: bytes


class Connection(asyncio.Protocol):
    """A connection to a CA, or to a proxy on the way there. Only one exchange at a time."""

    def __init__(self, where: tuple[str, int]) -> None:
        """`where` leads to the CA, by which the connection is found again; made by `acme_sockets`."""
        self.where = where
        self.idle_since = 0.0
        self._http = _engine()
        self._transport: Any = None
        self._came = bytearray()
        """What h11 has not been given yet."""
        self._taken = 0
        self._paused = self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    @override
    def data_received(self, data: bytes) -> None:
        self._came += data
        if len(self._came) > _MOST_WAITING and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._ended, self._error = True, self._error or exc
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def usable(self) -> bool:
        """Whether another request may be sent: none is under way, and the other side has neither ended nor spoken."""
        idle = self._http.our_state is h11.IDLE and self._http.their_state is h11.IDLE
        return idle and not self._came and not self._ended and not self._transport.is_closing()

    async def exchange(self, method: str, target: bytes, headers: Headers, content: bytes | None) -> RawAnswer:
        """Send a request and read its answer. Whoever is cancelled in it, or sees it fail, aborts the connection.

        Raises:
            AcmeError: the answer's body is too large.
            TimeoutError, OSError, h11.ProtocolError: no whole answer came.
        """
        if not self.usable:
            raise ConnectionError("data that nobody asked for")
        self._taken = 0
        body, pieces = bytearray(), 0
        response = await self._send(method, target, headers, content)
        while isinstance(event := await self._next(), h11.Data):
            body += event.data
            pieces += 1
            if len(body) > LARGEST_BODY:
                raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"it sent a body of more than {LARGEST_BODY} bytes")
            if pieces > _MOST_PIECES:
                raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"it sent a body in more than {_MOST_PIECES} pieces")
        # Some servers send a body where there can be none, as with the answer to HEAD.
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE and not self._http.trailing_data[0]:
            self._http.start_next_cycle()
        return RawAnswer(response.status_code, list(response.headers), bytes(body))

    async def open_tunnel(self, where: bytes, headers: Headers) -> None:
        """Have the proxy connect `where` (RFC 9110 9.3.6).

        Raises:
            ProxyRefusedError: it doesn't.
            TimeoutError, OSError, h11.ProtocolError: as `exchange`.
        """
        response = await self._send("CONNECT", where, [(b"Host", where), (b"Accept", b"*/*"), *headers], None)
        if not 200 <= response.status_code < 300:
            raise ProxyRefusedError(f"{response.status_code} {response.reason.decode('ascii', 'replace')}")

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """From here on TLS, with a server that `context` verifies as `host`.

        Raises:
            OSError: it failed, or something came in the clear before: that is anybody's.
        """
        if self._came or self._http.trailing_data[0]:
            raise ConnectionError("data in the clear where TLS was to begin")
        if self._ended or self._transport.is_closing():
            # asyncio would wait for a handshake for ever, or say that there was one and give no transport.
            raise ConnectionError("the connection was closed where TLS was to begin")
        self._http = _engine()
        async with asyncio.timeout(_WAIT):
            loop = asyncio.get_running_loop()
            self._transport = await loop.start_tls(self._transport, self, context, server_hostname=host)

    async def close(self) -> None:
        """Say goodbye, and wait for none."""
        self._transport.close()
        await asyncio.sleep(0)
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    async def _send(self, method: str, target: bytes, headers: Headers, content: bytes | None) -> h11.Response:
        """Send a whole request by one write; its answer's head."""
        sent = self._http.send(h11.Request(method=method, target=target, headers=list(headers))) or b""
        if content:
            sent += self._http.send(h11.Data(content)) or b""
        self._http.send(h11.EndOfMessage())
        self._transport.write(sent)
        while isinstance(event := await self._next(), h11.InformationalResponse):  # RFC 9110 15.2
            pass
        if not isinstance(event, h11.Response):
            raise ConnectionError("the server ended its answer before it began")
        return event

    async def _next(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = await self._read()
            if not data and self._http.their_state is h11.SEND_RESPONSE:
                raise ConnectionError("the server closed the connection without an answer")
            self._http.receive_data(data)
        return event

    async def _read(self) -> bytes:
        """What comes next, empty at the end."""
        if self._came:  # then reading doesn't give way
            await asyncio.sleep(0)
        elif not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            async with asyncio.timeout(_WAIT):
                await self._waiter
        data = bytes(self._came[:_SLICE])
        del self._came[:_SLICE]
        if self._paused and not self._came:
            self._paused = False
            self._transport.resume_reading()
        if not data and self._error is not None:
            raise self._error
        self._taken += len(data)
        if self._taken > MOST_RECEIVED:
            raise ConnectionError(f"more than {MOST_RECEIVED} bytes for one answer")
        return data


def _engine() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGEST_HEAD)
