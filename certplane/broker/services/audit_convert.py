"""Between `AuditService`'s messages and the broker's values."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from certplane.broker.event_filter import EventFilter
from certplane.broker.events import AuditSeverity
from certplane.broker.ports import ShownEvent
from certplane.broker.proof.verify import Finding, Verified
from certplane.broker.services.convert import cursor_from_token, invalid_request
from certplane.rpc.times import span_of, timestamp
from certplane.runtime.text import serial_digits
from certplane.v1 import audit_pb2 as pb

_LISTS: Final = (
    "identities", "dns_names", "serial_numbers", "event_types", "reason_codes", "ids", "profiles"
)  # fmt: skip
_MOST_VALUES: Final = 100
"""Of one condition."""
_MOST_TEXT: Final = 256
_DIGITS: Final = 18


def event_filter(message: pb.AuditFilter, identities: Callable[[str], frozenset[str]], now: datetime) -> EventFilter:
    """What a filter picks; `identities` finds those of a name or label.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    for field in _LISTS:
        values = getattr(message, field)
        if len(values) > _MOST_VALUES:
            raise invalid_request(f"filter.{field}", f"must be at most {_MOST_VALUES}")
        if any(not 0 < len(value) <= _MOST_TEXT for value in values):
            raise invalid_request(f"filter.{field}", f"must each have 1 to {_MOST_TEXT} characters")
    start = moment("filter.start_time", message.start_time) if message.HasField("start_time") else None
    if message.HasField("within"):
        if start is not None:
            raise invalid_request("filter.within", "doesn't go together with start_time")
        span = span_of(message.within)
        if not span:
            raise invalid_request("filter.within", "must be a time that is longer than nothing")
        start = _before(now, span)
    try:
        severity = AuditSeverity(message.severity or AuditSeverity.INFO)
    except ValueError:
        raise invalid_request("filter.severity", f"must be one of {', '.join(AuditSeverity)}") from None
    return EventFilter(
        start=start,
        end=moment("filter.end_time", message.end_time) if message.HasField("end_time") else None,
        identities=frozenset().union(*map(identities, message.identities)),
        dns_names=frozenset(name.lower() for name in message.dns_names),
        serial_numbers=frozenset(map(serial_digits, message.serial_numbers)),
        event_types=frozenset(message.event_types),
        reason_codes=frozenset(message.reason_codes),
        ids=frozenset(message.ids),
        profiles=frozenset(message.profiles),
        severity=severity,
    )


def moment(field: str, time: Timestamp) -> datetime:
    """The time of a field.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    try:
        return time.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid_request(field, "is no time") from None


def _before(now: datetime, span: timedelta) -> datetime:
    try:
        return now - span
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def place_of(token: str) -> int | None:
    """The place after which a page goes on; None for the first page.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, no token of this broker.
    """
    if not token:
        return None
    text = cursor_from_token(token)
    if not (text.isdecimal() and len(text) <= _DIGITS):
        raise invalid_request("page_token", "is not one of this broker")
    return int(text)


def event_message(event: ShownEvent) -> pb.AuditEvent:
    """An event as a message."""
    message = pb.AuditEvent(
        event_id=str(event.record.get("event_id", "")),
        event_time=timestamp(event.time),
        event_type=str(event.record.get("event_type", "")),
        sequence=event.sequence,
    )
    ParseDict(_plain(event.record), message.record)
    return message


def _plain(record: dict[str, object]) -> dict[str, object]:
    """Without lone surrogates, which no message can hold: they stand as a file's name has them."""
    return {name: _text(value) for name, value in record.items()}


def _text(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_text(each) for each in value]
    return value


def finding_message(finding: Finding) -> pb.VerifyAuditLogResponse:
    """Something that doesn't hold."""
    response = pb.VerifyAuditLogResponse()
    found = response.finding
    found.sequence, found.event_id = finding.sequence, str(_text(finding.event_id))
    found.kind, found.text = finding.kind.value, finding.text
    return response


def result_message(result: Verified) -> pb.VerifyAuditLogResponse:
    """What came of it."""
    return pb.VerifyAuditLogResponse(
        result=pb.VerifyAuditLogResponse.Result(
            event_count=result.event_count,
            chain_count=result.chain_count,
            checkpoint_count=result.checkpoint_count,
            finding_count=result.finding_count,
            signed_sequence=result.signed_sequence,
            unchained_event_count=result.unchained_event_count,
        )
    )
