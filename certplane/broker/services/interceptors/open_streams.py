"""The streams that are open, and whether their callers may still be served: one task looks at all of them.

A task and a timer for each stream would cost more than the rest of what we keep of it; ten thousand checks cost the
loop some 60 ms, in slices. Beside the rounds, each stream is looked at when its certificate ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final

from certplane.runtime.clock import Clock

__all__ = ["OpenStreams"]

_SLICE: Final = 128
"""Streams between which others get their turn: under a millisecond."""

_SHARE: Final = 20
"""A round is followed by at least as many times its length without one: five hundredths of the loop, no more."""

_MOMENT: Final = timedelta(milliseconds=1)
"""A certificate is valid to the end of its last moment (RFC 5280 4.1.2.5)."""


class _Stream:
    __slots__ = ("check", "error", "not_after", "task")

    def __init__(self, not_after: datetime, check: Callable[[], None], task: asyncio.Task[object]) -> None:
        self.not_after = not_after
        self.check = check
        self.task = task
        self.error: Exception | None = None


class OpenStreams:
    """Ends streams whose callers may no longer be served. For one loop; its task lives while there are streams."""

    def __init__(self, clock: Clock, every: timedelta) -> None:
        """`every` is the time between two looks at a stream, unless there are very many."""
        self._clock = clock
        self._every = every
        self._streams: set[_Stream] = set()
        self._rounds: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self, not_after: datetime, check: Callable[[], None]) -> Iterator[None]:
        """Look at a stream for the length of the block, which runs in the task that serves it.

        Args:
            not_after: End of the caller's certificate.
            check: Raises what the stream is to end with.

        Raises:
            Exception: `check`'s; the block was cancelled.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a stream is served by a task")
        stream = _Stream(not_after, check, task)
        self._streams.add(stream)
        if not_after < self._clock.now() + self._every:
            self._stop()  # the pause that is under way may be longer than its life
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._look_at_all(), name="open-streams")
        try:
            yield
        except asyncio.CancelledError:
            # The caller may have hung up in the same moment: then nobody is left to be told.
            if stream.error is None or task.uncancel() > 0:
                raise
            raise stream.error from None
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._stop()

    def _stop(self) -> None:
        if self._rounds is not None:
            self._rounds.cancel()
            self._rounds = None

    async def _look_at_all(self) -> None:
        pause = self._every
        while self._streams:
            await self._sleep_through(pause)
            begun = self._clock.monotonic()
            for index, stream in enumerate(list(self._streams), 1):
                self._look(stream)
                if index % _SLICE == 0:
                    await asyncio.sleep(0)
            pause = max(self._every, _SHARE * timedelta(seconds=self._clock.monotonic() - begun))

    async def _sleep_through(self, pause: timedelta) -> None:
        """Sleep, but look at each stream whose certificate ends meanwhile at that moment."""
        end = self._clock.monotonic() + pause.total_seconds()
        horizon = self._clock.now() + pause
        for stream in sorted(
            (stream for stream in self._streams if stream.not_after < horizon), key=lambda stream: stream.not_after
        ):
            await self._clock.sleep(stream.not_after + _MOMENT - self._clock.now())
            self._look(stream)
        await self._clock.sleep(timedelta(seconds=end - self._clock.monotonic()))

    def _look(self, stream: _Stream) -> None:
        if stream not in self._streams or stream.error is not None:
            return
        try:
            stream.check()
        except Exception as error:  # noqa: BLE001 - raised in the stream's own task, which tells its caller
            stream.error = error
            stream.task.cancel()
