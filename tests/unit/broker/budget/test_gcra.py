"""How buckets fill and empty, against a CA that counts late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.budget import gcra
from certplane.broker.budget.model import FULL, Limit, LimitScope, Rate

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
RATES = st.builds(
    lambda scope, amount, per: Limit("limit", scope, amount, timedelta(seconds=per)).rate,
    st.sampled_from([LimitScope.ACCOUNT, LimitScope.NAMES, LimitScope.FAILED_VALIDATIONS]),
    st.integers(1, 6),
    st.sampled_from([1, 10, 600, 3600, 604_800]),
)
PARTS = st.floats(0, 1)


@given(RATES, st.lists(st.tuples(PARTS, PARTS, st.booleans()), max_size=40))
def test_no_place_is_one_that_the_ca_does_not_have(rate: Rate, steps: list[tuple[float, float, bool]]) -> None:
    """However late it counts each order, within the lag; and a place is there exactly when one is left."""
    level, now, full, uncounted = FULL, NOW, NOW, list[datetime]()
    for pause, late, waits in steps:
        now += pause * pause * rate.interval * 2
        free = gcra.free_time(level, rate)
        assert (free <= now) is (gcra.places_left(level, rate, now) > 0)
        if free > now:
            if not waits:
                continue
            now = free
        for then in sorted(each for each in uncounted if each <= now):
            full = max(full, then) + rate.interval
        uncounted = [each for each in uncounted if each > now]
        assert max(full, now) + rate.interval - rate.amount * rate.interval <= now
        level = gcra.take(level, rate, now)
        uncounted.append(now + late * rate.lag)
        assert gcra.whole_time(level, rate) > now


@given(RATES, st.integers(1, 12))
def test_places_come_back_one_after_the_other(rate: Rate, taken: int) -> None:
    """Who waits gets one each interval; the lag comes once, but where each place is the only one."""
    level, now = FULL, NOW
    for _ in range(rate.amount):
        level = gcra.take(level, rate, now)
    assert gcra.places_left(level, rate, now) == 0
    for _ in range(taken):
        now = gcra.free_time(level, rate)
        level = gcra.take(level, rate, now)
    assert now == NOW + taken * rate.interval + (taken if rate.amount == 1 else 1) * rate.lag


@given(RATES, st.integers(0, 10_000))
def test_what_the_ca_says_is_the_next_place(rate: Rate, seconds: int) -> None:
    """Not before, and one then."""
    until = NOW + timedelta(seconds=seconds)
    level = gcra.emptied(rate, NOW, until)
    assert gcra.free_time(level, rate) == until
    assert gcra.places_left(level, rate, until) == 1
    assert gcra.sane(level, rate, NOW, until) == level


@given(RATES)
def test_what_is_given_back_is_there_again(rate: Rate) -> None:
    """A bucket of which nothing else was taken is full."""
    once = gcra.take(FULL, rate, NOW)
    assert gcra.give_back(once, rate) == FULL
    assert gcra.give_back(gcra.take(once, rate, NOW), rate) == once


def test_a_bucket_is_at_most_empty() -> None:
    """Whatever a clock that was set back, or a limit that was another one, has left there."""
    rate = Limit("limit", LimitScope.ACCOUNT, 3, 3 * MINUTE).rate
    level = gcra.take(FULL, rate, NOW + timedelta(days=900))
    sane = gcra.sane(level, rate, NOW, None)
    assert gcra.free_time(sane, rate) <= NOW + 3 * MINUTE + timedelta(minutes=6)


def test_the_last_failure_is_not_risked() -> None:
    """Two places have to be there; where a bucket has only one, that one."""
    rate = Limit("limit", LimitScope.FAILED_VALIDATIONS, 2, 2 * MINUTE).rate
    assert gcra.spare_time(FULL, rate) <= NOW
    assert gcra.spare_time(gcra.take(FULL, rate, NOW), rate) == NOW + MINUTE
    alone = Limit("limit", LimitScope.FAILED_VALIDATIONS, 1, MINUTE).rate
    assert gcra.spare_time(FULL, alone) <= NOW < gcra.spare_time(gcra.take(FULL, alone, NOW), alone)
