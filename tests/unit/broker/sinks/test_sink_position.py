"""Which events a sink has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.sinks.position import MOST_RANGES, SinkPosition


@given(st.integers(0, 30), st.lists(st.one_of(st.integers(1, 60), st.sets(st.integers(1, 60)))))
def test_a_position_is_a_set_of_numbers(low: int, steps: list[int | set[int]]) -> None:
    """Numbers that were copied are in it, and so are all up to the low mark; it keeps no more ranges than it needs."""
    position, known, mark = SinkPosition(low), {*range(low + 1)}, low
    for step in steps:
        if isinstance(step, set):
            position = position.with_copied(step)
            known |= step
        else:
            position = position.settled(step)
            mark = max(mark, step)
            known |= {*range(mark + 1)}
    assert {number for number in range(62) if number in position} == known
    assert position.high == max(known)
    gaps = [number for number in range(1, max(known) + 1) if number not in known]
    assert len(position.ranges) <= len(gaps)
    assert position.low == min([*gaps, max(known) + 1]) - 1 or not position.ranges


def test_gaps_without_end_are_passed() -> None:
    """The oldest ones: a position stays a short row."""
    position = SinkPosition().with_copied(range(2, 2 * MOST_RANGES + 20, 2))
    assert len(position.ranges) <= MOST_RANGES
    assert 1 in position
    assert 2 * MOST_RANGES + 1 not in position
