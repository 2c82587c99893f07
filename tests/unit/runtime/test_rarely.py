"""What a peer brings about again and again is told now and then, and none of it is uncounted."""

from __future__ import annotations

from datetime import timedelta

from certplane.runtime.rarely import Rarely
from tests.fakes.clock import ManualClock


def test_some_at_once_then_one_a_minute_with_the_number_of_the_others() -> None:
    """An hour of twenty a second is seventy lines, which say how many there were."""
    clock = ManualClock()
    rarely = Rarely(clock)
    told = []
    for _ in range(3600 * 20):
        told.append(rarely.take("a"))
        clock.advance(timedelta(seconds=1 / 20))
    lines = [passed_over for passed_over in told if passed_over is not None]
    assert lines[:10] == [0] * 10
    assert 65 <= len(lines) <= 75
    assert len(lines) + sum(lines) > 3600 * 20 - 20 * 61


def test_each_kind_has_its_own() -> None:
    """One host's noise hides nothing of another's."""
    rarely = Rarely(ManualClock(), at_once=1)
    assert [rarely.take(kind) for kind in ("a", "a", "b", "b")] == [0, None, 0, None]


def test_after_a_quiet_time_all_is_told_again() -> None:
    """What was passed over before is said with the first."""
    clock = ManualClock()
    rarely = Rarely(clock, at_once=2)
    assert [rarely.take("a") for _ in range(4)] == [0, 0, None, None]
    clock.advance(timedelta(hours=1))
    assert [rarely.take("a") for _ in range(3)] == [2, 0, None]


def test_kinds_are_bounded() -> None:
    """A peer that invents kinds fills no memory."""
    rarely = Rarely(ManualClock())
    for number in range(10_500):
        rarely.take(number)
    assert len(rarely._kinds) == 10_000
