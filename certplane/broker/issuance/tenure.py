"""Which orders are this broker's to run: what it has opened or taken, for as long as its lease stands.

- At its start a broker takes what no living one holds. Where brokers share a database it does so each second, for those
  whose lease ends, and at once when one says that it goes.
- When the lease doesn't stand, or ended and was had anew between two looks (another term), all that is held may be
  another's: it is given back and taken anew, once whoever ran it has stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from datetime import datetime
from typing import Final

from typing_extensions import override

from certplane.broker.members.ports import Lease
from certplane.broker.model import Order
from certplane.broker.ports import ChangeFollower, OrderStore
from certplane.errors import RefusalError

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 256
"""Orders of one transaction."""


class LeaseLostError(Exception):
    """This broker may do nothing outside before its lease stands again. Never leaves this package."""


class Tenure(ChangeFollower):
    """Takes orders, and knows whether what was taken is still held. Follows `ChangeKind.MEMBER`."""

    def __init__(self, orders: OrderStore, lease: Lease) -> None:
        self._orders = orders
        self._lease = lease
        self._term = lease.term
        self._lost = False
        self._failing = False
        self.left = asyncio.Event()
        """Set when a broker may have left orders."""

    def stand(self) -> bool:
        """Whether no other broker can have taken what is held: what can't be undone may be done.

        Once it was not so, it is not before all is taken anew: whoever was told has stopped.
        """
        self._lost = self._lost or not self._lease.stands() or self._lease.term != self._term
        return not self._lost

    def check(self) -> None:
        """Return if they `stand`.

        Raises:
            LeaseLostError: they don't, and another broker may be at work on them by now.
        """
        if not self.stand():
            raise LeaseLostError

    async def take(self) -> list[Order]:
        """What no living broker holds, ours from now on; what was held before too, if it may be another's.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        if not self.stand():
            term = self._lease.term
            await self._orders.give_back_orders()
            self._term, self._lost = term, False
        taken: list[Order] = []
        while True:
            try:
                some = await self._orders.take_orders(_AT_ONCE)
            except RefusalError:
                if not taken:
                    raise
                return taken  # these are to be run; the others are still there at the next look
            taken += some
            if len(some) < _AT_ONCE:
                return taken

    async def give_up(self) -> None:
        """What may be another's is for others to take; nothing is taken. What fails is tried again. Never raises."""
        term = self._lease.term
        try:
            await self._orders.give_back_orders()
        except RefusalError as error:
            logger.debug("could not give back orders: %s", error)
        else:
            self._term, self._lost = term, False

    async def take_left(self) -> list[Order]:
        """`take` beside all else: what fails is tried again at the next look. Never raises."""
        try:
            taken = await self.take()
        except RefusalError as error:
            logger.debug("could not look for orders that others have left: %s", error)
            return []
        except Exception:
            # At the row of one order perhaps: what is raised here would end all orders that this broker runs.
            if not self._failing:
                logger.exception("could not take orders that others have left; will retry")
            self._failing = True
            return []
        self._failing = False
        return taken

    @override
    async def changed(self, keys: Collection[str]) -> None:
        self.left.set()

    @override
    async def reread(self, since: datetime) -> None:
        self.left.set()
