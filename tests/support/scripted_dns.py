"""A DNS server on loopback that answers with whatever bytes a test says, over UDP and TCP."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

import dns.message

from certplane.sandbox.loopback import LOOPBACK

Reply = Callable[[bytes, bool], bytes | None]
"""From a query's bytes and whether it came over TCP, the answer's bytes; None for silence."""


class ScriptedDns:
    """Use it as a context manager; `reply` may be changed at any time.

    Attributes:
        queries: what arrived, with whether it came over TCP.
    """

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.queries: list[tuple[bytes, bool]] = []
        self._stop = threading.Event()
        while True:
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._udp.bind((LOOPBACK, 0))
            self.port: int = self._udp.getsockname()[1]
            try:
                self._tcp = socket.create_server((LOOPBACK, self.port))
                break
            except OSError:
                self._udp.close()
        self._threads = [threading.Thread(target=serve, daemon=True) for serve in (self._serve_udp, self._serve_tcp)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._udp.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._tcp.shutdown(socket.SHUT_RDWR)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", (LOOPBACK, self.port))
        for thread in self._threads:
            thread.join(5)
        self._udp.close()
        self._tcp.close()

    def flags(self) -> list[int]:
        """The header flags of each query."""
        return [dns.message.from_wire(wire, ignore_trailing=True).flags for wire, _ in self.queries]

    def _serve_udp(self) -> None:
        while not self._stop.is_set():
            try:
                query, peer = self._udp.recvfrom(65535)
            except OSError:
                return
            if self._stop.is_set():
                return
            self.queries.append((query, False))
            if (answer := self.reply(query, False)) is not None:
                self._udp.sendto(answer, peer)

    def _serve_tcp(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError, struct.error):
                connection.settimeout(5)
                (length,) = struct.unpack("!H", connection.recv(2))
                query = b""
                while len(query) < length and (part := connection.recv(length - len(query))):
                    query += part
                self.queries.append((query, True))
                if (answer := self.reply(query, True)) is not None:
                    connection.sendall(answer)
