"""What holds up a long call, told to whoever has made it while it goes on.

A context variable, as the id of the request is (`runtime.logging`): between an order and the exchange with a CA that is
repeated are ports, a process, and adapters that have nothing to say to it. A task that is made by the call has it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TypeAlias

Hear: TypeAlias = Callable[[str], object]

_hearing: Final[ContextVar[Hear | None]] = ContextVar("certplane_telling", default=None)


@contextmanager
def telling(hear: Hear) -> Iterator[None]:
    """Have `hear` told what holds up the calls of the block: `REASON: text`, for people, again with each try."""
    token = _hearing.set(hear)
    try:
        yield
    finally:
        _hearing.reset(token)


def hearer() -> Hear | None:
    """Who hears it; None: nobody."""
    return _hearing.get()


def tell(text: str) -> None:
    """Say what holds up this call. Never waits."""
    hear = _hearing.get()
    if hear is not None:
        hear(text)
