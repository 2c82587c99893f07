"""The cheap limit: a token bucket per identity, in memory, before anything that costs.

It protects the broker's neighbours from one caller in a loop; the limits on what a caller may *get* are durable and
counted over order rows (`certplane.broker.ports.DurableLimits`). A restart fills every bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

__all__ = ["TokenBuckets"]

_MOST_BUCKETS = 100_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    time: float


class TokenBuckets:
    """Buckets of `burst` tokens that refill at `rate` a second. For one thread.

    Names come from policy, so there are as many as identities; should there be more than a hundred thousand, the full
    ones are forgotten, which changes no answer.
    """

    def __init__(self, *, rate: float, burst: int, monotonic: Callable[[], float]) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError("a bucket needs a positive rate and room for a token")
        self._rate = rate
        self._burst = float(burst)
        self._monotonic = monotonic
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str, tokens: int = 1) -> timedelta | None:
        """Take `tokens` out of the bucket; None when they were there, else the time until they will be.

        Nothing is taken when there are too few, so that a caller in a loop gets through at the bucket's rate.
        """
        now = self._monotonic()
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= _MOST_BUCKETS:
                self._forget_full(now)
            bucket = self._buckets[name] = _Bucket(self._burst, now)
        level = min(self._burst, bucket.tokens + (now - bucket.time) * self._rate)
        bucket.time = now
        if level < tokens:
            bucket.tokens = level
            return timedelta(seconds=(tokens - level) / self._rate)
        bucket.tokens = level - tokens
        return None

    def _forget_full(self, now: float) -> None:
        full = [
            name
            for name, bucket in self._buckets.items()
            if bucket.tokens + (now - bucket.time) * self._rate >= self._burst
        ]
        for name in full:
            del self._buckets[name]
