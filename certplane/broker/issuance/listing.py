"""Which orders an operator asks for, and where they are read: those of all callers, at any broker."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from certplane.broker.model import Order, OrderState

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
_LONGEST_LIFE: Final = timedelta(days=31)
"""From an order's start to its end: what a CA doesn't end within it, it has forgotten."""


@dataclass(frozen=True, slots=True)
class OrderPlace:
    """A place in a list of orders: open ones first, each part newest first; a change moves no other order.

    Attributes:
        ended: In which part.
        time: Of the order there: when it was created, or when it ended (`OrderQuery.place`). None: before the first.
        order_id: Of those of one time.
    """

    ended: bool = False
    time: datetime | None = None
    order_id: str = ""


@dataclass(frozen=True, slots=True)
class OrderQuery:
    """Orders that fulfil each condition that is set; of one with several values, one of them.

    Attributes:
        order_ids: These orders.
        states: In these states.
        open_only: That haven't ended.
        identities: Of these identities, by name.
        profiles: Of these profiles.
        issuers: At these issuers.
        dns_names: With one of these names.
        reasons: That failed for one of these reasons, or whose last step did.
        since: Created or changed since.
        request_id: Of the call with this id.
    """

    order_ids: frozenset[str] = frozenset()
    states: frozenset[OrderState] = frozenset()
    open_only: bool = False
    identities: frozenset[str] = frozenset()
    profiles: frozenset[str] = frozenset()
    issuers: frozenset[str] = frozenset()
    dns_names: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    since: datetime | None = None
    request_id: str = ""

    def picks(self, order: Order) -> bool:
        """Whether the order is one of them."""
        return (
            (not self.order_ids or order.order_id in self.order_ids)
            and (not self.states or order.state in self.states)
            and (not self.open_only or order.state.is_open)
            and (not self.identities or order.identity in self.identities)
            and (not self.profiles or order.profile in self.profiles)
            and (not self.issuers or order.issuer in self.issuers)
            and (not self.dns_names or not self.dns_names.isdisjoint(order.dns_names))
            and (not self.reasons or _reason(order) in self.reasons)
            and (self.since is None or order.update_time >= self.since)
            and (not self.request_id or order.request_id == self.request_id)
        )

    @property
    def by_age(self) -> bool:
        """Whether ended orders come in the order of their creation too: an index has those of one identity so."""
        return len(self.identities) == 1

    def place(self, order: Order) -> OrderPlace:
        """Where an order stands in the list."""
        ended = not order.state.is_open
        time = order.update_time if ended and not self.by_age else order.create_time
        return OrderPlace(ended, time, order.order_id)

    @property
    def oldest(self) -> datetime | None:
        """With an earlier time in its place, no ended order is one of them; None: any may be."""
        if self.since is None or not self.by_age:
            return self.since
        return None if self.since - _LONG_AGO < _LONGEST_LIFE else self.since - _LONGEST_LIFE


def _reason(order: Order) -> str:
    """Why it failed, or its last step."""
    return order.error.reason.value if order.error is not None else order.trouble.partition(":")[0]


@dataclass(frozen=True, slots=True)
class OrderPage:
    """Some orders, in their order.

    Attributes:
        orders: Those that were found.
        after: Where to go on; None at the end. A page may be short, or empty, and not the last one: not more than some
            thousand rows are looked at for one.
    """

    orders: Sequence[Order]
    after: OrderPlace | None


class OrderListing(Protocol):
    """Orders as operators ask for them; the rules of `certplane.broker.ports` hold here."""

    async def page(self, query: OrderQuery, after: OrderPlace | None, limit: int) -> OrderPage:
        """At most `limit` orders after a place, from committed rows; never holds the event loop for long.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def count_open(self) -> int:
        """How many orders haven't ended.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def count_certificates(
        self, names: Collection[tuple[str, ...]], since: datetime
    ) -> Mapping[tuple[str, ...], int]:
        """For each set of names how many orders since then count against a public CA's limit of it.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...
