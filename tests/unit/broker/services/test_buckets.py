"""Token buckets, by a clock that the test moves."""

from __future__ import annotations

from datetime import timedelta

import pytest

from certplane.broker.services.interceptors.buckets import TokenBuckets
from tests.fakes.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def buckets(clock: ManualClock) -> TokenBuckets:
    return TokenBuckets(rate=2, burst=3, monotonic=clock.monotonic)


def test_burst_then_rate(buckets: TokenBuckets, clock: ManualClock) -> None:
    """A full bucket gives its burst at once, then a token each time one has come."""
    assert [buckets.take("a") for _ in range(4)] == [None, None, None, timedelta(seconds=0.5)]
    clock.advance(timedelta(seconds=0.25))
    assert buckets.take("a") == timedelta(seconds=0.25)
    clock.advance(timedelta(seconds=0.25))
    assert buckets.take("a") is None
    assert buckets.take("a") == timedelta(seconds=0.5)


def test_refusals_cost_nothing(buckets: TokenBuckets, clock: ManualClock) -> None:
    """A caller in a loop still gets through at the bucket's rate."""
    granted = 0
    for _ in range(100):
        granted += buckets.take("a") is None
        clock.advance(timedelta(seconds=0.1))
    assert granted in (22, 23)  # 3 at once, then 2 a second for 10 seconds less the last tenth


def test_bucket_does_not_overflow(buckets: TokenBuckets, clock: ManualClock) -> None:
    """However long a caller was away, it gets no more than the burst."""
    buckets.take("a")
    clock.advance(timedelta(days=1))
    assert [buckets.take("a") is None for _ in range(4)] == [True, True, True, False]


def test_names_have_their_own_buckets(buckets: TokenBuckets) -> None:
    """One caller's calls take nothing from another's."""
    assert buckets.take("a", 3) is None
    assert buckets.take("a") is not None
    assert buckets.take("b", 3) is None


def test_costly_call_waits_for_all_of_its_tokens(buckets: TokenBuckets) -> None:
    """A call that costs more waits until the bucket holds as much."""
    assert buckets.take("a", 2) is None
    assert buckets.take("a", 3) == timedelta(seconds=1)


def test_forgotten_buckets_change_no_answer(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are too many buckets the full ones go, and the others stay as empty as they were."""
    monkeypatch.setattr("certplane.broker.services.interceptors.buckets._MOST_BUCKETS", 10)
    buckets = TokenBuckets(rate=1, burst=1, monotonic=clock.monotonic)
    for number in range(9):
        buckets.take(f"old-{number}")
    clock.advance(timedelta(seconds=5))
    buckets.take("empty")
    for number in range(5):
        assert buckets.take(f"new-{number}") is None
    assert buckets.take("empty") is not None
    assert buckets.take("old-3") is None
    assert len(buckets._buckets) <= 10


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_senseless_buckets_are_a_mistake(rate: float, burst: int) -> None:
    """A bucket that would never give a token can't be made."""
    with pytest.raises(ValueError, match="bucket"):
        TokenBuckets(rate=rate, burst=burst, monotonic=lambda: 0.0)
