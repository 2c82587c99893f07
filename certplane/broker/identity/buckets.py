"""Token buckets, in memory: the cheap limit, before anything that costs.

They protect the broker's neighbours from one caller in a loop; the limits on what a caller may *get* are durable and
counted over order rows (`certplane.broker.ports.DurableLimits`). A restart fills every bucket.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

_MOST_BUCKETS = 100_000
_FORGOTTEN_AT_ONCE = 2
"""Full buckets that each use of another one drops: more than it can add, so that those of quiet callers go."""
_LONGEST_DEBT = 600.0
"""Seconds: whatever one call has cost, its caller isn't refused for longer."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    time: float


class TokenBuckets:
    """Buckets of `burst` tokens that refill at `rate` a second. For one thread.

    One that is full again is forgotten, since a new one is full too: ten thousand quiet hosts have none. There are at
    most a hundred thousand; then the one unused for longest is forgotten, which could be anybody's.
    """

    def __init__(self, *, rate: float, burst: int, monotonic: Callable[[], float], most: int = _MOST_BUCKETS) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError("a bucket needs a positive rate and room for a token")
        self._rate = rate
        self._burst = float(burst)
        self._monotonic = monotonic
        self._most = most
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str, tokens: float = 1) -> timedelta | None:
        """Take `tokens` out of the bucket; None when they were there, else the time until they will be.

        Nothing is taken when there are too few, so that a caller in a loop gets through at the bucket's rate.
        """
        bucket = self._filled(name)
        if bucket.tokens < tokens:
            return timedelta(seconds=(tokens - bucket.tokens) / self._rate)
        bucket.tokens -= tokens
        return None

    def charge(self, name: str, tokens: float) -> timedelta:
        """Take what was used in any case; a bucket in debt has nothing to give until it is paid: how long that is."""
        bucket = self._filled(name)
        bucket.tokens = max(bucket.tokens - tokens, -_LONGEST_DEBT * self._rate)
        return timedelta(seconds=max(0.0, -bucket.tokens / self._rate))

    def in_debt(self, name: str) -> bool:
        """Whether more was used than there was."""
        return self._filled(name).tokens < 0

    def _filled(self, name: str) -> _Bucket:
        now = self._monotonic()
        self._forget_full(now)
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= self._most:
                self._buckets.popitem(last=False)
            bucket = self._buckets[name] = _Bucket(self._burst, now)
        else:
            self._buckets.move_to_end(name)
            bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.time) * self._rate)
            bucket.time = now
        return bucket

    def _forget_full(self, now: float) -> None:
        """Drop some that are full by now, of those unused for longest; one in debt keeps those behind it until then."""
        for _ in range(_FORGOTTEN_AT_ONCE):
            oldest = next(iter(self._buckets), None)
            if oldest is None:
                return
            bucket = self._buckets[oldest]
            if bucket.tokens + (now - bucket.time) * self._rate < self._burst:
                return
            del self._buckets[oldest]
