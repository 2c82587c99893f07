"""Waiting times between tries: exponential, with full jitter so that many that failed together spread out."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: the n-th wait is uniform between `floor` and `first * factor**n`, at most `most`."""

    first: timedelta
    most: timedelta
    factor: float = 2.0
    floor: timedelta = timedelta()

    def ceiling(self, failures: int) -> timedelta:
        """The longest wait after `failures` failures in a row (1 for the first)."""
        exponent = min(max(failures - 1, 0), 63)  # beyond that every factor is past any sensible `most`
        seconds = min(self.first.total_seconds() * self.factor**exponent, self.most.total_seconds())
        return max(self.floor, timedelta(seconds=seconds))

    def wait(self, failures: int, rng: random.Random) -> timedelta:
        """How long to wait after `failures` failures in a row."""
        ceiling = self.ceiling(failures)
        return self.floor + (ceiling - self.floor) * rng.random()
