"""A gRPC stream over a TLS connection of our own making, cheap enough to have thousands of in one process.

A `grpc.aio` channel costs its client 130 KB and more processor time than the broker spends on it: on a machine that
client and broker share, it is the client that would be measured. This one is a non-blocking socket, Python's `ssl` and
as much of HTTP/2 (RFC 9113) as one call needs. It decodes no headers: a stream that ends is a stream that ended.
"""

from __future__ import annotations

import errno
import socket
import ssl
import struct
from collections.abc import Callable, Sequence

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_WINDOW = 16 * 1024
"""Bytes after which the peer is given them back; its windows are 64 KB."""
_IN_PROGRESS = (0, errno.EINPROGRESS)


class Closed(Exception):  # noqa: N818 - not a fault: what a broker that is killed looks like
    """The connection or its stream has ended."""


def client_context(pem: str, roots: str) -> ssl.SSLContext:
    """The TLS of one identity: its certificate, chain and key in the file `pem`, and whom it trusts in `roots`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(roots)
    context.load_cert_chain(pem)
    return context


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header field without indexing and without Huffman coding (RFC 7541 6.2.2); both shorter than 127 bytes."""
    return b"\x00" + b"".join(bytes((len(text),)) + text.encode() for text in (name, value))


def opening(path: str) -> bytes:
    """What a client says first, up to the message: preface, settings and the headers of its one call."""
    headers: Sequence[tuple[str, str]] = (
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "certplane-bench"),
    )
    block = b"".join(_literal(*header) for header in headers)
    return _PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_HEADERS, _END_HEADERS, 1, block)


def asking(path: str, message: bytes) -> bytes:
    """All that a client says on a connection of a call with one message."""
    body = b"\0" + struct.pack(">I", len(message)) + message
    return opening(path) + _frame(_DATA, _END_STREAM, 1, body)


def saying(path: str, message: bytes) -> bytes:
    """What a client says first on a connection of a stream."""
    body = b"\0" + struct.pack(">I", len(message)) + message
    return opening(path) + _frame(_DATA, 0, 1, body)


class Connection:
    """One connection with one call on it. `ready` is called by whoever waits for the socket.

    Args:
        context: Its TLS.
        port: On loopback.
        first: What is sent once the handshake is done.
        hear: Called with each message that comes.
    """

    __slots__ = ("_early", "_first", "_hear", "_in", "_message", "_out", "_raw", "_taken", "_tls", "_up", "connected")

    def __init__(self, context: ssl.SSLContext, port: int, first: bytes, hear: Callable[[bytes], None]) -> None:
        self._raw = socket.socket()
        self._raw.setblocking(False)
        self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls: ssl.SSLSocket | None = None
        self._early: ssl.SSLContext | None = context
        self._first = first
        self._hear = hear
        self._in = self._out = self._message = b""
        self._taken = 0
        self._up = False
        self.connected = False
        error = self._raw.connect_ex(("127.0.0.1", port))
        if error not in _IN_PROGRESS:
            self._raw.close()
            raise Closed(errno.errorcode[error])

    def fileno(self) -> int:
        """The socket's."""
        return (self._tls or self._raw).fileno()

    @property
    def writing(self) -> bool:
        """Whether it waits until it can write."""
        return self._tls is None or bool(self._out)

    def ready(self) -> None:
        """Go on as far as it goes.

        Raises:
            Closed: it is over; `close` is still to be called.
        """
        try:
            if self._tls is None:
                self._wrap()
            if not self._up and self._tls is not None:
                self._tls.do_handshake()
                self._up = True
                self.send_raw(self._first)
                self._first = b""
            self._flush()
            while True:
                self._read()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            raise Closed(str(error)) from error

    def send(self, message: bytes) -> None:
        """Send a message."""
        body = b"\0" + struct.pack(">I", len(message)) + message
        self.send_raw(_frame(_DATA, 0, 1, body))

    def send_raw(self, data: bytes) -> None:
        """Send bytes, now or when the socket takes them."""
        self._out += data
        try:
            self._flush()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            raise Closed(str(error)) from error

    def close(self) -> None:
        """Close the socket, as a process that ends does."""
        (self._tls or self._raw).close()

    def _wrap(self) -> None:
        error = self._raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise Closed(errno.errorcode[error])
        assert self._early is not None
        self._tls = self._early.wrap_socket(self._raw, server_hostname="localhost", do_handshake_on_connect=False)
        self._early = None
        self.connected = True

    def _flush(self) -> None:
        while self._out and self._tls is not None and self._up:
            sent = self._tls.send(self._out)
            self._out = self._out[sent:]

    def _read(self) -> None:
        assert self._tls is not None
        data = self._tls.recv(32 * 1024)
        if not data:
            raise Closed("the server closed the connection")
        self._in += data
        while len(self._in) >= 9:
            end = 9 + int.from_bytes(self._in[:3])
            if len(self._in) < end:
                return
            kind, flags = self._in[3], self._in[4]
            payload, self._in = self._in[9:end], self._in[end:]
            self._take(kind, flags, payload)

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _DATA:
            self._taken += len(payload)
            if self._taken >= _WINDOW:
                size = struct.pack(">I", self._taken)
                self._taken = 0
                self.send_raw(_frame(_WINDOW_UPDATE, 0, 0, size) + _frame(_WINDOW_UPDATE, 0, 1, size))
            self._message += payload
            while len(self._message) >= 5:
                end = 5 + int.from_bytes(self._message[1:5])
                if len(self._message) < end:
                    break
                message, self._message = self._message[5:end], self._message[end:]
                self._hear(message)
        elif kind == _SETTINGS and not flags & _ACK:
            self.send_raw(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self.send_raw(_frame(_PING, _ACK, 0, payload))
        if kind in (_GOAWAY, _RST_STREAM) or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
            raise Closed("the server ended the stream")
