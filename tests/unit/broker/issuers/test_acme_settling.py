"""For how long what a CA has named may be missing."""

from __future__ import annotations

from datetime import timedelta

from certplane.broker.issuers.acme_settling import SETTLING, Settling
from tests.fakes.clock import ManualClock

URL, OTHER = "https://ca.test/order/1", "https://ca.test/order/2"


def step(clock: ManualClock, settling: Settling, *seconds: float, url: str = URL) -> list[bool]:
    """Whether it may still turn up, asked after each of these spans."""
    found = []
    for span in seconds:
        clock.advance(timedelta(seconds=span))
        found.append(settling.missing(url))
    return found


def test_missing_for_a_while() -> None:
    """It may turn up until it has been missing for the whole time; asked later again, it is missing anew."""
    clock = ManualClock()
    settling = Settling(clock)
    assert timedelta(seconds=90) == SETTLING
    assert step(clock, settling, 0, 45, 44.9, 0.1, 0, 89) == [True, True, True, False, True, True]


def test_found_meanwhile() -> None:
    """What was there in between begins anew, and each URL counts by itself."""
    clock = ManualClock()
    settling = Settling(clock)
    assert step(clock, settling, 0, 80) == [True, True]
    assert step(clock, settling, 0, 80, url=OTHER) == [True, True]
    settling.found(URL)
    assert step(clock, settling, 0, 80) == [True, True]
    assert step(clock, settling, 10, url=OTHER) == [False]


def test_nobody_asked_meanwhile() -> None:
    """A pause in which nobody asked isn't time in which it was missing."""
    clock = ManualClock()
    settling = Settling(clock)
    assert step(clock, settling, 0, 601, 80, 10) == [True, True, True, False]
