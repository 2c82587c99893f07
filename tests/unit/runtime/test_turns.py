"""Other threads' turn beside one that computes."""

from __future__ import annotations

import sys

import pytest

from certplane.runtime.turns import let_go, short_turns


def test_the_interval_is_as_before_afterwards() -> None:
    """Whether the block ends well or not."""
    before = sys.getswitchinterval()

    def fail() -> None:
        with short_turns():
            assert sys.getswitchinterval() == pytest.approx(0.001)
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert sys.getswitchinterval() == pytest.approx(before)


def test_a_shorter_interval_stays() -> None:
    """Whoever has set one below a millisecond keeps it inside too."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    try:
        with short_turns():
            assert sys.getswitchinterval() == pytest.approx(0.0005)
    finally:
        sys.setswitchinterval(before)


def test_things_are_let_go_one_by_one() -> None:
    """The list is empty afterwards, and each thing was freed while the others were still there."""
    left: list[int] = []

    class Thing:
        def __del__(self) -> None:
            left.append(len(things))

    things = [Thing() for _ in range(3)]
    let_go(things)
    assert left == [2, 1, 0]
