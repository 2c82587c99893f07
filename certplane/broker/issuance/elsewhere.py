"""Orders that another broker runs, for those who wait for them here.

The broker that runs an order says on the change feed whenever its state changes; here the order is read then, and told
to who follows it. When its holder has gone, this broker or another one takes the order (`dispatch`), and those who wait
stay with it.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from typing_extensions import override

from certplane.broker.issuance.flights import Flight, Flights
from certplane.broker.model import Order
from certplane.broker.ports import ChangeFollower, OrderStore


class OrdersElsewhere(ChangeFollower):
    """Follows orders of other brokers for as long as they are open."""

    def __init__(self, orders: OrderStore) -> None:
        self._orders = orders
        self.flights = Flights()
        self._unread: set[str] = set()
        """Followed since they were read: one that ended in between has been told of while nobody here listened."""

    def see(self, order: Order, flight: Flight | None = None) -> Flight:
        """The flight of an open order of another broker; `flight` is what it was here until now."""
        known = self.flights.find(order.order_id)
        if known is not None and flight is None:
            return known
        self._unread.add(order.order_id)
        return self.flights.add(order, flight)

    async def catch_up(self) -> None:
        """Read those once that are followed since the last time.

        Raises:
            RefusalError: STORE_UNAVAILABLE; what is left is read the next time.
        """
        for order_id in tuple(self._unread):
            await self._look(order_id)
            self._unread.discard(order_id)

    def take_over(self, order: Order) -> Flight | None:
        """The order is run here from now on: its flight, if anybody here has waited for it."""
        flight = self.flights.find(order.order_id)
        if flight is not None:
            self.flights.let_go(flight)
        return flight

    def land_all(self) -> None:
        """Nobody is to wait here any more."""
        for flight in self.flights:
            self.flights.remove(flight)

    @override
    async def changed(self, keys: Collection[str]) -> None:
        for key in keys:
            await self._look(key)

    @override
    async def reread(self, since: datetime) -> None:
        for flight in self.flights:
            await self._look(flight.order.order_id)

    async def _look(self, order_id: str) -> None:
        if self.flights.find(order_id) is None:
            return
        order = await self._orders.get_order(order_id)
        flight = self.flights.find(order_id)
        if flight is None:
            return  # it is run here by now
        if order is None:  # the database was restored from before it was opened
            self.flights.remove(flight)
            return
        if order.state.is_open and order.holder == self._orders.holder:
            return  # it is about to be run here
        flight.publish(order)
        flight.note(order.progress)
        if not order.state.is_open:
            self.flights.remove(flight)
