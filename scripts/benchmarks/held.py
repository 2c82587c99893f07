"""How long something takes, and for how long it holds the event loop: what every other call would have waited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

LOOK: Final = 0.002
"""Seconds between looks at how late the loop is."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds; `held` is the longest that the loop worked meanwhile without looking for anything else.

    Held is processor time of the loop's thread: what others do on the machine makes it no longer.
    """

    seconds: float
    held: float


async def timed(work: Callable[[], Awaitable[object]]) -> Timed:
    """Do it once."""
    late = [0.0]

    async def look() -> None:
        while True:
            begun = time.thread_time()
            await asyncio.sleep(LOOK)
            late.append(time.thread_time() - begun - LOOK)

    looking = asyncio.create_task(look())
    await asyncio.sleep(LOOK * 5)
    begun = time.perf_counter()
    await work()
    seconds = time.perf_counter() - begun
    await asyncio.sleep(LOOK * 2)
    looking.cancel()
    return Timed(seconds, max(late))
