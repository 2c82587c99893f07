"""Who watches a rollout, and that it has changed: what it is then is read when it is told.

A watcher that reads slowly hears of the last change, and of none twice. Changes of this broker are told at once, those
of others by the change feed. For the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from typing_extensions import override

from certplane.broker.ports import ChangeFollower
from certplane.errors import Reason, RefusalError, Violation

_MOST: Final = 64
"""At once: each change is a read for each of them."""


class RolloutWatcher:
    """One watcher: whether something has changed since it last looked."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._closed = False

    def note(self) -> None:
        """Something is another."""
        self._changed.set()

    def close(self) -> None:
        """There will be no more."""
        self._closed = True
        self._changed.set()

    async def next_change(self) -> bool:
        """Wait until something has changed; False if nothing will be told any more."""
        await self._changed.wait()
        if self._closed:
            return False
        self._changed.clear()
        return True


class RolloutWatchers(ChangeFollower):
    """All watchers of one broker, and others who want to hear of changes. Follows `ChangeKind.ROLLOUT`."""

    def __init__(self) -> None:
        self._watchers: defaultdict[str, set[RolloutWatcher]] = defaultdict(set)
        self._listeners: list[Callable[[str], None]] = []
        self._count = 0
        self._closed = False

    @contextmanager
    def watching(self, rollout_id: str) -> Iterator[RolloutWatcher]:
        """A watcher, told of all that changes of this rollout during the block.

        Raises:
            RefusalError: RATE_LIMITED, there are many already; DRAINING.
        """
        if self._closed:
            raise draining()
        if self._count >= _MOST:
            violation = Violation("rollout_watchers", f"{_MOST} at once")
            message = "too many clients watch rollouts; end one of them first"
            raise RefusalError(Reason.RATE_LIMITED, message, violations=[violation])
        watcher = RolloutWatcher()
        self._count += 1
        self._watchers[rollout_id].add(watcher)
        try:
            yield watcher
        finally:
            self._count -= 1
            self._watchers[rollout_id].discard(watcher)
            if not self._watchers[rollout_id]:
                del self._watchers[rollout_id]

    def listen(self, told: Callable[[str], None]) -> None:
        """Have `told` called with the id of each rollout that has changed; with an empty one if any may have."""
        self._listeners.append(told)

    def note(self, rollout_id: str) -> None:
        """Something of this rollout is another."""
        for told in self._listeners:
            told(rollout_id)
        for watcher in self._watchers.get(rollout_id, ()):
            watcher.note()

    def close(self) -> None:
        """Let all of them end, and take no more."""
        self._closed = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.close()

    @override
    async def changed(self, keys: Collection[str]) -> None:
        for rollout_id in keys:
            self.note(rollout_id)

    @override
    async def reread(self, since: datetime) -> None:
        for told in self._listeners:
            told("")
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.note()


def draining() -> RefusalError:
    """Why a watcher is sent away."""
    return RefusalError(Reason.DRAINING, "the broker is shutting down; watch again shortly")
