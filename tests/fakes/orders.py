"""Who runs no orders: what a view of orders needs of a broker that has none under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from certplane.broker.issuance.flights import Flights
from certplane.broker.issuance.holds import HoldStore, IssuerHolds
from certplane.broker.issuance.overview import OrdersHere
from certplane.broker.issuance.watching import OrderWatchers
from certplane.broker.ports import DurableLimits


@dataclass
class NoOrdersHere(OrdersHere):
    """`OrdersHere` of an idle broker."""

    store: HoldStore
    flights: Flights = field(default_factory=Flights)
    watchers: OrderWatchers = field(default_factory=OrderWatchers)
    limits: DurableLimits = field(default_factory=DurableLimits)

    def __post_init__(self) -> None:
        self.holds = IssuerHolds(self.store, {}, lambda: "")
