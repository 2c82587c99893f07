"""What watching services are told of: plans, revocations and issued certificates, of this broker and of others.

What other brokers issue is found by their orders: the change feed names each order that goes on. Plans and revocations
of others come through those who follow them already (`RenewalPlans`, `Revocations`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from itertools import islice
from typing import Final

from typing_extensions import override

from certplane.broker.issuance.listing import OrderListing, OrderQuery
from certplane.broker.model import ChangeKind, OrderState
from certplane.broker.ports import ChangeFeed, ChangeFollower
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.watches.desk import WatchDesk

_TOGETHER: Final = 128
"""Orders that are looked up at once."""


def follow_watched(
    desk: WatchDesk, plans: RenewalPlans, orders: OrderListing, feed: ChangeFeed, told: Callable[[str], None]
) -> None:
    """Let services hear of it, and `told` of each service that begins or ends to watch, at whichever broker."""
    plans.subscribe(desk.plans_changed)
    plans.subscribe_unknown(desk.everything_changed)
    plans.subscribe_issued(desk.certificate_changed)
    plans.subscribe_revoked(desk.certificate_changed)
    desk.subscribe(told)
    feed.follow(ChangeKind.ORDER, IssuedElsewhere(desk, orders), what="what services were issued by other brokers")
    feed.follow(ChangeKind.WATCH, WatchesElsewhere(told), what="services that watch at other brokers")


class IssuedElsewhere(ChangeFollower):
    """Certificates that other brokers have issued to services that watch here."""

    def __init__(self, desk: WatchDesk, orders: OrderListing) -> None:
        self._desk = desk
        self._orders = orders

    @override
    async def changed(self, keys: Collection[str]) -> None:
        left = iter(keys)
        while len(self._desk) and (ids := frozenset(islice(left, _TOGETHER))):
            page = await self._orders.page(OrderQuery(order_ids=ids), None, len(ids))
            self._desk.services_changed(order.identity for order in page.orders if order.state is OrderState.ISSUED)

    @override
    async def reread(self, since: datetime) -> None:
        self._desk.everything_changed()


class WatchesElsewhere(ChangeFollower):
    """Services that begin or end to watch at other brokers."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self._told = told

    @override
    async def changed(self, keys: Collection[str]) -> None:
        for service in keys:
            self._told(service)

    @override
    async def reread(self, since: datetime) -> None:
        """The index reads all services each minute, and whenever somebody asks."""
