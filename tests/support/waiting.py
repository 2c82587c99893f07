"""How tests wait: for events, with one time limit that only a hang reaches.

What another thread, process or server is about to do is asked for until it is so, never waited for by a span that
should do. How long it takes says how busy the machine is and nothing about the product, so one limit serves every wait,
call and program, far above what a loaded machine needs; `CERTPLANE_TEST_PATIENCE=3` triples it, and pytest's own limit
for a test with it. Where the product promises a time, the test compares with what it would take otherwise.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Protocol

PATIENCE = float(os.environ.get("CERTPLANE_TEST_PATIENCE", "1"))
"""How much slower than usual this machine may be."""

HANG = 120.0 * PATIENCE
"""In seconds: whatever takes longer hangs. For the `timeout` of calls, programs and sockets."""

MINUTES_OF_WORK = HANG * 5
"""In seconds, likewise, for what takes a minute or two by itself: packages that are built, documents walked on machines."""

_POLL = 0.02


class MovedClock(Protocol):
    """A clock that the test moves."""

    def advance(self, span: timedelta) -> None:
        """Move time forward."""


def no_hang() -> asyncio.Timeout:
    """The limit around a wait for an event of asyncio's."""
    return asyncio.timeout(HANG)


async def until(
    condition: Callable[[], Any], *, poll: float = _POLL, what: str = "it", by: asyncio.Future[Any] | None = None
) -> Any:
    """Ask `condition`, plain or async, until it is true of something; returns that.

    Args:
        condition: cheap, or asked seldom.
        poll: seconds between two questions.
        what: named where it never happens.
        by: whose doing it will be: where this ends in an error first, it is raised instead of waiting for nothing.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + HANG
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        if by is not None and by.done():
            by.result()
        assert loop.time() < end, f"{what} has not happened within {HANG:g} seconds"
        await asyncio.sleep(poll)


async def until_in_time(
    clock: MovedClock, condition: Callable[[], Any], *, step: timedelta = timedelta(milliseconds=250), what: str = "it"
) -> None:
    """Let a test's clock go on in small steps until `condition` is true of something.

    How many steps that takes says nothing: what is to wake may be at work still when the clock moves, and sleep only then.
    """

    def goes_on() -> Any:
        found = condition()
        if not found:
            clock.advance(step)
        return found

    await until(goes_on, what=what)


def blocking_until(condition: Callable[[], Any], *, poll: float = _POLL, what: str = "it") -> Any:
    """The same for tests without an event loop."""
    end = time.monotonic() + HANG
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} has not happened within {HANG:g} seconds"
        time.sleep(poll)
    return found
