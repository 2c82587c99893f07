"""How fast this host does what somebody else says: at once what comes now and then, steadily what comes in a flood."""

from datetime import timedelta

from certplane.runtime.clock import Clock


class Pace:
    """A token bucket that waits instead of refusing. On one event loop, for one task.

    Args:
        burst: how many go through at once after a quiet time.
        rate: how many a second after that.
        clock: for the waits.
    """

    def __init__(self, burst: int, rate: float, clock: Clock) -> None:
        self._burst = float(burst)
        self._rate = rate
        self._clock = clock
        self._tokens = self._burst
        self._at = clock.monotonic()

    async def take(self) -> None:
        """Go through, now or when it is time."""
        now = self._clock.monotonic()
        self._tokens = min(self._tokens + (now - self._at) * self._rate, self._burst) - 1
        self._at = now
        if self._tokens < 0:
            await self._clock.sleep(timedelta(seconds=-self._tokens / self._rate))
