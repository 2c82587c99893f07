"""Work that a cancellation doesn't stop: once it has begun it ends, then the cancellation goes on.

For bookkeeping after something that can't be undone or had a second time: a certificate that a CA has made, a version
that is half-way installed. Such work must end by itself in bounded time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end, however often the caller is cancelled meanwhile; what it raises comes first.

    Raises:
        asyncio.CancelledError: the caller was cancelled; the work has ended well all the same.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
