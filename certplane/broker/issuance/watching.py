"""Who watches orders, and what each has still to be told: the latest of each order, however slowly it reads.

Orders that run here are told as they are. Of what other brokers do the change feed names the order, and it is read when
it is told, so that it can't be older than what was told before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from typing_extensions import override

from certplane.broker.model import Order
from certplane.broker.ports import ChangeFollower
from certplane.errors import Reason, RefusalError, Violation

_MOST: Final = 64


class OrderWatcher:
    """One watcher's changes that were not told yet."""

    def __init__(self) -> None:
        self._changes: dict[str, Order | None] = {}
        self._some = asyncio.Event()
        self._everything = self._closed = False

    def put(self, order_id: str, order: Order | None) -> None:
        """Something of an order is another; None: it is to be read."""
        self._changes.pop(order_id, None)  # it comes last, so that changes are told in the order they were made
        self._changes[order_id] = order
        self._some.set()

    def put_all(self) -> None:
        """Anything may be another."""
        self._everything = True
        self._some.set()

    def close(self) -> None:
        """There will be no more."""
        self._closed = True
        self._some.set()

    async def next_changes(self) -> dict[str, Order | None] | None:
        """What has changed and wasn't told yet, waited for: orders by their id, None for one that is to be read.

        Empty: all that are open are to be read. None: there will be no more.
        """
        while not (self._changes or self._everything):
            if self._closed:
                return None
            self._some.clear()
            await self._some.wait()
        if self._everything:
            self._everything, self._changes = False, {}
            return {}
        changes, self._changes = self._changes, {}
        return changes


class OrderWatchers(ChangeFollower):
    """All watchers of one broker. Follows `ChangeKind.ORDER`; for the event loop's thread."""

    def __init__(self) -> None:
        self._watchers: set[OrderWatcher] = set()
        self._closed = False

    @contextmanager
    def watching(self) -> Iterator[OrderWatcher]:
        """A watcher, told of all that changes during the block.

        Raises:
            RefusalError: RATE_LIMITED, there are many already; DRAINING.
        """
        if self._closed:
            raise RefusalError(Reason.DRAINING, "the broker is shutting down; watch again shortly")
        if len(self._watchers) >= _MOST:
            violation = Violation("order_watchers", f"{_MOST} at once")
            message = "too many clients watch orders; end one of them first"
            raise RefusalError(Reason.RATE_LIMITED, message, violations=[violation])
        watcher = OrderWatcher()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def note(self, order: Order) -> None:
        """Something of an order that runs here is another."""
        for watcher in self._watchers:
            watcher.put(order.order_id, order)

    def close(self) -> None:
        """Let all of them end, and take no more."""
        self._closed = True
        for watcher in self._watchers:
            watcher.close()

    @override
    async def changed(self, keys: Collection[str]) -> None:
        for watcher in self._watchers:
            for key in keys:
                watcher.put(key, None)

    @override
    async def reread(self, since: datetime) -> None:
        for watcher in self._watchers:
            watcher.put_all()
