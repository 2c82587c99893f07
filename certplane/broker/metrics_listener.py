"""The HTTP listener for metrics: one thread, few connections, short times, whoever connects.

The listener is off unless `metrics.address` is set. It is plain HTTP without authentication and serves figures alone,
never an RPC: bind it to loopback or to a network that is the monitoring's own.

Nobody is believed to mean well: a connection gets seconds to ask and seconds to read its answer, and at most sixteen
are open. One more ends the one that has said nothing for longest, so that thousands of silent connections keep no
scraper from its answer. A connection is one question.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from certplane.config.values import ListenAddress
from certplane.errors import OperationError

_logger = logging.getLogger("certplane.broker")

CONNECTIONS: Final = 16
"""At once: scrapers of a network's monitoring, and a person's browser."""
_TIME: Final = timedelta(seconds=5)
"""To send a question of one line and some headers; and again to read the answer."""
_LONGEST: Final = 16 * 1024
"""Octets of a question: Prometheus sends less than one thousand."""


class _QuestionError(Exception):
    """A question that gets no figures: the status that it gets instead."""


@dataclass(slots=True, eq=False)
class _Connection:
    writer: asyncio.StreamWriter
    asked: bool = False
    """Whether its question is here, and so its answer under way."""


class MetricsListener:
    """Serves a registry at `/metrics` on a thread of its own until it is closed."""

    def __init__(self, address: ListenAddress, registry: CollectorRegistry, *, time: timedelta = _TIME) -> None:
        """Listen; the process's own figures join the registry. `time` is what a connection gets to ask, and to read.

        Raises:
            OperationError: the address can't be listened on.
        """
        self._registry = registry
        ProcessCollector(registry=registry)  # descriptors, memory and processor time, under Prometheus's own names
        self._time = time.total_seconds()
        self._open: dict[_Connection, None] = {}  # the oldest first
        try:
            self._socket = _listen(address)
        except OSError as error:
            raise OperationError(
                f"can't serve metrics on {address}: {error.strerror or error}", remedy="change metrics.address"
            ) from error
        self.port = int(self._socket.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and end what is open."""
        with contextlib.suppress(RuntimeError):  # it is closed already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    # On the thread.

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._socket, limit=_LONGEST)
        async with server:
            await self._stop.wait()
            for connection in list(self._open):
                connection.writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._make_room():
            writer.transport.abort()
            return
        connection = _Connection(writer)
        self._open[connection] = None
        try:
            await self._answer(connection, reader)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            writer.transport.abort()  # it has gone, or says nothing, or doesn't read
        except Exception:
            _logger.exception("metrics could not be served")
            writer.transport.abort()
        finally:
            del self._open[connection]

    def _make_room(self) -> bool:
        """End the connection that has been silent for longest, where there are too many; whether there is room now."""
        if len(self._open) < CONNECTIONS:
            return True
        silent = next((connection for connection in self._open if not connection.asked), None)
        if silent is None:
            return False
        silent.asked = True  # its place is given: it isn't ended twice
        silent.writer.transport.abort()
        return True

    async def _answer(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        writer = connection.writer
        try:
            async with asyncio.timeout(self._time):
                accept, head_only = _question(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.LimitOverrunError:
            status, kind, body, head_only = "431 Request Header Fields Too Large", "text/plain", b"too long\n", False
        except _QuestionError as error:
            status, kind, body, head_only = str(error), "text/plain", b"figures are at /metrics\n", False
        else:
            encode, kind = choose_encoder(accept)
            status, body = "200 OK", encode(self._registry)
        connection.asked = True
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + (b"" if head_only else body))
        writer.close()
        async with asyncio.timeout(self._time):
            await writer.wait_closed()


def _listen(address: ListenAddress) -> socket.socket:
    """A socket that listens; for an address without a host, on all there are."""
    if address.host:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family, backlog=CONNECTIONS)
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    return socket.create_server(("", address.port), family=family, dualstack_ipv6=dual, backlog=CONNECTIONS)


def _question(head: bytes) -> tuple[str, bool]:
    """What a question's `Accept` says, and whether it wants the head alone.

    Raises:
        _QuestionError: it asks for something else.
    """
    line, *fields = head.decode("latin-1").split("\r\n")
    try:
        method, target, version = line.split(" ")
    except ValueError:
        raise _QuestionError("400 Bad Request") from None
    if not version.startswith("HTTP/1."):
        raise _QuestionError("505 HTTP Version Not Supported")
    if method not in {"GET", "HEAD"}:
        raise _QuestionError("405 Method Not Allowed")
    if target.partition("?")[0] != "/metrics":
        raise _QuestionError("404 Not Found")
    named = [field.partition(":") for field in fields]
    accept = ", ".join(value.strip() for name, _, value in named if name.lower() == "accept")
    return accept, method == "HEAD"
