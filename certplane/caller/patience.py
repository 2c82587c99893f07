"""When a call that failed is made again. Pure.

A broker's own word comes first (RetryInfo), with some jitter on top so that callers that were refused together come
back apart. No connection is tried again by exponential backoff. What a person must change is told at once.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Final

from certplane.runtime.backoff import Backoff

_SOON: Final = Backoff(first=timedelta(milliseconds=500), most=timedelta(seconds=2), floor=timedelta(milliseconds=100))
"""Somebody waits for the answer, and not for long: a broker that is restarted is asked as soon as it serves."""
_JITTER: Final = 0.2
"""Share of a broker's wait that is added by chance."""


def next_wait(
    *, told: timedelta | None, unreached: bool, failures: int, left: timedelta, rng: random.Random
) -> timedelta | None:
    """How long to wait before the call is made again; None if it isn't.

    Args:
        told: The wait that came with a refusal; None without a refusal, or without one in it.
        unreached: Whether the call reached no broker, which may be back soon.
        failures: In a row, this one counted.
        left: Of the time that the caller gives.
        rng: Spreads.
    """
    if told is not None:
        wait = told * (1 + _JITTER * rng.random()) if told <= left else told
    elif unreached:
        wait = _SOON.wait(failures, rng)
    else:
        return None
    return wait if wait < left else None
