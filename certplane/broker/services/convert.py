"""Between messages and the broker's values: what a request may hold is checked here, once.

What is wrong with a request is REQUEST_INVALID with the field's name. What the CSR and the profile mean is not this
module's to judge.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime, timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration

from certplane.broker.model import Caller, CertificateRecord, IdentityKind, Order, OrderState, RevocationReason
from certplane.broker.services.calls import EdgeRefusalError
from certplane.errors import Reason, Violation
from certplane.rpc.status import status_from_refusal
from certplane.rpc.times import put_time, span_of, timestamp
from certplane.runtime.text import printable
from certplane.v1 import certificate_pb2, enrollment_pb2

DEFAULT_WAIT: Final = timedelta(seconds=30)
MAX_WAIT: Final = timedelta(minutes=10)
DEADLINE_MARGIN: Final = timedelta(seconds=1)
"""An answer leaves at the latest this long before the caller's deadline (design, fixed decision 3)."""

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 500
_LONGEST_TROUBLE: Final = 500
_MAX_TEXT: Final = 256
_ID: Final = re.compile(r"[!-~]{1,128}")
_CURSOR: Final = re.compile(r"[!-~]{1,1024}")

_KINDS: Final = {
    IdentityKind.HOST: enrollment_pb2.Identity.KIND_HOST,
    IdentityKind.SERVICE: enrollment_pb2.Identity.KIND_SERVICE,
    IdentityKind.OPERATOR: enrollment_pb2.Identity.KIND_OPERATOR,
}
STATES: Final = {
    OrderState.PENDING: certificate_pb2.Order.STATE_PENDING,
    OrderState.AUTHORIZED: certificate_pb2.Order.STATE_AUTHORIZED,
    OrderState.VALIDATING: certificate_pb2.Order.STATE_VALIDATING,
    OrderState.FINALIZING: certificate_pb2.Order.STATE_FINALIZING,
    OrderState.ISSUED: certificate_pb2.Order.STATE_ISSUED,
    OrderState.FAILED: certificate_pb2.Order.STATE_FAILED,
}
_REASONS: Final = {
    certificate_pb2.REVOCATION_REASON_UNSPECIFIED: RevocationReason.UNSPECIFIED,
    certificate_pb2.REVOCATION_REASON_KEY_COMPROMISE: RevocationReason.KEY_COMPROMISE,
    certificate_pb2.REVOCATION_REASON_AFFILIATION_CHANGED: RevocationReason.AFFILIATION_CHANGED,
    certificate_pb2.REVOCATION_REASON_SUPERSEDED: RevocationReason.SUPERSEDED,
    certificate_pb2.REVOCATION_REASON_CESSATION_OF_OPERATION: RevocationReason.CESSATION_OF_OPERATION,
}
REVOCATION_NUMBERS: Final = {reason: number for number, reason in _REASONS.items()}


def invalid_request(field: str, problem: str) -> EdgeRefusalError:
    """REQUEST_INVALID about `field`."""
    return EdgeRefusalError(Reason.REQUEST_INVALID, f"{field} {problem}", violations=[Violation(field, problem)])


def required(field: str, text: str) -> str:
    """A required text that isn't an id.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, it is empty or longer than any such text.
    """
    if not text:
        raise invalid_request(field, "is required")
    if len(text) > _MAX_TEXT:
        raise invalid_request(field, f"is longer than {_MAX_TEXT} characters")
    return text


def required_id(field: str, text: str) -> str:
    """An id as the broker makes them: printable ASCII.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    if not text:
        raise invalid_request(field, "is required")
    if _ID.fullmatch(text) is None:
        raise invalid_request(field, "is not an id of this broker")
    return text


def wait_of(duration: Duration | None, time_remaining: float | None) -> timedelta:
    """How long to wait for an order: as asked, but never into the last second before the call's deadline.

    Args:
        duration: The request's `wait_duration`; None (unset) is the default, zero answers at once.
        time_remaining: Seconds until the call's deadline; None without one.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, negative or over `MAX_WAIT`.
    """
    wait = DEFAULT_WAIT
    if duration is not None:
        if duration.seconds < 0 or duration.nanos < 0:
            raise invalid_request("wait_duration", "must not be negative")
        asked = span_of(duration)
        if asked is None:
            raise invalid_request("wait_duration", "is not a duration")
        wait = asked
        if wait > MAX_WAIT:
            raise invalid_request("wait_duration", "must not be longer than 10 minutes")
    if time_remaining is not None:
        wait = min(wait, max(timedelta(seconds=time_remaining) - DEADLINE_MARGIN, timedelta()))
    return wait


def page_size(size: int) -> int:
    """The size of a page: the default for 0, the largest for more.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, negative.
    """
    if size < 0:
        raise invalid_request("page_size", "must not be negative")
    return min(size, MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE


def token_from_cursor(cursor: str) -> str:
    """A page token; opaque, so that what is in it can change."""
    return urlsafe_b64encode(cursor.encode()).decode().rstrip("=") if cursor else ""


def cursor_from_token(token: str) -> str:
    """The cursor in a page token; empty for the first page.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, no token of this broker.
    """
    if not token:
        return ""
    try:
        cursor = urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise invalid_request("page_token", "is not a token of this broker") from error
    if _CURSOR.fullmatch(cursor) is None or token_from_cursor(cursor) != token:
        raise invalid_request("page_token", "is not a token of this broker")
    return cursor


def revocation_reason(number: int, *, field: str = "reason") -> RevocationReason:
    """The reason for a revocation, of the request's `field`.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, not one of the enum.
    """
    reason = _REASONS.get(certificate_pb2.RevocationReason.ValueType(number))
    if reason is None:
        raise invalid_request(field, "is not a reason that a subscriber may give")
    return reason


def identity_message(caller: Caller, contest_time: datetime | None = None) -> enrollment_pb2.Identity:
    """How the broker sees the caller; `contest_time` is since when two holders contest the identity."""
    return enrollment_pb2.Identity(
        name=caller.name,
        kind=_KINDS[caller.kind],
        label=caller.label,
        serial_number=caller.serial_number,
        issuer=caller.issuer,
        provisioner=caller.provisioner,
        expire_time=timestamp(caller.not_after),
        profiles=sorted(caller.profiles),
        roles=sorted(caller.roles),
        contest_time=None if contest_time is None else timestamp(contest_time),
    )


def order_message(order: Order) -> certificate_pb2.Order:
    """An order as its caller sees it; nothing of what the broker does at the CA and in DNS."""
    message = certificate_pb2.Order(
        order_id=order.order_id,
        state=STATES[order.state],
        profile=order.profile,
        dns_names=order.dns_names,
        public_key_sha256=order.public_key_sha256,
        replaces_certificate_id=order.replaces_certificate_id,
        issuer=order.issuer,
        certificate_id=order.certificate_id,
        create_time=timestamp(order.create_time),
        update_time=timestamp(order.update_time),
        trouble=printable(order.trouble, _LONGEST_TROUBLE),
    )
    if order.error is not None:
        message.error.CopyFrom(status_from_refusal(order.error, request_id=order.request_id))
    if order.retry_time is not None:
        put_time(order.retry_time, message.retry_time)
    if order.progress.place_time is not None:
        put_time(order.progress.place_time, message.wait_time)
    return message


def certificate_message(
    record: CertificateRecord, *, renew_time: datetime | None = None, with_pem: bool = True
) -> certificate_pb2.Certificate:
    """A stored certificate; lists leave its PEM out. `renew_time` is when to renew it as known now, if it is."""
    message = certificate_pb2.Certificate(
        certificate_id=record.certificate_id,
        profile=record.profile,
        dns_names=record.dns_names,
        serial_number=record.serial_number,
        issuer=record.issuer,
        public_key_sha256=record.public_key_sha256,
        certificate_pem=record.certificate_pem if with_pem else "",
        chain_pem=record.chain_pem if with_pem else "",
        not_before_time=timestamp(record.not_before),
        not_after_time=timestamp(record.not_after),
        renew_time=timestamp(renew_time or record.renew_time),
        create_time=timestamp(record.create_time),
    )
    if record.revoke_time is not None:
        put_time(record.revoke_time, message.revoke_time)
    return message
