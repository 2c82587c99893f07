"""The retry epoch: what tells those who wait that what was refused, or failed, may succeed now.

It is another one after each start, and whenever something may have been mended: an operator had the files read again, a
secret is another one, an issuer or DNS that failed works. Hosts hear of it on their streams and ask again for what
waits; a failed order of another epoch answers for nothing (`outcome.still_answers`). A time that the CA named stands.

Moved at most once in half a minute, however often something changes: each time, every host that waits asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from certplane.runtime.clock import Clock

logger = logging.getLogger(__name__)

_SHORTEST: Final = timedelta(seconds=30)


class RetryEpoch:
    """The epoch of one broker's process. For the event loop's thread."""

    def __init__(self, clock: Clock, new_id: Callable[[], str]) -> None:
        """A new one; `new_id` names it, never the same twice, printable ASCII of at most 64 characters."""
        self._clock = clock
        self._new_id = new_id
        self._current = new_id()
        self._move_time = clock.monotonic()
        self._waiting = ""

    @property
    def current(self) -> str:
        """The epoch; a move that had to wait is made when it is looked at."""
        if self._waiting and self._clock.monotonic() - self._move_time >= _SHORTEST.total_seconds():
            self._move(self._waiting)
        return self._current

    def move(self, why: str) -> None:
        """Something may have been mended, as `why` says; soon, if it has moved just now."""
        self._waiting = self._waiting or why
        _ = self.current

    def ask_again(self, why: str) -> None:
        """A person wants it now."""
        self._move(why)

    def _move(self, why: str) -> None:
        self._waiting = ""
        self._move_time = self._clock.monotonic()
        self._current = self._new_id()
        logger.info(
            "refused and failed requests may be retried now: %s", why, extra={"fields": {"retry_epoch": self._current}}
        )
