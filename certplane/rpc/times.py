"""Times and spans of messages: what a peer writes there may be none, and reading it raises nothing.

`Timestamp` and `Duration` hold any 64-bit number of seconds and any 32-bit number of nanoseconds; `ToDatetime` and
`ToTimedelta` raise for most of them. What is none is None here: who reads knows whether that is a message to refuse, an
error to tell or a field to pass over.
"""

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_NANOS = 1_000_000_000


def time_of(stamp: Timestamp) -> datetime | None:
    """The moment, in UTC and to the microsecond; None where it is none between the years 1 and 9999."""
    if not 0 <= stamp.nanos < _NANOS:
        return None
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def span_of(duration: Duration) -> timedelta | None:
    """The span; None where it is none, or negative."""
    if not (duration.seconds >= 0 and 0 <= duration.nanos < _NANOS):
        return None
    try:
        return duration.ToTimedelta()
    except (ValueError, OverflowError):
        return None


def signed_span_of(duration: Duration) -> timedelta | None:
    """The span, which may be negative; None where it is none."""
    try:
        return duration.ToTimedelta()
    except (ValueError, OverflowError):
        return None


def timestamp(moment: datetime | None) -> Timestamp | None:
    """As a message has it."""
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
