"""What the limits leave, as figures.

Of those of the CAs, how many places, and how many orders wait for one; of the broker's own, how many certificates of
each profile's names may be ordered within this week. Of a profile whose names differ from host to host it is the least
that any of them has left.

A public CA counts certificates of exactly the same names, and the broker keeps below that
(`rate_limits.certificates_per_name_set_per_week`): a profile that has none left renews nothing that nobody asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from certplane.broker import metrics
from certplane.broker.budget.overview import IssuerView
from certplane.broker.issuance.listing import OrderListing
from certplane.broker.model import Profile
from certplane.broker.policy.limits import WEEK
from certplane.broker.ports import DurableLimits, Meter
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_logger = logging.getLogger(__name__)

_INTERVAL: Final = timedelta(minutes=1)
_COUNT_EACH: Final = 5
"""Certificates are counted every so often: that is a read for each set of names."""
SHOWN_OF_BUDGETS: Final = (
    metrics.CERTIFICATES_LEFT,
    metrics.BUDGET_LEFT,
    metrics.BUDGET_PLACES,
    metrics.BUDGET_WAITING,
    metrics.BUDGET_WAIT,
)
"""What one broker shows for all."""
_MOST_PROFILES: Final = 2000
"""A count is a read: of a larger policy it takes seconds, and nobody looks at so many series."""
_MOST_SETS: Final = 500
"""Likewise of one profile: where each of so many hosts has names of its own, none is near its limit."""


class BudgetWatch:
    """Shows it, while `run` runs."""

    def __init__(
        self,
        listing: OrderListing,
        profiles: Callable[[], Sequence[Profile]],
        limits: Callable[[], DurableLimits],
        overview: Callable[[], Awaitable[Sequence[IssuerView]]],
        *,
        clock: Clock,
        meter: Meter,
    ) -> None:
        """Nothing is read yet.

        Args:
            listing: The orders.
            profiles: Those of the policy in force, as they are issued.
            limits: Those of the broker that are kept now.
            overview: What the CAs' limits leave.
            clock: The time.
            meter: Shows it.
        """
        self._listing, self._profiles, self._limits, self._overview = listing, profiles, limits, overview
        self._clock, self._meter = clock, meter

    async def run(self) -> None:
        """Look every minute, and count every five, until cancelled."""
        for number in itertools.count():
            try:
                await self.look()
                if number % _COUNT_EACH == 0:
                    await self.count()
            except RefusalError as error:
                _logger.warning("could not count what the limits leave; will retry: %s", error)
            await self._clock.sleep(_INTERVAL)

    async def look(self) -> None:
        """Show what the ledger has.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        views = await self._overview()
        now = self._clock.now()
        self._meter.table(
            metrics.BUDGET_LEFT,
            {(view.limits.issuer, each.limit.name): float(each.left) for view in views for each in view.views},
        )
        self._meter.table(
            metrics.BUDGET_PLACES,
            {(view.limits.issuer, each.limit.name): float(each.limit.amount) for view in views for each in view.views},
        )
        self._meter.table(metrics.BUDGET_WAITING, {(view.limits.issuer,): float(view.waiting_count) for view in views})
        self._meter.table(metrics.BUDGET_WAIT, {(view.limits.issuer,): _wait(view, now) for view in views})

    async def count(self) -> None:
        """Count certificates once.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        most = self._limits().certificates_per_name_set_per_week
        left: dict[tuple[str, ...], float] = {}
        profiles = [] if most is None else self._profiles()
        sets = Counter(profile.name for profile in profiles)
        for profile in profiles if len(sets) <= _MOST_PROFILES else ():
            if sets[profile.name] > _MOST_SETS:
                continue
            found = await self._listing.count_certificates([profile.dns_names], self._clock.now() - WEEK)
            own = float(max(0, (most or 0) - found[profile.dns_names]))
            left[(profile.name,)] = min(left.get((profile.name,), own), own)
            await asyncio.sleep(0)
        self._meter.table(metrics.CERTIFICATES_LEFT, left)


def _wait(view: IssuerView, now: datetime) -> float:
    if view.never_count:
        return math.inf
    return 0.0 if view.waiting_until is None else max(0.0, (view.waiting_until - now).total_seconds())
