"""Times as columns hold them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_micros(time: datetime) -> int:
    """`time` (aware) as whole microseconds since 1970 UTC."""
    span = time - _EPOCH
    return (span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds


def from_micros(micros: int) -> datetime:
    """The aware UTC time of a column."""
    return _EPOCH + timedelta(microseconds=micros)
