"""Messages of `certplane.v1` into the agent's values. The broker is checked as a stranger is.

Texts are made printable and short; a time that is none is passed over where the agent has a rule of its own, and is
nonsense where it hasn't. What the certificate itself is, the caller judges.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from certplane.agent.model import IdentityView, IssuedCertificate, OrderView
from certplane.errors import OperationError, Reason, Refusal
from certplane.rpc.status import refusal_from_status
from certplane.rpc.times import time_of
from certplane.runtime.text import printable
from certplane.v1 import certificate_pb2, enrollment_pb2

_ID: Final = re.compile(r"[!-~]{0,128}")
_MOST_TEXT: Final = 500
_MOST_NAME: Final = 256
_MOST_PROFILES: Final = 1000


def order_view(order: certificate_pb2.Order, certificate: certificate_pb2.Certificate | None) -> OrderView:
    """An order, with its certificate when there is one.

    Raises:
        OperationError: the broker sent an invalid message.
    """
    return OrderView(
        order_id=_id("order_id", order.order_id),
        state=_suffix(certificate_pb2.Order.State.Name, order.state, "STATE_"),
        certificate=None if certificate is None else _issued(certificate),
        error=_refusal(order) if order.HasField("error") else None,
        retry_time=time_of(order.retry_time) if order.HasField("retry_time") else None,
        trouble=printable(order.trouble, _MOST_TEXT),
        wait_time=time_of(order.wait_time) if order.HasField("wait_time") else None,
    )


def identity_view(response: enrollment_pb2.GetIdentityResponse) -> IdentityView:
    """How the broker sees the caller.

    Raises:
        OperationError: the broker sent an invalid message.
    """
    identity = response.identity
    return IdentityView(
        name=printable(identity.name, _MOST_NAME),
        kind=_suffix(enrollment_pb2.Identity.Kind.Name, identity.kind, "KIND_").lower(),
        label=printable(identity.label, _MOST_NAME),
        serial_number=printable(identity.serial_number, _MOST_NAME),
        expire_time=_time("identity.expire_time", identity.expire_time),
        profiles=tuple(printable(each, _MOST_NAME) for each in identity.profiles[:_MOST_PROFILES]),
        broker_time=_time("broker_time", response.broker_time),
        broker_version=printable(response.broker_version, _MOST_NAME),
        contest_time=moment(identity, "contest_time"),
        profile_names={
            printable(profile.name, _MOST_NAME): tuple(printable(name, _MOST_NAME) for name in profile.dns_names)
            for profile in response.granted_profiles[:_MOST_PROFILES]
        },
    )


def moment(message: Message, name: str) -> datetime | None:
    """A message's time of this field; None if it isn't set.

    Raises:
        OperationError: the broker sent an invalid message.
    """
    return _time(name, getattr(message, name)) if message.HasField(name) else None


def _issued(certificate: certificate_pb2.Certificate) -> IssuedCertificate:
    return IssuedCertificate(
        certificate_pem=certificate.certificate_pem,
        chain_pem=certificate.chain_pem,
        certificate_id=_id("certificate_id", certificate.certificate_id),
        renew_time=_renew_time(certificate.renew_time) if certificate.HasField("renew_time") else None,
    )


def _renew_time(stamp: Timestamp) -> datetime | None:
    """When the broker wants it renewed; the host's own rule where that is no time of our century."""
    moment = time_of(stamp)
    return moment if moment is not None and moment.year >= _FIRST_YEAR else None


_FIRST_YEAR: Final = 1970


def _refusal(order: certificate_pb2.Order) -> Refusal:
    known = refusal_from_status(order.error)
    return known or Refusal(Reason.INTERNAL, printable(order.error.message, _MOST_TEXT) or "the order failed")


def _suffix(name: Callable[[Any], str], value: int, prefix: str) -> str:
    """The name of an enum's value without its prefix; a newer broker's value is its number."""
    try:
        return name(value).removeprefix(prefix)
    except ValueError:
        return str(value)


def _id(field: str, text: str) -> str:
    if _ID.fullmatch(text) is None:
        raise _nonsense(f"{field} is {printable(text, 40)!r}")
    return text


def _time(field: str, stamp: Timestamp) -> datetime:
    moment = time_of(stamp)
    if moment is None:
        raise _nonsense(f"{field} is {stamp.seconds} s and {stamp.nanos} ns, which is no time")
    return moment


def _nonsense(what: str) -> OperationError:
    return OperationError(
        f"the broker sent an invalid message: {what}",
        remedy="check that broker.url names a Certplane broker, and see its log",
    )
