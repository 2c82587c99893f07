"""Spans of what an agent does for a certificate; `certplane.runtime.tracing` says when they are kept."""

from __future__ import annotations

from contextlib import AbstractContextManager

from certplane.agent.model import LineageStatus
from certplane.agent.renewal.plan import Request
from certplane.fleet_report.model import CertificateState
from certplane.runtime import tracing
from certplane.runtime.tracing import Span


def renewal_span(name: str, request: Request) -> AbstractContextManager[Span]:
    """Of a request for the certificate `name`; with the operator's call that it goes back to, where there is one."""
    attributes: dict[str, tracing.Value] = {"certplane.certificate": name}
    directed = None if request.replaces is None else request.replaces.directed
    if request.directed and directed is not None:
        attributes["certplane.renewal_cause"] = directed.cause.value
        if directed.renewal_request_id:
            attributes["certplane.renewal_request_id"] = directed.renewal_request_id
    return tracing.span("renew", attributes=attributes)


def note_renewal(span: Span, status: LineageStatus) -> LineageStatus:
    """Note what became of the request; returns `status`."""
    if status.state is CertificateState.FAILED:
        span.failed("request")
    return status


def install_span(name: str, trace: str) -> AbstractContextManager[Span]:
    """Of the activation of a version, below the span that brought it."""
    return tracing.span("install", parent=trace, attributes={"certplane.certificate": name})
