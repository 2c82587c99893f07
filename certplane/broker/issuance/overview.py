"""Orders as operators see them: of all callers and brokers, with what each waits for and what its issuer still allows.

What an order is at comes from the broker that runs it: at once for this one's, else from its row, some seconds old.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Protocol

from certplane.broker.issuance.flights import Flights
from certplane.broker.issuance.holds import IssuerHolds
from certplane.broker.issuance.listing import OrderListing, OrderPage, OrderPlace, OrderQuery
from certplane.broker.issuance.progress import LANE, TURN
from certplane.broker.issuance.queue import Lane
from certplane.broker.issuance.watching import OrderWatchers
from certplane.broker.members.model import Member
from certplane.broker.model import NO_PROGRESS, Order, OrderState
from certplane.broker.policy.limits import WEEK
from certplane.broker.ports import DurableLimits, PolicySource
from certplane.errors import Refusal, RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.text import counted

_PAGE: Final = 256
_MOST_PAGES: Final = 8
"""Of open orders that are looked at for a count."""


@dataclass(frozen=True, slots=True)
class OrderView:
    """An order, and what isn't in its row.

    Attributes:
        order: As it is, what it is at included.
        place: Where it stands in the list, by its row, which may be a moment older.
        wait: What it waits for; empty while it works, and of one that has ended.
        budget: What its issuer may still be asked for, where that is known.
        broker_id: Who runs it; empty where none does.
        broker_name: The name of that one's machine.
    """

    order: Order
    place: OrderPlace
    wait: str = ""
    budget: str = ""
    broker_id: str = ""
    broker_name: str = ""


class OrdersHere(Protocol):
    """What the view needs of who runs this broker's orders (`dispatch`)."""

    flights: Flights
    holds: IssuerHolds
    watchers: OrderWatchers
    limits: DurableLimits


PlacesLeft = Callable[[Sequence[Order]], Awaitable[Mapping[str, str]]]
"""By order id what the CAs' limits leave of what each of these needs, for people."""


class OrdersView:
    """Lists orders, and says what becomes of them."""

    def __init__(
        self,
        here: OrdersHere,
        listing: OrderListing,
        policies: PolicySource,
        find_member: Callable[[str], Member | None],
        clock: Clock,
        *,
        holder: str,
        name: str,
        left: PlacesLeft | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            here: Runs this broker's orders.
            listing: Reads those of all.
            policies: Whose profiles say how they are ordered.
            find_member: Another broker whose lease stands.
            clock: The time.
            holder: This broker.
            name: Its machine's.
            left: What the CAs' limits leave of what orders need; without it that isn't shown.
        """
        self._here = here
        self._listing = listing
        self._policies = policies
        self._find_member = find_member
        self._clock = clock
        self._left = left
        self._holder = holder
        self._name = name
        self.watchers = here.watchers

    def now(self) -> datetime:
        """The broker's time."""
        return self._clock.now()

    def identities(self, name: str) -> frozenset[str]:
        """The identities of this name or label."""
        try:
            return self._policies.current.identities_of(name) or frozenset({name})
        except RefusalError:
            return frozenset({name})

    async def page(self, query: OrderQuery, after: OrderPlace | None, limit: int) -> tuple[list[OrderView], OrderPage]:
        """A page, as `OrderListing.page` has it.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        page = await self._listing.page(query, after, limit)
        return await self._shown(page.orders, query), page

    async def count_open(self) -> int:
        """How many orders haven't ended, at all brokers.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        return await self._listing.count_open()

    async def count_open_and_troubled(self) -> tuple[int, int]:
        """How many orders haven't ended, and of how many of those a step has failed; of many at least.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        count, troubled = await self._listing.count_open(), 0
        query, after = OrderQuery(open_only=True), None
        for _ in range(_MOST_PAGES if count else 0):
            page = await self._listing.page(query, after, _PAGE)
            troubled += sum(bool(self._as_known(order).trouble) for order in page.orders)
            after = page.after
            if after is None:
                break
        return count, troubled

    def issuer_trouble(self, issuer: str) -> tuple[datetime, Refusal] | None:
        """Until when, and why, no order goes to this issuer; None if they do."""
        now = self.now()
        return self._here.holds.suspected(issuer, now) or self._here.holds.held(Lane(issuer, "", ()), now)

    async def all_open(self, query: OrderQuery) -> AsyncIterator[OrderView]:
        """Those of a query that are open.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        query, after = replace(query, open_only=True), None
        while True:
            views, page = await self.page(query, after, _PAGE)
            for view in views:
                yield view
            after = page.after
            if after is None:
                return

    async def read(self, orders: Iterable[Order], order_ids: Iterable[str]) -> list[OrderView]:
        """These orders, and those of these ids as they are by now; what isn't there any more is left out.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        found = list(orders)
        if ids := frozenset(order_ids):
            found += (await self._listing.page(OrderQuery(order_ids=ids), None, len(ids))).orders
        return await self._shown(found, OrderQuery())

    async def _shown(self, orders: Sequence[Order], query: OrderQuery) -> list[OrderView]:
        rows = [(query.place(order), self._as_known(order)) for order in orders]
        rows = [row for row in rows if query.picks(row[1])]  # it may have gone on since its row was read
        limit = self._here.limits.certificates_per_name_set_per_week
        spent = {}
        if limit:
            names = {order.dns_names for _, order in rows if order.state.is_open}
            spent = dict(await self._listing.count_certificates(names, self.now() - WEEK))
        ordering = [order for _, order in rows if order.state.is_open and not order.acme_order_url]
        places = {} if self._left is None or not ordering else await self._left(ordering)
        turns = sorted(
            flight.order.progress.step_time or flight.order.create_time
            for flight in self._here.flights
            if flight.order.progress.step == TURN
        )
        return [
            OrderView(
                order,
                place,
                self._wait(order, turns),
                self._budget(order, limit, spent.get(order.dns_names), places.get(order.order_id, "")),
                *self._broker(order),
            )
            for place, order in rows
        ]

    def _as_known(self, order: Order) -> Order:
        """An order of a row, or newer where it runs here."""
        if not order.state.is_open:
            return replace(order, progress=NO_PROGRESS)
        flight = self._here.flights.find(order.order_id)
        return order if flight is None else flight.order

    def _broker(self, order: Order) -> tuple[str, str]:
        if not order.state.is_open or not order.holder:
            return "", ""
        if order.holder == self._holder:
            return order.holder, self._name
        member = self._find_member(order.holder)
        return ("", "") if member is None else (order.holder, member.name)

    def _wait(self, order: Order, turns: Sequence[datetime]) -> str:
        progress = order.progress
        if not order.state.is_open:
            wait = ""
        elif not self._broker(order)[0]:
            wait = "a broker that takes it over: the one that ran it has gone"
        elif progress.wait:
            wait = progress.wait
        elif progress.step == LANE or (order.lane is not None and order.turn_time is None):
            wait = "an order of the same names, which has its turn first"
        elif progress.step == TURN:
            before = bisect_left(turns, progress.step_time or order.create_time)
            wait = f"its turn: {before} {'order is' if before == 1 else 'orders are'} before it"
        elif order.holder != self._holder and order.state is OrderState.PENDING and progress == NO_PROGRESS:
            wait = "its turn, or the CA's first answer, at the broker that runs it"
        else:
            wait = ""
        return wait

    def _budget(self, order: Order, limit: int | None, spent: int | None, places: str) -> str:
        if not (order.state.is_open or (order.retry_time is not None and order.retry_time > self.now())):
            return ""
        try:
            profile = self._policies.current.find_profile(order.profile)
        except RefusalError:
            profile = None
        lane = Lane(order.issuer, profile.acme_profile if profile is not None else "", order.dns_names)
        parts = []
        if (held := self._here.holds.held(lane, self.now())) is not None:
            parts.append(f"nothing before {held[0]:%Y-%m-%dT%H:%M:%SZ}: {held[1].message}")
        if places:
            parts.append(places)
        if limit and spent is not None:
            left = max(limit - spent, 0)
            parts.append(f"{left} of {counted(limit, 'certificate')} of these names left this week, this one counted")
        return "; ".join(parts)
