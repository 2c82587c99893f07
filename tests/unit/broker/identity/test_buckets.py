"""Token buckets, by a clock that the test moves."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from certplane.broker.identity.buckets import TokenBuckets
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


def test_there_are_not_too_many_buckets(clock: ManualClock) -> None:
    """When there are too many, the one unused for longest goes: whoever still calls keeps its own."""
    buckets = TokenBuckets(rate=1, burst=1, monotonic=clock.monotonic, most=10)
    assert buckets.take("empty") is None
    for number in range(50):
        assert buckets.take(f"new-{number}") is None
        assert buckets.take("empty") is not None
    assert len(buckets) == 10


def test_what_was_used_is_paid(buckets: TokenBuckets, clock: ManualClock) -> None:
    """A charge leaves a debt, which is paid before the bucket gives anything."""
    buckets.charge("a", 5)
    assert buckets.in_debt("a")
    assert buckets.take("a") == timedelta(seconds=1.5)
    clock.advance(timedelta(seconds=1))
    assert not buckets.in_debt("a")
    clock.advance(timedelta(seconds=0.5))
    assert buckets.take("a") is None
    assert not buckets.in_debt("b")


def test_no_debt_is_for_ever(buckets: TokenBuckets, clock: ManualClock) -> None:
    """Whatever one call has cost, ten minutes and the time for its own tokens are the most that its caller waits."""
    buckets.charge("a", 1_000_000)
    wait = buckets.take("a")
    assert wait is not None
    assert wait <= timedelta(minutes=10, seconds=1)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_senseless_buckets_are_a_mistake(rate: float, burst: int) -> None:
    """A bucket that would never give a token can't be made."""
    with pytest.raises(ValueError, match="bucket"):
        TokenBuckets(rate=rate, burst=burst, monotonic=lambda: 0.0)


def test_buckets_of_quiet_callers_are_forgotten(buckets: TokenBuckets, clock: ManualClock) -> None:
    """Ten thousand hosts that each said something have no bucket soon after; one in debt keeps its own."""
    for number in range(100):
        buckets.take(f"host-{number}")
    buckets.charge("in debt", 20)
    clock.advance(timedelta(seconds=1))
    for _ in range(60):
        buckets.take("one")
    assert len(buckets) == 2
    assert buckets.in_debt("in debt")


class _Keeping(TokenBuckets):
    """The plain form: it forgets none that is full."""

    @override
    def _forget_full(self, now: float) -> None:
        pass


USES = st.one_of(
    st.tuples(st.just("take"), st.sampled_from("abc"), st.sampled_from([1, 1, 2, 3, 4])),
    st.tuples(st.just("charge"), st.sampled_from("abc"), st.sampled_from([0, 0.5, 2, 7])),
    st.tuples(st.just("in_debt"), st.sampled_from("abc"), st.just(0)),
    st.tuples(st.just("wait"), st.just(""), st.sampled_from([0.1, 0.5, 1, 1.5, 5])),
)


@given(st.lists(USES, max_size=60))
def test_a_forgotten_bucket_was_as_good_as_none(uses: list[tuple[str, str, float]]) -> None:
    """Whatever is taken and charged at whatever times, the answers are those of buckets that are all kept."""
    clock = ManualClock()
    kept = _Keeping(rate=2, burst=3, monotonic=clock.monotonic)
    buckets = TokenBuckets(rate=2, burst=3, monotonic=clock.monotonic)

    def use(each: TokenBuckets, what: str, name: str, tokens: float) -> object:
        if what == "take":
            return each.take(name, tokens)
        return each.charge(name, tokens) if what == "charge" else each.in_debt(name)

    for what, name, amount in uses:
        if what == "wait":
            clock.advance(timedelta(seconds=amount))
        else:
            assert use(buckets, what, name, amount) == use(kept, what, name, amount)
    assert len(buckets) <= len(kept)
