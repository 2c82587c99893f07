"""Identifiers that sort by age."""

from __future__ import annotations

import random
import uuid
from datetime import timedelta

from certplane.runtime.ids import TimeOrderedIds
from tests.fakes.clock import ManualClock


def test_ids_are_uuids_of_version_7_with_their_time() -> None:
    """RFC 9562 5.7: 48 bits of milliseconds, then version, randomness, variant."""
    clock = ManualClock()
    made = uuid.UUID(TimeOrderedIds(clock)())
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == int(clock.now().timestamp() * 1000)


def test_ids_grow_whatever_the_clock_does() -> None:
    """Within a millisecond, over milliseconds, and when the clock is set back."""
    clock = ManualClock()
    new_id = TimeOrderedIds(clock)
    made = []
    for step in (0, 0, 1, 5, 0, -3_600_000, 0, 3_600_001):
        clock.jump(timedelta(milliseconds=step))
        made += [new_id() for _ in range(100)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(uuid.UUID(one).version == 7 for one in made)


def test_counting_on_never_runs_over() -> None:
    """From the greatest random start there is room for more ids than a millisecond can need."""

    class Greatest(random.Random):
        def getrandbits(self, k: int) -> int:
            return (1 << k) - 1

    clock = ManualClock()
    new_id = TimeOrderedIds(clock, Greatest())
    made = [uuid.UUID(new_id()) for _ in range(1000)]
    assert made == sorted(made)
    assert {one.int >> 80 for one in made} == {int(clock.now().timestamp() * 1000)}
    assert {(one.version, one.variant) for one in made} == {(7, uuid.RFC_4122)}


def test_two_programs_make_different_ids_in_the_same_millisecond() -> None:
    """Each starts at random."""
    clock = ManualClock()
    assert TimeOrderedIds(clock)() != TimeOrderedIds(clock)()
