"""Identifiers that sort by age: UUID version 7 (RFC 9562 5.7), with time and randomness passed in.

Rows with such keys are appended to an index instead of scattered over it, which is most of what a durable insert costs.
They are names, not secrets: whoever knows one can guess its neighbours.
"""

from __future__ import annotations

import random
from typing import Final

from certplane.runtime.clock import Clock

_VERSION_AND_VARIANT: Final = 0x7 << 76 | 0b10 << 62
_COUNTER_BITS: Final = 74


class TimeOrderedIds:
    """Makes ids, each greater than the one before, also when the clock stands still or steps back.

    Within a millisecond they count upwards from a random start (RFC 9562 6.2, method 2). Not safe to share between
    threads.
    """

    def __init__(self, clock: Clock, rng: random.Random | None = None) -> None:
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - see above: not secrets, and a system call costs more than the id
        self._millisecond = -1
        self._counter = 0

    def __call__(self) -> str:
        """The next id, as 36 characters."""
        millisecond = int(self._clock.now().timestamp() * 1000)
        if millisecond > self._millisecond:
            self._millisecond = millisecond
            # One bit less than fits, so that counting on can not run over within any millisecond.
            self._counter = self._rng.getrandbits(_COUNTER_BITS - 1)
        else:
            self._counter += 1
        high, low = self._counter >> 62, self._counter & (1 << 62) - 1
        value = self._millisecond << 80 | high << 64 | low | _VERSION_AND_VARIANT
        text = f"{value:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
