"""How far the clocks of host and broker are apart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.agent.renewal.skew import ClockSkew

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MILLISECOND, SECOND = timedelta(milliseconds=1), timedelta(seconds=1)


def exchange(skew: ClockSkew, at: datetime, *, ahead: timedelta, out: timedelta, back: timedelta) -> None:
    """The host, `ahead` of the broker, asks at `at` of its clock; the answer is made after `out`, and takes `back`."""
    skew.record(at + out - ahead, sent=at, received=at + out + back)


def test_nothing_is_known_at_first() -> None:
    """Before the first exchange there is no estimate and no warning."""
    skew = ClockSkew()
    assert skew.best is None
    assert not skew.excessive


@given(
    ahead=st.timedeltas(timedelta(days=-2), timedelta(days=2)),
    trips=st.lists(
        st.tuples(st.timedeltas(timedelta(), 5 * SECOND), st.timedeltas(timedelta(), 5 * SECOND)),
        min_size=1,
        max_size=20,
    ),
)
def test_estimate_is_within_its_error(ahead: timedelta, trips: list[tuple[timedelta, timedelta]]) -> None:
    """However slow and lopsided the way, the clocks' distance lies within what the estimate says of itself."""
    skew = ClockSkew()
    for number, (out, back) in enumerate(trips):
        exchange(skew, NOW + number * 20 * SECOND, ahead=ahead, out=out, back=back)
        best = skew.best
        assert best is not None
        assert abs(best.skew - ahead) <= best.error + MILLISECOND


def test_quickest_exchange_counts() -> None:
    """One slow answer doesn't spoil what a quick one has shown."""
    skew = ClockSkew()
    exchange(skew, NOW, ahead=SECOND, out=5 * MILLISECOND, back=5 * MILLISECOND)
    exchange(skew, NOW + 30 * SECOND, ahead=SECOND, out=4 * SECOND, back=0 * SECOND)
    best = skew.best
    assert best is not None
    assert best.skew == SECOND


def test_clock_that_was_set_starts_over() -> None:
    """An exchange that contradicts the others makes them worthless, however quick they were."""
    skew = ClockSkew()
    for number in range(8):
        exchange(skew, NOW + number * SECOND, ahead=timedelta(), out=MILLISECOND, back=MILLISECOND)
    exchange(skew, NOW + timedelta(hours=1), ahead=timedelta(hours=1), out=SECOND, back=SECOND)
    best = skew.best
    assert best is not None
    assert best.skew == timedelta(hours=1)
    assert skew.excessive


def test_exchange_during_which_the_clock_was_set_back_says_nothing() -> None:
    """An answer that came before its question is left out."""
    skew = ClockSkew()
    skew.record(NOW, sent=NOW, received=NOW - SECOND)
    assert skew.best is None


@pytest.mark.parametrize(
    ("ahead", "trip", "excessive"),
    [
        pytest.param(29 * SECOND, MILLISECOND, False, id="less than 30 s"),
        pytest.param(31 * SECOND, MILLISECOND, True, id="more"),
        pytest.param(-31 * SECOND, MILLISECOND, True, id="behind"),
        pytest.param(31 * SECOND, 5 * SECOND, False, id="more, but the way was slow"),
    ],
)
def test_warns_when_it_is_sure(ahead: timedelta, trip: timedelta, excessive: bool) -> None:
    """A warning is for a distance that no slow answer explains."""
    skew = ClockSkew()
    exchange(skew, NOW, ahead=ahead, out=trip, back=trip)
    assert skew.excessive == excessive
