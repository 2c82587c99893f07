"""The HTTP listener for metrics: one thread, few connections, short times, whoever connects.

The listener is off unless `metrics.address` is set. It is plain HTTP without authentication and serves figures alone,
never an RPC: bind it to loopback or to a network that is the monitoring's own.

Nobody is believed to mean well: a connection gets seconds to ask and seconds to read its answer, and at most sixteen
are open. One more ends the one that has said nothing for longest, so that thousands of silent connections keep no
scraper from its answer. A connection is one question.
"""

import asyncio
import contextlib
import functools
import logging
import socket
import threading
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
_BACKLOG: Final = 1024
"""Connections that wait to be taken: a burst of silent ones is no reason for a scraper to knock twice."""
_LONGEST: Final = 16 * 1024
"""Octets of a question: Prometheus sends less than one thousand."""


class _QuestionError(Exception):
    """A question that gets no figures: the status that it gets instead."""


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
        self._asking: dict[asyncio.Task[None], None] = {}
        """Connections whose question isn't here yet, the oldest first."""
        self._answering: set[asyncio.Task[None]] = set()
        try:
            self._socket = _listen(address)
        except OSError as error:
            raise OperationError(
                f"can't serve metrics on {address}: {error.strerror or error}", remedy="change metrics.address"
            ) from error
        self._socket.setblocking(False)
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
        accepting = asyncio.create_task(self._accept(), name="metrics-accept")
        await self._stop.wait()
        tasks = {accepting, *self._asking, *self._answering}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._socket.close()

    async def _accept(self) -> None:
        """Take one connection after the other, so that never more are open than are counted."""
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._socket)
            except OSError as error:  # mostly: the process has no descriptors left
                _logger.warning("the metrics listener can't take connections: %s", error)
                await asyncio.sleep(1)
                continue
            connection.setblocking(False)
            if not self._make_room():
                connection.close()
                continue
            task = asyncio.create_task(self._converse(connection), name="metrics-connection")
            self._asking[task] = None
            # Here and not in the task, which may be ended before it has begun.
            task.add_done_callback(functools.partial(self._ended, connection))

    def _make_room(self) -> bool:
        """End the connection that has been silent for longest, where there are too many; whether there is room now."""
        if len(self._asking) + len(self._answering) < CONNECTIONS:
            return True
        if not self._asking:
            return False
        silent = next(iter(self._asking))
        del self._asking[silent]
        silent.cancel()
        return True

    def _ended(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        connection.close()
        self._asking.pop(task, None)
        self._answering.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("metrics could not be served", exc_info=error)

    async def _converse(self, connection: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        # Who has gone, or says nothing, or doesn't read, gets nothing.
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._time):
                head = await self._read_head(connection)
            if head:
                self._asking.pop(task, None)
                self._answering.add(task)
                async with asyncio.timeout(self._time):
                    await self._loop.sock_sendall(connection, self._answer(head))
                    connection.shutdown(socket.SHUT_WR)

    async def _read_head(self, connection: socket.socket) -> bytes:
        """A question up to its empty line; what came of one that is too long; nothing if the other side has hung up."""
        head = b""
        while b"\r\n\r\n" not in head and len(head) <= _LONGEST:
            more = await self._loop.sock_recv(connection, _LONGEST)
            if not more:
                return b""
            head += more
        return head

    def _answer(self, head: bytes) -> bytes:
        kind, body, head_only = "text/plain", b"figures are at /metrics\n", False
        try:
            accept, head_only = _question(head)
        except _QuestionError as error:
            status = str(error)
        else:
            encode, kind = choose_encoder(accept)
            status, body = "200 OK", encode(self._registry)
        fields = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close"
        return f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + (b"" if head_only else body)


def _listen(address: ListenAddress) -> socket.socket:
    """A socket that listens; for an address without a host, on all there are."""
    if address.host:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family, backlog=_BACKLOG)
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    return socket.create_server(("", address.port), family=family, dualstack_ipv6=dual, backlog=_BACKLOG)


def _question(head: bytes) -> tuple[str, bool]:
    """What a question's `Accept` says, and whether it wants the head alone.

    Raises:
        _QuestionError: it asks for something else.
    """
    if len(head) > _LONGEST:
        raise _QuestionError("431 Request Header Fields Too Large")
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
