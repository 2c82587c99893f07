"""Refusals as `google.rpc.Status`, and back: the one place that knows which reason is which gRPC code.

Owns `CODES`, the table of design.md ("Errors"), and the layout of a status:

- exactly one `ErrorInfo`: the reason, domain `certplane`, and the request's id in its metadata;
- `RetryInfo` when the refusal says when to come back, and always for the reasons that have a default in the table;
- `QuotaFailure` for the violations of a limit, `BadRequest` for those of anything else;
- `PreconditionFailure` for a CA's problem documents, the first one first: `type` is the problem's URN, `subject` its
  identifier, `description` its detail; the HTTP status, if the CA gave one, is `problem_status_<n>` of the ErrorInfo.

A status travels in the trailing metadata, of which a peer accepts 8 KiB (gRPC's soft limit): what would make it larger
is cut, the least important first, never the ErrorInfo. Text that came from elsewhere loses its control characters here.

It raises nothing and logs nothing; what to do with a refusal is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from certplane.errors import ProblemDocument, Reason, Refusal, Violation
from certplane.runtime.text import printable

DOMAIN: Final = "certplane"

_MESSAGE_BYTES: Final = 512
_TEXT_BYTES: Final = 256
_PROBLEMS: Final = 8
_DETAILS_BYTES: Final = 3072
"""Base64 adds a third, and the message goes twice, once percent-encoded: under the 8 KiB, whatever is in it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One reason: its gRPC code, and when to come back if the refusal itself doesn't say (None: no `RetryInfo`)."""

    code: grpc.StatusCode
    retry_after: timedelta | None = None


CODES: Final[dict[Reason, Row]] = {
    Reason.IDENTITY_EXPIRED: Row(grpc.StatusCode.UNAUTHENTICATED),
    Reason.IDENTITY_REVOKED: Row(grpc.StatusCode.UNAUTHENTICATED),
    Reason.IDENTITY_RETIRED: Row(grpc.StatusCode.UNAUTHENTICATED),
    Reason.IDENTITY_CONTESTED: Row(grpc.StatusCode.UNAUTHENTICATED),
    Reason.IDENTITY_UNKNOWN: Row(grpc.StatusCode.PERMISSION_DENIED),
    Reason.PROFILE_NOT_ALLOWED: Row(grpc.StatusCode.PERMISSION_DENIED),
    Reason.NAMES_NOT_ALLOWED: Row(grpc.StatusCode.PERMISSION_DENIED),
    Reason.KEY_REUSED: Row(grpc.StatusCode.PERMISSION_DENIED),
    Reason.ROLE_REQUIRED: Row(grpc.StatusCode.PERMISSION_DENIED),
    Reason.CSR_INVALID: Row(grpc.StatusCode.INVALID_ARGUMENT),
    Reason.KEY_WEAK: Row(grpc.StatusCode.INVALID_ARGUMENT),
    Reason.REQUEST_INVALID: Row(grpc.StatusCode.INVALID_ARGUMENT),
    Reason.RATE_LIMITED: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, timedelta(minutes=1)),
    Reason.ISSUER_RATE_LIMITED: Row(grpc.StatusCode.RESOURCE_EXHAUSTED, timedelta(minutes=10)),
    Reason.AUDIT_UNAVAILABLE: Row(grpc.StatusCode.UNAVAILABLE, timedelta(seconds=30)),
    Reason.STORE_UNAVAILABLE: Row(grpc.StatusCode.UNAVAILABLE, timedelta(seconds=30)),
    Reason.POLICY_UNAVAILABLE: Row(grpc.StatusCode.UNAVAILABLE, timedelta(minutes=1)),
    Reason.ISSUER_UNAVAILABLE: Row(grpc.StatusCode.UNAVAILABLE, timedelta(minutes=1)),
    Reason.DNS_UNAVAILABLE: Row(grpc.StatusCode.UNAVAILABLE, timedelta(minutes=1)),
    Reason.DRAINING: Row(grpc.StatusCode.UNAVAILABLE, timedelta(seconds=10)),
    Reason.ISSUER_REJECTED: Row(grpc.StatusCode.FAILED_PRECONDITION),
    Reason.DNS_REJECTED: Row(grpc.StatusCode.FAILED_PRECONDITION),
    Reason.BOOTSTRAP_NOT_CONFIGURED: Row(grpc.StatusCode.FAILED_PRECONDITION),
    Reason.ORDER_NOT_FOUND: Row(grpc.StatusCode.NOT_FOUND),
    Reason.CERTIFICATE_NOT_FOUND: Row(grpc.StatusCode.NOT_FOUND),
    Reason.HOST_NOT_FOUND: Row(grpc.StatusCode.NOT_FOUND),
    Reason.STREAM_DISPLACED: Row(grpc.StatusCode.ABORTED, timedelta(minutes=1)),
    Reason.STREAM_TIMED_OUT: Row(grpc.StatusCode.ABORTED, timedelta(seconds=5)),
    Reason.INTERNAL: Row(grpc.StatusCode.INTERNAL),
}


def status_from_refusal(refusal: Refusal, *, request_id: str = "") -> status_pb2.Status:
    """The status that tells `refusal` to a caller.

    Args:
        refusal: What to tell; a missing `retry_after` is filled from the table.
        request_id: Put into the ErrorInfo's metadata, so that a report can be matched with the broker's log.
    """
    row = CODES[refusal.reason]
    info = error_details_pb2.ErrorInfo(domain=DOMAIN, reason=refusal.reason.value)
    if request_id:
        info.metadata["request_id"] = request_id
    for index, problem in enumerate(refusal.problems[:_PROBLEMS]):
        if problem.status is not None:
            info.metadata[f"problem_status_{index}"] = str(problem.status)
    status = status_pb2.Status(code=row.code.value[0], message=printable(refusal.message, _MESSAGE_BYTES))
    status.details.add().Pack(info)
    retry_after = row.retry_after if refusal.retry_after is None else refusal.retry_after
    if retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(max(retry_after, timedelta()))
        status.details.add().Pack(retry)
    room = _DETAILS_BYTES - sum(detail.ByteSize() for detail in status.details)
    for message in (_problems_detail(refusal, room * 2 // 3), _violations_detail(refusal, row, room)):
        if message is not None and message.ByteSize() + _ANY_BYTES <= room:
            status.details.add().Pack(message)
            room -= message.ByteSize() + _ANY_BYTES
    return status


def grpc_status(status: status_pb2.Status) -> grpc.Status:
    """`status` as `context.abort_with_status` takes it."""
    return rpc_status.to_status(status)


def refusal_from_error(error: grpc.aio.AioRpcError) -> Refusal | None:
    """What a broker refused with; None when no Certplane broker said so (no connection, a proxy, a bare code)."""
    try:
        # An AioRpcError has what `from_call` reads of a Call: code, details and trailing metadata.
        status = rpc_status.from_call(cast("grpc.Call", error))
    except (ValueError, DecodeError):  # not well formed, or contradicts the code: not to be believed
        return None
    return None if status is None else refusal_from_status(status)


def refusal_from_status(status: status_pb2.Status) -> Refusal | None:
    """The refusal inside `status`, as in `Order.error`; None when it has no ErrorInfo of domain `certplane`.

    A reason that this version doesn't know (a newer broker's) becomes INTERNAL, its name put before the message, and
    keeps its `retry_after`: house rule 19, an old agent works with a new broker.
    """
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    quota = error_details_pb2.QuotaFailure()
    bad_request = error_details_pb2.BadRequest()
    precondition = error_details_pb2.PreconditionFailure()
    found = set()
    for detail in status.details:
        for message in (info, retry, quota, bad_request, precondition):
            try:
                if detail.Unpack(message):
                    found.add(message.DESCRIPTOR.name)
            except DecodeError:
                return None
    if "ErrorInfo" not in found or info.domain != DOMAIN:
        return None
    reason, text = _known_reason(printable(info.reason, _TEXT_BYTES), printable(status.message, _MESSAGE_BYTES))
    told = [(entry.subject, entry.description) for entry in quota.violations]
    told += [(entry.field, entry.description) for entry in bad_request.field_violations]
    violations = [Violation(printable(what, _TEXT_BYTES), printable(why, _TEXT_BYTES)) for what, why in told]
    problems = [
        ProblemDocument(
            type=printable(entry.type, _TEXT_BYTES),
            detail=printable(entry.description, _TEXT_BYTES),
            status=_number(info.metadata.get(f"problem_status_{index}", "")),
            identifier=printable(entry.subject, _TEXT_BYTES),
        )
        for index, entry in enumerate(precondition.violations)
    ]
    retry_after = _span(retry.retry_delay) if "RetryInfo" in found else None
    request_id = printable(info.metadata.get("request_id", ""), _TEXT_BYTES)
    return Refusal(reason, text, retry_after, tuple(violations), tuple(problems), request_id)


_ANY_BYTES: Final = 64
"""More than what packing into `google.protobuf.Any` adds: the type's URL and the lengths."""


def _known_reason(name: str, message: str) -> tuple[Reason, str]:
    try:
        return Reason(name), message
    except ValueError:
        return Reason.INTERNAL, f"{name}: {message}"


def _span(duration: Duration) -> timedelta:
    """The wait; the longest there is where a peer's number is none that can be waited for."""
    try:
        return duration.ToTimedelta()
    except (OverflowError, ValueError):
        return timedelta.max if duration.seconds > 0 else timedelta()


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _violations_detail(
    refusal: Refusal, row: Row, room: int
) -> error_details_pb2.QuotaFailure | error_details_pb2.BadRequest | None:
    if not refusal.violations:
        return None
    kept = _fitting(((violation.subject, violation.description) for violation in refusal.violations), room)
    if row.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        quota = error_details_pb2.QuotaFailure()
        for subject, description in kept:
            quota.violations.add(subject=subject, description=description)
        return quota
    bad_request = error_details_pb2.BadRequest()
    for field, description in kept:
        bad_request.field_violations.add(field=field, description=description)
    return bad_request


def _problems_detail(refusal: Refusal, room: int) -> error_details_pb2.PreconditionFailure | None:
    if not refusal.problems:
        return None
    precondition = error_details_pb2.PreconditionFailure()
    texts = ((problem.type, problem.identifier, problem.detail) for problem in refusal.problems[:_PROBLEMS])
    for kind, identifier, detail in _fitting(texts, room):
        precondition.violations.add(type=kind, subject=identifier, description=detail)
    return precondition


def _fitting(rows: Iterable[tuple[str, ...]], room: int) -> list[tuple[str, ...]]:
    """As many rows, cleaned and each text cut to `_TEXT_BYTES`, as fit into `room` bytes of a repeated field."""
    kept = []
    left = room - _ANY_BYTES
    for row in rows:
        cleaned = tuple(printable(text, _TEXT_BYTES) for text in row)
        left -= sum(len(text.encode()) + 4 for text in cleaned) + 4  # tag and length of each field, and of the row
        if left < 0:
            break
        kept.append(cleaned)
    return kept
