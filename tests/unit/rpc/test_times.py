"""Times of messages: none of them raises."""

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from certplane.rpc.times import signed_span_of, span_of, time_of, timestamp

_LAST = 253_402_300_799

TIMES = {
    "the epoch": (0, 0, datetime(1970, 1, 1, tzinfo=UTC)),
    "before it": (-1, 999_999_000, datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    "the last": (_LAST, 999_999_999, datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    "after the last": (_LAST + 1, 0, None),
    "before the first": (-62_135_596_801, 0, None),
    "the largest number": (2**63 - 1, 0, None),
    "the smallest number": (-(2**63), 0, None),
    "negative nanos": (0, -1, None),
    "a second of nanos": (0, 1_000_000_000, None),
}


@pytest.mark.parametrize(("seconds", "nanos", "moment"), TIMES.values(), ids=TIMES)
def test_a_time_is_one_or_none(seconds: int, nanos: int, moment: datetime | None) -> None:
    """What can't be a time is None."""
    assert time_of(Timestamp(seconds=seconds, nanos=nanos)) == moment


SPANS = {
    "nothing": (0, 0, timedelta()),
    "a second and a half": (1, 500_000_000, timedelta(seconds=1.5)),
    "ten thousand years": (315_576_000_000, 0, timedelta(seconds=315_576_000_000)),
    "the largest number": (2**63 - 1, 0, None),
    "negative": (-1, 0, None),
    "negative nanos": (0, -1, None),
    "of two minds": (1, -1, None),
    "a second of nanos": (0, 1_000_000_000, None),
}


@pytest.mark.parametrize(("seconds", "nanos", "span"), SPANS.values(), ids=SPANS)
def test_a_span_is_one_or_none(seconds: int, nanos: int, span: timedelta | None) -> None:
    """What can't be waited for is None."""
    assert span_of(Duration(seconds=seconds, nanos=nanos)) == span


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_no_number_raises(seconds: int, nanos: int) -> None:
    """Whatever a peer writes."""
    time_of(Timestamp(seconds=seconds, nanos=nanos))
    span_of(Duration(seconds=seconds, nanos=nanos))
    signed_span_of(Duration(seconds=seconds, nanos=nanos))


def test_a_signed_span_may_be_negative() -> None:
    """A clock is behind another as well as ahead."""
    assert signed_span_of(Duration(seconds=-5)) == timedelta(seconds=-5)
    assert signed_span_of(Duration(seconds=2**63 - 1)) is None


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_comes_back(moment: datetime) -> None:
    """To the microsecond."""
    stamp = timestamp(moment)
    assert stamp is not None
    assert time_of(stamp) == moment
