"""Spans of gRPC calls, by OpenTelemetry's conventions for RPC; a caller's context crosses in the call's metadata.

A stream that is open for days is no span: its messages carry the context themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import grpc
from typing_extensions import override

from certplane.runtime import tracing
from certplane.runtime.tracing import Span, SpanKind, Value

TRACEPARENT: Final = "traceparent"
"""The key in metadata (W3C Trace Context)."""
_LENGTH: Final = 55
"""Characters of version 00, the only one there is."""


def call_span(
    method: str, kind: SpanKind, parent: str = "", attributes: Mapping[str, Value] | None = None
) -> AbstractContextManager[Span]:
    """The span of a call; `method` is its full name, with or without the slash before it."""
    name = method.lstrip("/")
    known = {"rpc.system.name": "grpc", "rpc.method": name, **(attributes or {})}
    return tracing.span(name, kind, parent=parent, attributes=known)


def note_code(span: Span, code: str) -> None:
    """How the call ended, by its gRPC code."""
    span.note("rpc.response.status_code", code)
    if code != "OK":
        span.failed(code)


def context_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The caller's context; empty without one, and for what can't be one."""
    for key, value in metadata or ():
        if key == TRACEPARENT:
            return context_in(value)
    return ""


def context_in(value: str | bytes) -> str:
    """A context that somebody sent; empty for what can't be one."""
    return value if isinstance(value, str) and len(value) == _LENGTH else ""


def client_interceptors() -> list[grpc.aio.ClientInterceptor]:
    """What a channel needs, for as long as spans are kept."""
    return [_UnaryCalls()] if tracing.on() else []


class _UnaryCalls(grpc.aio.UnaryUnaryClientInterceptor):
    """Calls with one answer."""

    @override
    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        details = client_call_details
        given: Any = details.method  # octets, whatever its stubs say
        method = given if isinstance(given, str) else given.decode()
        with call_span(method, SpanKind.CLIENT) as span:
            metadata = grpc.aio.Metadata(*(details.metadata or ()))
            metadata.add(TRACEPARENT, tracing.context())
            traced = grpc.aio.ClientCallDetails(
                details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
            )
            call = await continuation(traced, request)
            note_code(span, (await call.code()).name)
            return call
