"""The summary of a night: what the index has, in words; what changed before; how issuers and orders fare."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.events import CHANGE_EVENTS, AuditEvent, AuditEventType
from certplane.broker.fleet.filter import FleetFilter
from certplane.broker.fleet.forecasting import Forecasts
from certplane.broker.fleet.index import CauseGroup, FleetIndex
from certplane.broker.fleet.summary import MOST_SHOWN, FleetSums, sum_up
from certplane.broker.fleet.view import CertificateView, FleetView
from certplane.broker.issuance.overview import OrdersView
from certplane.broker.ports import AuditReader
from certplane.errors import Refusal
from certplane.runtime.clock import Clock

_OF_ONE: Final = frozenset(
    {AuditEventType.CERTIFICATE_REVOKED, AuditEventType.ISSUER_FAILED_OVER, AuditEventType.RENEWAL_WINDOW_MOVED}
)
"""Of one certificate or order each: a night of an incident or a rollout has hundreds."""
_SURE: Final = MOST_SHOWN // 4
"""Of those, so many are shown whatever else there is."""


@dataclass(frozen=True, slots=True)
class ShownCause:
    """A cause, with one of its certificates as an example; None if that is gone meanwhile."""

    group: CauseGroup
    example: CertificateView | None


@dataclass(frozen=True, slots=True)
class IssuerTrouble:
    """What holds up orders to an issuer.

    Attributes:
        issuer: Its name.
        until: Until when none go there; None: they do, or that isn't known.
        refusal: Why they don't; None: they do.
        waiting_count: How many wait for a place within its limits.
        waiting_until: When the last of those would have it; None: none waits, or one that has none within 90 days.
    """

    issuer: str
    until: datetime | None = None
    refusal: Refusal | None = None
    waiting_count: int = 0
    waiting_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class FleetSummary:
    """The answer to the five questions; `sums` has the counts."""

    time: datetime
    sums: FleetSums
    hurt: Sequence[CertificateView]
    next: Sequence[CertificateView]
    causes: Sequence[ShownCause]
    cause_count: int
    changes: Sequence[AuditEvent]
    issuers: Sequence[IssuerTrouble]
    open_orders: int
    troubled_orders: int


class FleetSummaries:
    """Makes summaries."""

    def __init__(
        self,
        index: FleetIndex,
        view: FleetView,
        *,
        audit: AuditReader,
        orders: OrdersView,
        issuers: Collection[str],
        clock: Clock,
        forecasts: Forecasts | None = None,
    ) -> None:
        """Of the fleet of `index`, and of the `issuers` of these names; without `forecasts` no order waits there."""
        self._index = index
        self._view = view
        self._audit = audit
        self._orders = orders
        self._issuers = issuers
        self._clock = clock
        self._forecasts = forecasts

    async def read(self, wanted: FleetFilter, period: timedelta) -> FleetSummary:
        """The summary of what is `wanted`; what ends within `period` is next, and what changed within it is shown.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        await self._index.settled()
        now = self._clock.now()
        picked = wanted.at(now)
        sums = await sum_up(self._index.walk(), picked, now, period)
        groups = await self._index.causes(picked.picked)
        shown = groups[:MOST_SHOWN]
        examples = await self._examples(shown)
        open_orders, troubled_orders = await self._orders.count_open_and_troubled()
        return FleetSummary(
            time=now,
            sums=sums,
            hurt=await self._view.certificates(sums.hurt),
            next=await self._view.certificates(sums.next),
            causes=[ShownCause(group, examples.get(group.example)) for group in shown],
            cause_count=len(groups),
            changes=changes_shown(
                await self._audit.recent(CHANGE_EVENTS - _OF_ONE, since=now - period, limit=MOST_SHOWN),
                await self._audit.recent(_OF_ONE, since=now - period, limit=MOST_SHOWN),
            ),
            issuers=await self._issuer_states(),
            open_orders=open_orders,
            troubled_orders=troubled_orders,
        )

    async def _examples(self, groups: Sequence[CauseGroup]) -> dict[tuple[str, str], CertificateView]:
        found = []
        for host_name, name in (group.example for group in groups):
            host = self._index.hosts.get(host_name)
            certificates = () if host is None else host.certificates
            found += [(host, each) for each in certificates if host is not None and each.name == name]
        views = await self._view.certificates(found)
        return {(view.host.name, view.certificate.name): view for view in views}

    async def _issuer_states(self) -> list[IssuerTrouble]:
        views = () if self._forecasts is None else await self._forecasts.overview()
        waits = {view.limits.issuer: (view.waiting_count, view.waiting_until) for view in views}
        found = []
        for name in self._issuers:
            until, refusal = self._orders.issuer_trouble(name) or (None, None)
            found.append(IssuerTrouble(name, until, refusal, *waits.get(name, (0, None))))
        return found


def changes_shown(changes: Sequence[AuditEvent], of_one: Sequence[AuditEvent]) -> Sequence[AuditEvent]:
    """What changed, the newest first: what changed for many isn't pushed out by what was done to one after the other.

    Args:
        changes: For many, the newest first.
        of_one: Of one certificate or order each, likewise.
    """
    kept = of_one[: max(_SURE, MOST_SHOWN - len(changes))]
    return sorted([*changes[: MOST_SHOWN - len(kept)], *kept], key=lambda event: event.timestamp, reverse=True)
