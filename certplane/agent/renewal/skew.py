"""How far this host's clock is from the broker's: pure arithmetic over what the link measures.

A broker that tells its time in an answer told it somewhere between the question and the answer, so that one exchange
gives the difference up to half of its round trip. Of the last exchanges the quickest is the best witness (the clock
filter of NTP, RFC 5905 10). A clock that was set makes the older ones worthless: an exchange that contradicts the best
one starts over.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta

MOST_SKEW = timedelta(seconds=30)
"""More is worth a warning: certificates are backdated by a minute and more, but waits and windows are by the clock."""

_SAMPLES = 8  # RFC 5905's clock filter
_SLACK = timedelta(milliseconds=10)
"""Two exchanges contradict each other when they are apart by more than both errors and this: clocks drift a little."""


@dataclass(frozen=True, slots=True)
class SkewSample:
    """One exchange: this host's clock less the broker's, by at most `error` wrong, taken at `time` of this host."""

    skew: timedelta
    error: timedelta
    time: datetime


class ClockSkew:
    """The estimate. Fed by whoever hears the broker's time; not shared between threads."""

    def __init__(self) -> None:
        self._samples: deque[SkewSample] = deque(maxlen=_SAMPLES)

    def record(self, broker_time: datetime, *, sent: datetime, received: datetime) -> None:
        """Take one exchange into account.

        Args:
            broker_time: What the broker's answer says.
            sent: When the question left, by this host's wall clock.
            received: When the answer came, by the same. Before `sent` only if the clock was set meanwhile: such an
                exchange says nothing and is left out.
        """
        if received < sent:
            return
        error = (received - sent) / 2
        sample = SkewSample(sent + error - broker_time, error, received)
        best = self.best
        if best is not None and abs(sample.skew - best.skew) > sample.error + best.error + _SLACK:
            self._samples.clear()
        self._samples.append(sample)

    @property
    def best(self) -> SkewSample | None:
        """The quickest of the last exchanges, the newest of equals; None before the first."""
        return min(reversed(self._samples), key=lambda sample: sample.error, default=None)

    @property
    def excessive(self) -> bool:
        """Whether the clocks are surely apart by more than `MOST_SKEW`."""
        best = self.best
        return best is not None and abs(best.skew) - best.error > MOST_SKEW
