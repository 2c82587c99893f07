"""Times and spans of messages: what a peer writes there may be none, and reading it raises nothing.

`Timestamp` and `Duration` hold any 64-bit number of seconds and any 32-bit number of nanoseconds; `ToDatetime` and
`ToTimedelta` raise for most of them. What is none is None here: who reads knows whether that is a message to refuse, an
error to tell or a field to pass over.
"""

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_NANOS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def time_of(stamp: Timestamp) -> datetime | None:
    """The moment, in UTC and to the microsecond; None where it is none between the years 1 and 9999."""
    if not 0 <= stamp.nanos < _NANOS:
        return None
    try:
        return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)
    except OverflowError:
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


def timestamp(moment: datetime) -> Timestamp:
    """As a message has it."""
    stamp = Timestamp()
    put_time(moment, stamp)
    return stamp


def put_time(moment: datetime, stamp: Timestamp) -> None:
    """Write it into a message's field, which saves a copy."""
    # FromDatetime does the same several times slower; this is on the path of every answer.
    since = moment - _EPOCH
    stamp.seconds, stamp.nanos = since.days * 86_400 + since.seconds, since.microseconds * 1000
    stamp.SetInParent()  # the epoch itself is a time too
