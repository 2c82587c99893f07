"""The span of an order: below that of the call that has made it, while this process still knows of that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from certplane.broker.issuance.flights import Flight
from certplane.runtime import tracing


@contextlib.contextmanager
def order_span(flight: Flight) -> Iterator[None]:
    """From the order's turn to its end here; steps open theirs below it. An order that fails makes it a failed one."""
    order = flight.order
    attributes: dict[str, tracing.Value] = {
        "certplane.order_id": order.order_id,
        "certplane.request_id": order.request_id,
        "certplane.identity": order.identity,
        "certplane.profile": order.profile,
        "certplane.issuer": order.issuer,
    }
    with tracing.span("order", attributes=attributes) as span:
        yield
        if flight.order.error is not None:
            span.failed(flight.order.error.reason)
