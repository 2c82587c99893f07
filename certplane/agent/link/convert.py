"""Messages of `certplane.v1` into the agent's values. Nothing is checked here but the shape: the caller judges."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any

from certplane.agent.model import IdentityView, IssuedCertificate, OrderView
from certplane.errors import Reason, Refusal
from certplane.rpc.status import refusal_from_status
from certplane.v1 import certificate_pb2, enrollment_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["identity_view", "order_view"]


def order_view(order: certificate_pb2.Order, certificate: certificate_pb2.Certificate | None) -> OrderView:
    """An order, with its certificate when there is one."""
    return OrderView(
        order_id=order.order_id,
        state=_suffix(certificate_pb2.Order.State.Name, order.state, "STATE_"),
        certificate=None if certificate is None else _issued(certificate),
        error=_refusal(order) if order.HasField("error") else None,
        retry_time=_time(order.retry_time) if order.HasField("retry_time") else None,
    )


def identity_view(response: enrollment_pb2.GetIdentityResponse) -> IdentityView:
    """How the broker sees the caller."""
    identity = response.identity
    return IdentityView(
        name=identity.name,
        kind=_suffix(enrollment_pb2.Identity.Kind.Name, identity.kind, "KIND_").lower(),
        label=identity.label,
        serial_number=identity.serial_number,
        expire_time=_time(identity.expire_time),
        profiles=tuple(identity.profiles),
        broker_time=_time(response.broker_time),
        broker_version=response.broker_version,
        contest_time=_time(identity.contest_time) if identity.HasField("contest_time") else None,
    )


def _issued(certificate: certificate_pb2.Certificate) -> IssuedCertificate:
    return IssuedCertificate(
        certificate_pem=certificate.certificate_pem,
        chain_pem=certificate.chain_pem,
        certificate_id=certificate.certificate_id,
        renew_time=_time(certificate.renew_time) if certificate.HasField("renew_time") else None,
    )


def _refusal(order: certificate_pb2.Order) -> Refusal:
    known = refusal_from_status(order.error)
    return known or Refusal(Reason.INTERNAL, order.error.message or "the order failed")


def _suffix(name: Callable[[Any], str], value: int, prefix: str) -> str:
    """The name of an enum's value without its prefix; a newer broker's value is its number."""
    try:
        return name(value).removeprefix(prefix)
    except ValueError:
        return str(value)


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)
