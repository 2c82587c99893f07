"""What the limits leave: how many certificates of each profile's names may be ordered within this week.

Of a profile whose names differ from host to host it is the least that any of them has left.

A public CA counts certificates of exactly the same names, and the broker keeps below that
(`rate_limits.certificates_per_name_set_per_week`): a profile that has none left renews nothing that nobody asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from certplane.broker import metrics
from certplane.broker.issuance.listing import OrderListing
from certplane.broker.model import Profile
from certplane.broker.policy.limits import WEEK
from certplane.broker.ports import DurableLimits, Meter
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_logger = logging.getLogger(__name__)

_INTERVAL: Final = timedelta(minutes=5)
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
        *,
        clock: Clock,
        meter: Meter,
    ) -> None:
        """`profiles` are those of the policy in force, as they are issued, `limits` those that are kept now."""
        self._listing, self._profiles, self._limits = listing, profiles, limits
        self._clock, self._meter = clock, meter

    async def run(self) -> None:
        """Count every five minutes, until cancelled."""
        while True:
            try:
                await self.count()
            except RefusalError as error:
                _logger.warning("could not count what the limits leave; will retry: %s", error)
            await self._clock.sleep(_INTERVAL)

    async def count(self) -> None:
        """Count once.

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
