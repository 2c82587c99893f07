"""One HTTPS request at a time, without threads and without a loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

ANSWER_WITHIN = timedelta(seconds=60)
MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status, headers (names in lower case) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: it isn't.
        """
        return json.loads(self.body)


def trusting(roots_file: Path) -> ssl.SSLContext:
    """A client context that trusts these roots alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(roots_file)
    return context


async def request(
    method: str,
    url: str,
    context: ssl.SSLContext,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    answer_within: timedelta = ANSWER_WITHIN,
) -> HttpAnswer:
    """Send one request on a connection of its own and return the answer, whatever its status.

    Raises:
        OSError: no connection, a failed handshake (ssl.SSLError is one), or no answer in time (TimeoutError is one).
        EOFError: the server closed without a complete answer.
    """
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    content = b"" if body is None else body
    lines = {"Host": parts.netloc, "User-Agent": "certplane-sandbox", "Connection": "close", **(headers or {})}
    if body is not None:
        lines = {"Content-Type": "application/json", **lines, "Content-Length": str(len(content))}
    head = "".join(
        [f"{method} {target} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in lines.items()), "\r\n"]
    )
    async with asyncio.timeout(answer_within.total_seconds()):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 443, ssl=context)
        try:
            writer.write(head.encode("ascii") + content)
            await writer.drain()
            raw = await reader.read(MOST_BYTES)
            while chunk := await reader.read(MOST_BYTES):
                raw += chunk
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return _parse(method, raw)


def _parse(method: str, raw: bytes) -> HttpAnswer:
    response = HTTPResponse(cast("socket.socket", _Received(raw)), method=method)
    try:
        response.begin()
        body = response.read()
    except HTTPException as error:
        raise EOFError(f"no complete HTTP answer: {error!r}") from error
    return HttpAnswer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)


class _Received:
    """What `HTTPResponse` wants of a socket: the bytes that came."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> BytesIO:
        return BytesIO(self._raw)
