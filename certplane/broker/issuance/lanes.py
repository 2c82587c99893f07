"""Turns in lanes that orders of other brokers have, or have asked for before.

In one broker `queue` decides. Where brokers share a database, who has its turn there takes the lane in the order's row
too (`SharedOrders`). Who has to wait tries again when the change feed tells of the order before it; and now and then
without having heard of anything, since a broker that waits and dies tells nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final

from typing_extensions import override

from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.journal import Journal
from certplane.broker.issuance.queue import Lane
from certplane.broker.issuance.waiting import within
from certplane.broker.ports import ChangeFollower

logger = logging.getLogger(__name__)

_AGAIN: Final = timedelta(seconds=5)
"""Without news."""


class SharedLanes(ChangeFollower):
    """Waits for lanes among the orders of all brokers."""

    def __init__(self, ports: IssuancePorts) -> None:
        self._ports = ports
        self._waits: dict[asyncio.Event, str] = {}
        """What wakes each that waits, and the order that it waits for."""

    async def take(self, journal: Journal, lane: Lane) -> None:
        """Return when the order has its turn in `lane`, or has ended meanwhile.

        Raises:
            OrderTakenError: another broker runs it by now.
        """
        if not self._ports.lease.shared:
            return
        said = False
        while behind := await journal.take_lane(lane.digest):
            fields = {"order_id": journal.order.order_id, "behind": behind}
            level = logging.DEBUG if said else logging.INFO
            logger.log(level, "an order waits for one of the same names at another broker", extra={"fields": fields})
            said = True
            journal.note(wait=f"order {behind} of the same names, at another broker")
            await self._wait(journal, behind, lane.digest)

    async def _wait(self, journal: Journal, order_id: str, lane: str) -> None:
        """Return when the order may have left the lane."""
        news = asyncio.Event()
        self._waits[news] = order_id
        try:
            # Read only now, or its end could be told before anybody here listens.
            while (order := await journal.find(order_id)) is not None and order.lane == lane:
                if not await within(self._ports.clock, _AGAIN, news):
                    return
                news.clear()
        finally:
            del self._waits[news]

    @override
    async def changed(self, keys: Collection[str]) -> None:
        for news, order_id in self._waits.items():
            if order_id in keys:
                news.set()

    @override
    async def reread(self, since: datetime) -> None:
        for news in self._waits:
            news.set()
