"""Where in the log, and when, brokers have signed it: what shows that a signature is missing, or was made too late."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from certplane.broker.proof.chain import LoggedEvent
from certplane.broker.proof.checkpoints import Checkpoint

LATE: Final = timedelta(hours=6) // timedelta(microseconds=1)
"""After it an event has a signature if what stands behind has one: ends are sealed within about an hour."""


class Signatures:
    """Those that hold, in the order of the log.

    Only signed times are looked at, which who has the database can't choose.
    """

    def __init__(self) -> None:
        self._places: list[int] = []
        self._times: list[int] = []
        self._late: list[tuple[int, LoggedEvent, Checkpoint]] = []
        self._next: list[tuple[LoggedEvent, Checkpoint]] = []

    def add(self, first: int, event: LoggedEvent, checkpoint: Checkpoint) -> None:
        """A signature that holds, the next one of the log; `first` is the place of the first event that it covers."""
        for earlier, of in self._next:
            self._compare(len(self._places), checkpoint.time, earlier, of)
        self._next.clear()
        index = bisect_left(self._places, first)
        if index < len(self._places):
            self._compare(index, self._times[index], event, checkpoint)
        else:
            self._next.append((event, checkpoint))
        self._places.append(event.sequence)
        self._times.append(checkpoint.time)

    def _compare(self, index: int, time: int, event: LoggedEvent, checkpoint: Checkpoint) -> None:
        if checkpoint.time > time + 2 * LATE:
            self._late.append((index, event, checkpoint))

    @property
    def first(self) -> int:
        """The place of the first one; 0 if there is none."""
        return self._places[0] if self._places else 0

    def late(self) -> Iterator[LoggedEvent]:
        """Events of those made long after what stands behind was signed, while brokers went on signing."""
        for index, event, checkpoint in self._late:
            earliest, latest = self._times[index] + LATE, checkpoint.time - LATE
            if any(earliest < time < latest for time in self._times[index + 1 :]):
                yield event

    def early(self, first: int, last: int) -> bool:
        """Whether a chain of these places began before anything was signed, and ended soon after that."""
        index = bisect_left(self._places, last)
        return first < self.first and (not index or self._times[index - 1] <= self._times[0] + LATE)

    def overdue(self, place: int) -> bool:
        """Whether an event should be signed, since what stands behind it was, and brokers went on signing for hours."""
        index = bisect_left(self._places, place)
        return index < len(self._places) and self._times[-1] > self._times[index] + LATE
