"""Just enough HTTP/2 to send one gRPC request over a TLS connection of the test's own making.

gRPC's client chooses TLS version and session by itself; this one takes what the test gives it. It reads nothing but the
end of the response: what became of the call is looked up at the server.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct

from tests.support.waiting import HANG

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _GOAWAY = 0x0, 0x1, 0x4, 0x7
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1


def connect(context: ssl.SSLContext, port: int, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    """A TLS connection to the port, h2 negotiated, the server's SETTINGS (and with TLS 1.3 its tickets) read."""
    context.set_alpn_protocols(["h2"])
    with contextlib.ExitStack() as opened:
        raw = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=HANG))
        connection = opened.enter_context(context.wrap_socket(raw, server_hostname="localhost", session=session))
        connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b""))
        kind, _, _ = _read_frame(connection)
        assert kind == _SETTINGS
        opened.pop_all()  # the caller closes it
    return connection


def send_call(connection: ssl.SSLSocket, path: str, message: bytes = b"") -> None:
    """Send a unary call and wait until its stream, or the connection, has ended."""
    headers = b"".join(
        _literal(name, value)
        for name, value in (
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        )
    )
    body = b"\x00" + struct.pack(">I", len(message)) + message
    connection.sendall(_frame(_HEADERS, _END_HEADERS, 1, headers) + _frame(_DATA, _END_STREAM, 1, body))
    while True:
        kind, flags, stream = _read_frame(connection)
        if kind == _SETTINGS and not flags & _ACK:
            connection.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        if (stream == 1 and flags & _END_STREAM and kind in (_DATA, _HEADERS)) or kind == _GOAWAY:
            return


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header field without indexing and without Huffman coding (RFC 7541 6.2.2)."""
    parts = [b"\x00"]
    for text in (name.encode(), value.encode()):
        assert len(text) < 127
        parts.append(bytes([len(text)]) + text)
    return b"".join(parts)


def _read_frame(connection: ssl.SSLSocket) -> tuple[int, int, int]:
    head = _read(connection, 9)
    _read(connection, int.from_bytes(head[:3], "big"))
    return head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF


def _read(connection: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError("the server closed the connection")
        data += part
    return data
