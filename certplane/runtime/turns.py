"""Long computing on a thread beside an event loop, so that the loop soon has its turn.

CPython takes the interpreter's lock from a thread that computes after 5 ms, and not at all inside of one operation:
what frees a structure of a million objects holds it for hundreds of milliseconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_SHORT: Final = 0.001


@contextmanager
def short_turns() -> Iterator[None]:
    """Let other threads wait a millisecond for the interpreter, in place of five, while the block runs.

    It costs the block a few per cent more time. For one thread at a time, since the interval is the process's.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(_SHORT, before))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def let_go(things: list[Any]) -> None:
    """Empty a list one thing at a time, so that the lock can be taken between two.

    Where the list has the last reference to each of them, it is here that they are freed.
    """
    while things:
        things.pop()
