"""Messages of `certplane.v1` into a program's values. The broker is checked as a stranger is.

Texts are made printable and short; a time that is none is passed over where there is a rule without it, and is nonsense
where there isn't. What a certificate itself is, whoever uses it judges.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from certplane.caller.values import Certificate, CertificateNews, Identity, Order, OrderState, RevocationReason
from certplane.errors import OperationError, Reason, Refusal
from certplane.rpc.status import refusal_from_status
from certplane.rpc.times import time_of
from certplane.runtime.text import printable
from certplane.v1 import certificate_pb2, enrollment_pb2, renewal_pb2

_ID: Final = re.compile(r"[!-~]{0,128}")
_MOST_TEXT: Final = 500
_MOST_NAME: Final = 256
_MOST_PROFILES: Final = 1000
_MOST_NAMES: Final = 1000
_FIRST_YEAR: Final = 1970


def identity_of(response: enrollment_pb2.GetIdentityResponse) -> Identity:
    """How the broker sees the caller.

    Raises:
        OperationError: the broker sent an invalid message.
    """
    identity = response.identity
    return Identity(
        name=_name(identity.name),
        kind=_suffix(enrollment_pb2.Identity.Kind.Name, identity.kind, "KIND_").lower(),
        label=_name(identity.label),
        serial_number=_name(identity.serial_number),
        expire_time=_time("identity.expire_time", identity.expire_time),
        profiles=tuple(map(_name, identity.profiles[:_MOST_PROFILES])),
        dns_names={_name(each.name): _names(each.dns_names) for each in response.granted_profiles[:_MOST_PROFILES]},
        roles=tuple(map(_name, identity.roles[:_MOST_PROFILES])),
        broker_time=_time("broker_time", response.broker_time),
        broker_version=_name(response.broker_version),
        contest_time=_optional(identity, "contest_time"),
    )


def certificate_of(message: certificate_pb2.Certificate) -> Certificate:
    """A certificate.

    Raises:
        OperationError: the broker sent an invalid message.
    """
    return Certificate(
        certificate_id=_id("certificate_id", message.certificate_id),
        profile=_name(message.profile),
        dns_names=_names(message.dns_names),
        serial_number=_name(message.serial_number),
        issuer=_name(message.issuer),
        public_key_sha256=_name(message.public_key_sha256),
        not_before=_time("not_before_time", message.not_before_time),
        not_after=_time("not_after_time", message.not_after_time),
        renew_time=_wanted(message, "renew_time"),
        revoke_time=_optional(message, "revoke_time"),
        certificate_pem=message.certificate_pem,
        chain_pem=message.chain_pem,
    )


def order_of(order: certificate_pb2.Order, certificate: certificate_pb2.Certificate | None) -> Order:
    """An order, with its certificate when there is one.

    Raises:
        OperationError: the broker sent an invalid message.
    """
    state = _suffix(certificate_pb2.Order.State.Name, order.state, "STATE_")
    return Order(
        order_id=_id("order_id", order.order_id),
        state=OrderState(state) if state in OrderState.__members__ else OrderState.UNKNOWN,
        profile=_name(order.profile),
        dns_names=_names(order.dns_names),
        certificate=None if certificate is None else certificate_of(certificate),
        error=_refusal(order) if order.HasField("error") else None,
        retry_time=time_of(order.retry_time) if order.HasField("retry_time") else None,
        trouble=printable(order.trouble, _MOST_TEXT),
        wait_time=time_of(order.wait_time) if order.HasField("wait_time") else None,
    )


def news_of(message: renewal_pb2.WatchMyCertificatesResponse.CertificateNews) -> CertificateNews:
    """What has become of a certificate.

    Raises:
        OperationError: the broker sent an invalid message.
    """
    reason = _suffix(certificate_pb2.RevocationReason.Name, message.revocation_reason, "REVOCATION_REASON_")
    return CertificateNews(
        certificate_id=_id("certificate_id", message.certificate_id),
        profile=_name(message.profile),
        dns_names=_names(message.dns_names),
        serial_number=_name(message.serial_number),
        not_after=_wanted(message, "not_after_time"),
        renew_time=_wanted(message, "renew_time"),
        renew_reason=printable(message.renew_reason, _MOST_TEXT),
        renewal_request_id=_name(message.renewal_request_id),
        revoke_time=_optional(message, "revoke_time"),
        revocation_reason=(
            RevocationReason(reason) if reason in RevocationReason.__members__ else RevocationReason.UNSPECIFIED
        ),
        public_key_sha256=_name(message.public_key_sha256),
        new_key=message.new_key,
    )


def _refusal(order: certificate_pb2.Order) -> Refusal:
    known = refusal_from_status(order.error)
    return known or Refusal(Reason.INTERNAL, printable(order.error.message, _MOST_TEXT) or "the order failed")


def _name(text: str) -> str:
    return printable(text, _MOST_NAME)


def _names(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(_name(text) for text in list(texts)[:_MOST_NAMES])


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


def _wanted(message: Message, field: str) -> datetime | None:
    """A time that may be missing, and is no time of our century where it is missing too."""
    if not message.HasField(field):
        return None
    moment = time_of(getattr(message, field))
    return moment if moment is not None and moment.year >= _FIRST_YEAR else None


def _optional(message: Message, field: str) -> datetime | None:
    return _time(field, getattr(message, field)) if message.HasField(field) else None


def _time(field: str, stamp: Timestamp) -> datetime:
    moment = time_of(stamp)
    if moment is None:
        raise _nonsense(f"{field} is {stamp.seconds} s and {stamp.nanos} ns, which is no time")
    return moment


def _nonsense(what: str) -> OperationError:
    return OperationError(
        f"the broker sent an invalid message: {what}",
        remedy="check that the URL names a Certplane broker, and see its log",
    )
