"""Spans of what goes out to CAs, DNS APIs and DNS servers, by OpenTelemetry's conventions for HTTP."""

from __future__ import annotations

from contextlib import AbstractContextManager

from certplane.runtime import tracing
from certplane.runtime.tracing import Span, SpanKind


def http_span(method: str, host: str, port: int) -> AbstractContextManager[Span]:
    """Of one exchange. Without its path, which may have a secret of an API."""
    attributes: dict[str, tracing.Value] = {"http.request.method": method, "server.address": host, "server.port": port}
    return tracing.span(method, SpanKind.CLIENT, attributes=attributes)


def note_status(span: Span, status: int) -> None:
    """The answer's; of a client each from 400 on is a failure."""
    span.note("http.response.status_code", status)
    if status >= 400:
        span.failed(str(status))


def dns_span(server: str) -> AbstractContextManager[Span]:
    """Of one message to a DNS server that takes updates."""
    return tracing.span("DNS update", SpanKind.CLIENT, attributes={"server.address": server})
