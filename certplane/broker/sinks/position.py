"""Which events a sink has. Pure.

The log numbers its rows, but brokers of one database commit at the same time: a lower number may appear after a higher
one was copied. So a position is a low mark, below which nothing appears any more, and above it the numbers that were
copied, as ranges. Numbers of transactions that were undone never appear: they are gaps between the ranges, and go when
the low mark passes them.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

MOST_RANGES: Final = 1000
"""More gaps than that are of a database in trouble: the low mark passes the oldest."""


@dataclass(frozen=True, slots=True)
class SinkPosition:
    """How far a sink is.

    Attributes:
        low: Every event up to this number is copied, or will never appear.
        ranges: Numbers above it that are copied: first and last, apart from each other, upwards.
    """

    low: int = 0
    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def high(self) -> int:
        """The highest number that is copied."""
        return self.ranges[-1][1] if self.ranges else self.low

    def __contains__(self, sequence: int) -> bool:
        if sequence <= self.low:
            return True
        place = bisect.bisect_right(self.ranges, (sequence, float("inf"))) - 1
        return place >= 0 and self.ranges[place][1] >= sequence

    def with_copied(self, sequences: Iterable[int]) -> SinkPosition:
        """The position when these are copied too."""
        ranges: list[tuple[int, int]] = []
        for first, last in sorted([*self.ranges, *((each, each) for each in sequences)]):
            if ranges and first <= ranges[-1][1] + 1:
                ranges[-1] = ranges[-1][0], max(last, ranges[-1][1])
            else:
                ranges.append((first, last))
        moved = SinkPosition(self.low, tuple(ranges)).settled(self.low)
        return moved if len(moved.ranges) <= MOST_RANGES else moved.settled(moved.ranges[-MOST_RANGES - 1][1])

    def settled(self, low: int) -> SinkPosition:
        """The position when nothing up to `low` appears any more."""
        low = max(low, self.low)
        ranges: Sequence[tuple[int, int]] = [(max(first, low + 1), last) for first, last in self.ranges if last > low]
        if ranges and ranges[0][0] == low + 1:
            low, ranges = ranges[0][1], ranges[1:]
        return SinkPosition(low, tuple(ranges))
