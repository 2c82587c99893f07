"""What bounds a host's stream. Frozen; the defaults suit ten thousand streams on one broker."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from certplane.runtime.backoff import Backoff

RETRY: Final = Backoff(timedelta(seconds=1), timedelta(seconds=30))
"""Between tries at what the store refuses, or a bug has ended."""


AGE_JITTER: Final = 0.15
"""Of a stream's age: ten thousand hosts that came together go over half an hour, six a second."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """The limits of streams.

    Attributes:
        heartbeat_interval: How often a host says that it is there. A stream without a message for three times as long
            ends, and one whose directive is not answered within the same time.
        hello_timeout: Within which a new stream must say hello.
        write_timeout: How long one message may wait for a reader.
        misuses: Answers to directives that were never sent, or were answered, after which a stream ends.
        backlog: Reports of one stream that may wait to be durable; then it isn't read.
        seen_interval: How often it is recorded when a connected host was last heard.
        reconnects: Streams a second that a broker can take back, which spreads them after a goodbye. Two cores do 500
            handshakes a second.
        figures_interval: How often the certificates of the fleet are counted.
        watchers: How many may watch the fleet at once.
        service_watches: How many calls may be open in which services watch their own certificates.
        watches_of_one: How many of those one identity may have.
        tick: How often all streams are checked.
        age: After about which time a stream is told to come back, here or at another broker; None is never.
    """

    heartbeat_interval: timedelta = timedelta(minutes=1)
    hello_timeout: timedelta = timedelta(seconds=10)
    write_timeout: timedelta = timedelta(seconds=30)
    misuses: int = 8
    backlog: int = 64
    seen_interval: timedelta = timedelta(minutes=5)
    reconnects: int = 400
    figures_interval: timedelta = timedelta(minutes=1)
    watchers: int = 64
    service_watches: int = 4096
    watches_of_one: int = 64
    tick: timedelta = timedelta(seconds=1)
    age: timedelta | None = None

    @property
    def silence(self) -> timedelta:
        """How long a stream may say nothing, and leave a directive unanswered."""
        return 3 * self.heartbeat_interval

    def draw_age(self, rng: random.Random) -> float:
        """How long a stream that begins now lasts, in seconds: less than `age` by chance, so that none end together."""
        return math.inf if self.age is None else self.age.total_seconds() * (1 - AGE_JITTER * rng.random())

    def draw_return(self, streams: int, rng: random.Random) -> timedelta:
        """When to come back, for one of so many streams that are sent away: no more come at once than can be taken."""
        return timedelta(seconds=1 + max(1.0, streams / self.reconnects) * rng.random())
