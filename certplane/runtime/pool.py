"""Bounded, named thread pools: the only way a blocking library is called from the event loop.

A pool's size is the number of such calls under way at once; more wait in order. The threads carry the pool's name, so
that a stack dump says which library hangs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class BlockingPool:
    """Runs blocking calls on at most `size` threads called `<name>_<n>`."""

    def __init__(self, name: str, size: int) -> None:
        self._executor = ThreadPoolExecutor(max_workers=size, thread_name_prefix=name)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`call(*args, **kwargs)` on a thread of the pool.

        Cancellation stops the waiting; a call that has begun runs to its end, so it must have a time limit of its own.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: call(*args, **kwargs))

    def close(self) -> None:
        """Take no more calls and drop those that have not begun; does not wait for the running ones."""
        self._executor.shutdown(wait=False, cancel_futures=True)
