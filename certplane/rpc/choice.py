"""Which of several brokers this host speaks to next. Pure: monotonic times are given, nothing is opened.

A broker that failed, or that asked to be left alone, is held for a while; the next one is drawn among those that aren't
held, so that the hosts of a broker that ends spread over all others. One that said goodbye with no wait (its stream had
lasted long enough) is drawn among the others, itself included: that evens streams out, where "any but this one" would
send all hosts of one broker to the next together. When each has failed, a round is over: who calls backs off, and then
tries the one whose hold ends first, which is another one in any case.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

AVOID: Final = timedelta(minutes=1)
"""How long a broker that failed is the last choice: so calls and streams together make one round of tries a minute."""


class BrokerChoice:
    """The broker in use, and which are held. On the event loop.

    Args:
        urls: All brokers, each once.
        rng: Draws.
    """

    def __init__(self, urls: Sequence[str], rng: random.Random) -> None:
        self.urls = tuple(urls)
        self._rng = rng
        self._held_until = dict.fromkeys(self.urls, float("-inf"))
        self.url = rng.choice(self.urls)
        """The one in use."""

    @property
    def several(self) -> bool:
        """Whether there is another one to go to."""
        return len(self.urls) > 1

    def leave(self, hold: timedelta, now: float) -> bool:
        """Hold the broker in use and take another; whether that one is not held, and so to be tried at once."""
        self._held_until[self.url] = now + hold.total_seconds()
        free = [url for url in self.urls if self._held_until[url] <= now]
        if free:
            self.url = self._rng.choice(free)
            return self.several
        others = [url for url in self.urls if url != self.url] or self.urls
        self.url = min(others, key=lambda url: self._held_until[url])
        return False

    def answered(self, url: str) -> None:
        """A broker is well."""
        self._held_until[url] = float("-inf")
