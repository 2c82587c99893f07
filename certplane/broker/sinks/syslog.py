"""A sink that is a syslog server: RFC 5424 messages with octet counting over TLS (RFC 5425).

The protocol has no answers. What a connection's end may take with it is what the other machine's kernel hasn't
acknowledged; so a batch counts as copied when nothing of it is left in this one's send queue (`SIOCOUTQ` of Linux).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import ssl
import struct
from collections.abc import Sequence
from datetime import timedelta
from typing import Final, NamedTuple

import msgspec
from typing_extensions import override

from certplane.broker.sinks.ports import AuditSink, SinkError, StoredEvent
from certplane.broker.sinks.settings import SyslogSinkSettings
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool
from certplane.runtime.text import printable

_QUEUED: Final = 0x5411
"""SIOCOUTQ, tcp(7): octets of the send queue that aren't acknowledged."""
_LOOK: Final = timedelta(milliseconds=10)
_SEVERITIES: Final = {"error": 3, "warning": 4, "info": 6}  # RFC 5424 6.2.1
_PROGRAM: Final = "certplane-broker"
_MESSAGE_ID: Final = 32


class _Facts(msgspec.Struct):
    event_type: str = "-"
    severity: str = "info"


def message(event: StoredEvent, facility: int, host: str) -> bytes:
    """The event as a frame: its length, a space, and the message, whose text is the event's JSON."""
    facts = msgspec.json.decode(event.text, type=_Facts)
    priority = facility * 8 + _SEVERITIES.get(facts.severity, 6)
    time = f"{event.time:%Y-%m-%dT%H:%M:%S.%fZ}"
    kind = printable(facts.event_type, _MESSAGE_ID).replace(" ", "_")
    text = f"<{priority}>1 {time} {host} {_PROGRAM} {os.getpid()} {kind} - {event.text}".encode()
    return b"%d %b" % (len(text), text)


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    socket: socket.socket

    @property
    def is_over(self) -> bool:
        return self.reader.at_eof() or self.writer.is_closing()

    def unacknowledged(self) -> int:
        """Octets that the other machine may not have.

        Raises:
            OSError: the connection is closed, so that nobody knows.
        """
        if self.socket.fileno() < 0:
            raise ConnectionResetError("it has closed the connection")
        (queued,) = struct.unpack("i", fcntl.ioctl(self.socket.fileno(), _QUEUED, b"\0\0\0\0"))
        return self.writer.transport.get_write_buffer_size() + int(queued)


class SyslogSink(AuditSink):
    """An `AuditSink` over one connection, which is made when there is something to send."""

    def __init__(self, settings: SyslogSinkSettings, context: ssl.SSLContext, clock: Clock) -> None:
        """Connects to nobody yet. `context` verifies the server, and is this sink's own."""
        self._settings = settings
        self._context = context
        self._clock = clock
        self._pool = BlockingPool("audit-syslog", 1)
        self._host = socket.gethostname() or "-"
        self._connection: _Connection | None = None

    @override
    async def send(self, events: Sequence[StoredEvent]) -> None:
        seconds = self._settings.timeout.total_seconds()
        frames = b"".join(message(event, self._settings.facility.code, self._host) for event in events)
        try:
            async with asyncio.timeout(seconds):
                await self._send(frames)
        except TimeoutError as error:
            await self._leave()
            raise SinkError(f"{self._settings.server} has not taken it within {seconds:g} s") from error
        except (OSError, ssl.SSLError) as error:
            await self._leave()
            raise SinkError(f"{self._settings.server} can't be reached: {printable(str(error), 200)}") from error

    @override
    async def close(self) -> None:
        await self._leave()
        self._pool.close()

    async def _send(self, frames: bytes) -> None:
        connection = self._connection or await self._connect()
        # A server that has closed says so: what was sent on the connection after that would be lost without a word.
        if connection.is_over:
            await self._leave()
            connection = await self._connect()
        connection.writer.write(frames)
        await connection.writer.drain()
        while connection.unacknowledged():
            if connection.is_over:
                raise ConnectionResetError("it has closed the connection")
            await self._clock.sleep(_LOOK)
        if (error := connection.reader.exception()) is not None:
            raise error

    async def _connect(self) -> _Connection:
        server, settings = self._settings.server, self._settings
        if settings.cert is not None:  # read anew: it is renewed while the broker runs
            try:
                await self._pool.run(self._context.load_cert_chain, settings.cert, settings.key)
            except OSError as error:  # ssl.SSLError is one
                raise SinkError(f"{settings.cert} can't be used with its key: {printable(str(error), 200)}") from error
        reader, writer = await asyncio.open_connection(
            server.host, server.port, ssl=self._context, server_hostname=server.host
        )
        self._connection = _Connection(reader, writer, writer.get_extra_info("socket"))
        return self._connection

    async def _leave(self) -> None:
        if self._connection is None:
            return
        writer, self._connection = self._connection.writer, None
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
            async with asyncio.timeout(1):
                await writer.wait_closed()
        writer.transport.abort()
