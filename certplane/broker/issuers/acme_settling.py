"""Resources that a CA has named and doesn't know: replicas that lag, or something that is gone.

A CA whose answers come from read replicas may say 404 for seconds about what it has just written (Boulder does). So a
404 on a URL that the CA itself handed out is no refusal before a while has passed; then it is, with the URL.
"""

from __future__ import annotations

from datetime import timedelta

from certplane.runtime.clock import Clock

SETTLING = timedelta(seconds=90)
"""Replicas lag for seconds. An order that is really gone costs this time before another one is made."""

_FORGOTTEN = timedelta(minutes=10)
"""Longer than any pause between the tries of an order's step."""
_MOST_KEPT = 10_000


class Settling:
    """Since when each URL has been missing. One event loop's."""

    def __init__(self, clock: Clock, patience: timedelta = SETTLING) -> None:
        """Nothing is missing yet.

        Args:
            clock: its monotonic time.
            patience: for how long a URL may be missing.
        """
        self._clock, self._patience = clock, patience
        self._missing: dict[str, tuple[float, float]] = {}

    @property
    def patience(self) -> timedelta:
        """For how long a URL may be missing."""
        return self._patience

    def found(self, url: str) -> None:
        """It is there."""
        self._missing.pop(url, None)

    def missing(self, url: str) -> bool:
        """It isn't there: whether it may still turn up. After a False the next time is a first time again."""
        now, patience = self._clock.monotonic(), self._patience.total_seconds()
        since, last = self._missing.pop(url, (now, now))
        if now - last > _FORGOTTEN.total_seconds():
            since = now  # nobody asked meanwhile: it isn't known to have been missing for all that time
        if now - since >= patience:
            return False
        while len(self._missing) >= _MOST_KEPT:
            del self._missing[next(iter(self._missing))]
        self._missing[url] = (since, now)
        return True
