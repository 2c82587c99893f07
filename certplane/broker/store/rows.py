"""What rows are made of: times, audit events. Pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Final

from certplane.broker.events import AuditEvent

EventRow = tuple[str, int, str]
"""event_id, create_time, record: the columns of an audit insert in their order."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_micros(time: datetime) -> int:
    """`time` (aware) as whole microseconds since 1970 UTC."""
    span = time - _EPOCH
    return (span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds


def from_micros(micros: int) -> datetime:
    """The aware UTC time of a column."""
    return _EPOCH + timedelta(microseconds=micros)


# Audit events


def event_row(event: AuditEvent) -> EventRow:
    """The event as it is stored."""
    return (event.event_id, to_micros(event.timestamp), event.encode())


def record_row(record: str) -> EventRow:
    """A record that was spilled, as it is stored.

    Raises:
        ValueError: it isn't the JSON object of an event.
    """
    try:
        value = json.loads(record)
        time = datetime.fromisoformat(value["timestamp"])
        return (str(value["event_id"]), to_micros(time), record)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("not the record of an audit event") from error
