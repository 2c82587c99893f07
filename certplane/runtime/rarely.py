"""What a peer can bring about again and again is told now and then, with how often it was: for lines of a log."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from certplane.runtime.clock import Clock

_MOST: Final = 10_000


@dataclass(slots=True)
class _Kind:
    left: float
    time: float
    passed_over: int = 0


class Rarely:
    """Some of a kind at once, then one each `every`. For one thread.

    At most ten thousand kinds are known; then the one unused for longest is forgotten, with what was passed over of it.
    """

    def __init__(self, clock: Clock, *, at_once: int = 10, every: timedelta = timedelta(minutes=1)) -> None:
        self._clock = clock
        self._at_once = float(at_once)
        self._every = every.total_seconds()
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def take(self, kind: Hashable) -> int | None:
        """None: this one isn't told. Else how many were passed over since the last that was."""
        now = self._clock.monotonic()
        known = self._kinds.pop(kind, None) or _Kind(self._at_once, now)
        self._kinds[kind] = known
        if len(self._kinds) > _MOST:
            self._kinds.popitem(last=False)
        known.left = min(self._at_once, known.left + (now - known.time) / self._every)
        known.time = now
        if known.left < 1:
            known.passed_over += 1
            return None
        known.left -= 1
        passed_over, known.passed_over = known.passed_over, 0
        return passed_over
