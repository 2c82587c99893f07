"""When a call that failed is made again."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest

from certplane.caller.patience import next_wait

SECOND = timedelta(seconds=1)


def waits(**facts: Any) -> list[timedelta | None]:
    given: dict[str, Any] = {"told": None, "unreached": False, "failures": 1, "left": 30 * SECOND, **facts}
    return [next_wait(**given, rng=random.Random(seed)) for seed in range(50)]


def test_a_refusal_without_a_time_is_final() -> None:
    """What a person must change is told at once."""
    assert set(waits()) == {None}


@pytest.mark.parametrize(("told", "most"), [(5, 6), (0, 0)])
def test_the_brokers_time(told: int, most: int) -> None:
    """It is waited for, never less, and spread."""
    found = [wait for wait in waits(told=told * SECOND) if wait is not None]
    assert len(found) == 50
    assert told * SECOND <= min(found) <= max(found) <= most * SECOND


def test_a_time_beyond_the_callers() -> None:
    """Nobody waits for what comes too late."""
    assert set(waits(told=31 * SECOND)) == {None}


def test_no_connection() -> None:
    """It is tried again by backoff with jitter, as long as there is time."""
    assert all(wait is not None and wait <= SECOND / 2 for wait in waits(unreached=True))
    assert all(wait is not None and wait <= 2 * SECOND for wait in waits(unreached=True, failures=9))
    assert any(wait is None for wait in waits(unreached=True, failures=9, left=SECOND))
    assert set(waits(unreached=True, left=timedelta())) == {None}
