"""The ledger that all brokers of a database share. The rules of `certplane.broker.ports` hold here too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from certplane.broker.budget.model import BucketKey, Claim, LedgerState, Need, Shortage
from certplane.broker.model import Order


@dataclass(frozen=True, slots=True)
class PlaceTry:
    """What came of a try.

    Attributes:
        order: As it durably is.
        shortage: Why it has to wait; None: it has all its places.
        free_times: From when on the buckets have a place again of which it has taken one.
    """

    order: Order
    shortage: Shortage | None = None
    free_times: Mapping[BucketKey, datetime] = field(default_factory=dict)


class BudgetLedger(Protocol):
    """The places that orders take, and who waits for one."""

    async def take_places(self, order: Order, claim: Claim) -> PlaceTry:
        """Take a place in every bucket of `claim`, or in none, durable, in one transaction with the order's row.

        An order that has places for its next order at the CA keeps those. Who gets none waits from then on, for all
        brokers to see, until it has places, goes to the CA, or ends. One that is free is left to orders that are more
        urgent, wait for the same bucket, can go now, and are a living broker's.

        Raises:
            RefusalError: ORDER_NOT_FOUND as `OrderStore.change_order`, also if it has ended; STORE_UNAVAILABLE.
        """
        ...

    async def give_back(self, needs: Sequence[Need]) -> None:
        """Put back a place of each, which an order had taken and the CA will never count. Durable.

        For who has written that the order goes no further: never again, not even where it isn't known whether it was
        done. A place that is lost comes back by itself; one that was given back twice would be one too many.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def correct(self, order: Order, claim: Claim, refused: Sequence[Need], until: datetime) -> PlaceTry:
        """The CA has refused the order, and said that no `refused` bucket has a place before `until`. Durable.

        It counts more than what was computed, whatever that was. What the order has taken elsewhere is put back, since
        the CA has made nothing of it, and the order waits for what `claim` needs.

        Raises:
            RefusalError: as `take_places`.
        """
        ...

    async def count(self, needs: Sequence[Need]) -> None:
        """The CA has counted this, a failed validation say: take a place of each, also of what has none. Durable.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class BudgetReader(Protocol):
    """The ledger as it is. Reads only: none of it is in memory."""

    async def state(self, directory_urls: Collection[str]) -> LedgerState:
        """What is taken of these CAs, and who waits there.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def known_names(self, issuers: Collection[str], names_sha256: Collection[str]) -> Collection[str]:
        """Of these sets of names, those that one of `issuers` has issued for within `SAME_NAMES_WITHIN`.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...
