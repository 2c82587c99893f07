"""The HTTP client of DNS APIs: no redirects, answers of limited size, no compression (fixed decision 15)."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from typing_extensions import override

from certplane.broker.issuers.outgoing import roots_context
from certplane.broker.issuers.spans import http_span, note_status

LARGEST_BODY = 4 * 1024 * 1024
"""A page of fifty of Cloudflare's zones is about 100 KiB."""


_DIRECT = ("http://", "all://localhost", "all://127.0.0.1", "all://[::1]")
"""Without a proxy, whatever the environment says; httpx, unlike curl, has no exception for this machine."""


class AnswerTooLargeError(httpx.TransportError):
    """An answer has more than `LARGEST_BODY` bytes, or is compressed so that it can't be known."""


def new_http_client(timeout: timedelta, ca_bundle: Path | ssl.SSLContext | None = None) -> httpx.AsyncClient:
    """A client; proxies are those of the environment, but for this machine and for plain http.

    Plain http is for this machine and what the operator said (`check_endpoint`): a proxy would carry a secret further.

    Args:
        timeout: of each wait; callers bound the whole exchange.
        ca_bundle: PEM file with the roots of a private API's server, read here; a context that was made from one; or
            None for the public ones.
    """
    if isinstance(ca_bundle, ssl.SSLContext):
        verify: ssl.SSLContext | bool = ca_bundle
    else:
        verify = roots_context(ca_bundle) if ca_bundle else True
    return _Client(
        verify=verify,
        timeout=timeout.total_seconds(),
        follow_redirects=False,
        mounts=dict.fromkeys(_DIRECT),
        headers={"Accept-Encoding": "identity"},
        event_hooks={"response": [_limit]},
    )


class _Client(httpx.AsyncClient):
    """Whose exchanges are spans."""

    @override
    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        with http_span(request.method, request.url.host, port) as span:
            response = await super().send(request, **options)
            note_status(span, response.status_code)
            return response


async def _limit(response: httpx.Response) -> None:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise AnswerTooLargeError("a compressed answer that was not asked for")
    assert isinstance(response.stream, httpx.AsyncByteStream)
    response.stream = _LimitedStream(response.stream)


class _LimitedStream(httpx.AsyncByteStream):
    """Hands on a body until it gets too large."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > LARGEST_BODY:
                raise AnswerTooLargeError(f"an answer of more than {LARGEST_BODY} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
