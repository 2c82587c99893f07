"""The retry epoch: when it moves, and how often at most."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest

from certplane.broker.issuance.epoch import RetryEpoch
from tests.fakes.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def epoch(clock: ManualClock) -> RetryEpoch:
    numbers = itertools.count(1)
    return RetryEpoch(clock, lambda: f"epoch-{next(numbers)}")


def test_what_changes_again_and_again_moves_it_once_in_half_a_minute(clock: ManualClock, epoch: RetryEpoch) -> None:
    """A CA that comes and goes doesn't have every waiting host ask each time; the last change isn't forgotten."""
    clock.advance(timedelta(seconds=30))
    for _ in range(5):
        epoch.move("the CA answers again")
    assert epoch.current == "epoch-2"
    clock.advance(timedelta(seconds=29))
    assert epoch.current == "epoch-2"
    clock.advance(timedelta(seconds=1))
    assert epoch.current == "epoch-3"
    clock.advance(timedelta(hours=1))
    assert epoch.current == "epoch-3"


def test_a_person_is_not_made_to_wait(epoch: RetryEpoch) -> None:
    """What an operator asks for moves it at once, and takes what waited along."""
    epoch.move("the CA answers again")
    epoch.ask_again("the files were read again")
    assert epoch.current == "epoch-2"


def test_a_start_is_an_epoch_of_its_own(clock: ManualClock) -> None:
    """Two processes never have the same one."""
    numbers = itertools.count(1)
    assert (
        RetryEpoch(clock, lambda: f"{next(numbers)}").current != RetryEpoch(clock, lambda: f"{next(numbers)}").current
    )
