"""What keeps the broker from being locked out of a DNS API: a budget of calls, and a circuit breaker.

Both belong to an account at a provider, not to an order: fifty orders that each try again on their own are what makes
an API that struggles go away. Any provider can have them; neither knows what the calls are about.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from certplane.broker.issuers.attempts import Deadline
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.text import counted

_log = logging.getLogger(__name__)

_BURST_SHARE = 0.25
"""What of a span's calls may be made at once. Burst and refill together never exceed the limit in any span."""


class CallBudget:
    """So many calls in any span of time; who comes first gets the next one."""

    def __init__(self, what: str, calls: int, span: timedelta, clock: Clock) -> None:
        """Make it, full.

        Args:
            what: names the account in messages.
            calls: the limit.
            span: how long a call counts.
            clock: for time and waiting.
        """
        self._what, self._clock = what, clock
        self._limit = f"{counted(calls, 'call')} in {span.total_seconds():.0f} s"
        self._burst = max(1.0, calls * _BURST_SHARE)
        self._rate = max(calls - self._burst, 1.0) / span.total_seconds()
        self._left, self._at = self._burst, clock.monotonic()

    async def take(self, deadline: Deadline) -> None:
        """Return when a call may be made.

        Raises:
            RefusalError: DNS_UNAVAILABLE with the time to wait: that is after the deadline.
        """
        now = self._clock.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        wait = timedelta(seconds=max(0.0, (1 - self._left) / self._rate))
        if wait and wait >= deadline.left:
            message = f"the budget of {self._what} is used up ({self._limit})"
            raise RefusalError(Reason.DNS_UNAVAILABLE, message, retry_after=wait)
        self._left -= 1
        if not wait:
            return
        try:
            await self._clock.sleep(wait)
        except BaseException:
            self._left += 1  # whoever is cancelled while waiting made no call
            raise


class CircuitBreaker:
    """Lets no call through to an account that keeps failing, but one now and then to see whether it works again.

    Closed until `failures` calls in a row have failed, or one has failed with a time to come back; then open for
    `rest`, twice as long after each probe that fails. A failure is DNS_UNAVAILABLE; any other answer, a refusal too, is
    a sign of life.
    """

    def __init__(
        self,
        what: str,
        clock: Clock,
        *,
        failures: int = 5,
        rest: timedelta = timedelta(seconds=15),
        longest: timedelta = timedelta(minutes=5),
    ) -> None:
        """Make it, closed.

        Args:
            what: names the account in messages.
            clock: for the rest.
            failures: calls in a row.
            rest: the first one.
            longest: no rest is longer, unless the API asked for it.
        """
        self._what, self._clock = what, clock
        self._most, self._first, self._longest = failures, rest, longest
        self._failures, self._rest = 0, rest
        self._open_until: float | None = None
        self._probing = False

    def check(self) -> None:
        """Nothing, if a call may be made now.

        Raises:
            RefusalError: DNS_UNAVAILABLE with the time to wait.
        """
        if self._open_until is None:
            return
        left = self._open_until - self._clock.monotonic()
        if left <= 0 and not self._probing:
            return
        wait = timedelta(seconds=max(left, 1.0))
        message = f"{self._what} keeps failing; it is asked again in {wait.total_seconds():.0f} s"
        raise RefusalError(Reason.DNS_UNAVAILABLE, message, retry_after=wait)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Make a call in the block.

        Raises:
            RefusalError: DNS_UNAVAILABLE with the time to wait: the call isn't made.
        """
        self.check()
        self._probing = self._open_until is not None
        try:
            yield
        except RefusalError as error:
            if error.refusal.reason is Reason.DNS_UNAVAILABLE:
                self._failed(error.refusal.retry_after)
            else:
                self._succeeded()
            raise
        except BaseException:
            self._probing = False  # nothing is known: the next call is the probe
            raise
        self._succeeded()

    def _succeeded(self) -> None:
        if self._open_until is not None:
            _log.info("%s works again", self._what)
        self._failures, self._rest, self._open_until, self._probing = 0, self._first, None, False

    def _failed(self, retry_after: timedelta | None) -> None:
        self._failures += 1
        probed, self._probing = self._probing, False
        if not probed and not retry_after and self._failures < self._most:
            return
        rest = max(self._rest, retry_after or timedelta()) if probed or self._failures >= self._most else retry_after
        assert rest is not None
        if self._open_until is None:
            _log.warning("%s keeps failing: no calls for %.0f s", self._what, rest.total_seconds())
        self._open_until = max(self._open_until or 0.0, self._clock.monotonic() + rest.total_seconds())
        self._rest = min(2 * self._rest, self._longest)
