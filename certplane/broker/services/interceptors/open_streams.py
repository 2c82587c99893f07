"""Open streams, and whether their callers may still be served: one task checks all of them.

A task and a timer for each stream would cost more than the rest of what we keep of it; ten thousand checks cost the
loop some 60 ms, in slices. Beside the rounds, each stream is checked when its certificate ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final

from certplane.runtime.clock import Clock

_SLICE: Final = 128
"""Streams between which others get their turn: under a millisecond."""

_SHARE: Final = 20
"""A round is followed by at least as many times its length without one: five hundredths of the loop, no more."""

_MOMENT: Final = timedelta(milliseconds=1)
"""A certificate is valid to the end of its last moment (RFC 5280 4.1.2.5)."""


class _Stream:
    """One stream, as a context manager: a generator would cost each open stream half a kilobyte."""

    __slots__ = ("_streams", "check", "error", "not_after", "task")

    def __init__(self, streams: OpenStreams, not_after: datetime, check: Callable[[], None]) -> None:
        self._streams = streams
        self.not_after = not_after
        self.check = check
        self.task: asyncio.Task[Any] | None = None
        self.error: Exception | None = None

    def __enter__(self) -> None:
        self.task = asyncio.current_task()
        self._streams.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._streams.remove(self)
        # The caller may have hung up in the same moment: then nobody is left to be told.
        ours = isinstance(error, asyncio.CancelledError) and self.error is not None
        if ours and self.task is not None and self.task.uncancel() == 0 and self.error is not None:
            raise self.error from None


class OpenStreams:
    """Ends streams whose callers may no longer be served. For one loop; its task lives while there are streams."""

    def __init__(self, clock: Clock, every: timedelta) -> None:
        """`every` is the time between two checks of a stream, unless there are very many."""
        self._clock = clock
        self._every = every
        self._streams: set[_Stream] = set()
        self._rounds: asyncio.Task[None] | None = None

    def watching(self, not_after: datetime, check: Callable[[], None]) -> AbstractContextManager[None]:
        """Check a stream for the length of the block, which runs in the task that serves it.

        The block is cancelled when `check` raises, and ends with what it raised.

        Args:
            not_after: End of the caller's certificate.
            check: Raises what the stream is to end with.
        """
        return _Stream(self, not_after, check)

    def add(self, stream: _Stream) -> None:
        """A stream begins."""
        self._streams.add(stream)
        ends_soon = stream.not_after < self._clock.now() + self._every
        if self._rounds is not None and not self._rounds.done() and not ends_soon:
            return
        self._stop()  # the pause that is under way may be longer than the stream's life
        self._rounds = asyncio.create_task(self._check_all(), name="open-streams")

    def remove(self, stream: _Stream) -> None:
        """A stream has ended."""
        self._streams.discard(stream)
        if not self._streams:
            self._stop()

    def _stop(self) -> None:
        if self._rounds is not None:
            self._rounds.cancel()
            self._rounds = None

    async def _check_all(self) -> None:
        pause = self._every
        while self._streams:
            await self._sleep_through(pause)
            begun = self._clock.monotonic()
            for index, stream in enumerate(list(self._streams), 1):
                self._check(stream)
                if index % _SLICE == 0:
                    await asyncio.sleep(0)
            pause = max(self._every, _SHARE * timedelta(seconds=self._clock.monotonic() - begun))

    async def _sleep_through(self, pause: timedelta) -> None:
        """Sleep, but check each stream whose certificate ends meanwhile at that moment."""
        end = self._clock.monotonic() + pause.total_seconds()
        horizon = self._clock.now() + pause
        for stream in sorted(
            (stream for stream in self._streams if stream.not_after < horizon), key=lambda stream: stream.not_after
        ):
            # No longer than the pause, whatever the wall clock is set to meanwhile.
            await self._clock.sleep(min(stream.not_after + _MOMENT - self._clock.now(), pause))
            self._check(stream)
        await self._clock.sleep(timedelta(seconds=end - self._clock.monotonic()))

    def _check(self, stream: _Stream) -> None:
        if stream not in self._streams or stream.error is not None:
            return
        try:
            stream.check()
        except Exception as error:  # noqa: BLE001 - raised in the stream's own task, which tells its caller
            stream.error = error
            if stream.task is not None:
                stream.task.cancel()
