"""An operator's request that certificates be renewed: which ones, when each, and the record of it.

`spread_renewals` decides, purely; `RenewalRequests` makes it durable with its audit event and answers. The hosts are
told by whoever listens to the plans. The answer is what will come of it: a host that waits with what is due is told to
try now, and one that gets no certificate before a person has acted is named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditTrail
from certplane.broker.fleet.model import HeldUp, HostRecord, RequestedRenewal
from certplane.broker.fleet.ports import FleetStore, RenewalRequestLog
from certplane.broker.model import Caller
from certplane.broker.renewal.model import InForce, RenewalPlan, Selection
from certplane.broker.renewal.ports import RenewalPlanStore
from certplane.fleet_report.model import RenewalCause
from certplane.runtime.clock import Clock

MOST_HELD_UP: Final = 20
"""That are named; the rest is counted."""
_READ: Final = 128
"""Hosts that are read about together."""


class _Fleet(FleetStore, RenewalRequestLog, Protocol):
    pass


@dataclass(frozen=True, slots=True)
class RenewalRequest:
    """What is asked for. `chosen_id`: the caller chose `request_id`, and may ask again with it."""

    selection: Selection
    reason: str
    request_id: str
    chosen_id: bool = False
    spread: timedelta = timedelta()
    dry_run: bool = False


def spread_renewals(
    picked: Sequence[InForce],
    spread: timedelta,
    now: datetime,
    *,
    reason: str,
    request_id: str,
    stuck: Collection[str] = (),
) -> list[RenewalPlan]:
    """The new plans, the times evenly spread from `now` on; none for what is due as early anyway.

    What is due already takes no place in the spread, and neither does what this very request has planned before.
    `stuck` are certificates that are due and whose hosts wait all the same: those are asked for now.
    """
    waiting = [
        one
        for one in picked
        if one.renew_time > now and (one.plan is None or one.plan.renewal_request_id != request_id)
    ]
    times = [(one, now + spread * index / len(waiting)) for index, one in enumerate(waiting)]
    earlier = [(one, time) for one, time in times if time < one.renew_time]
    again = [
        (one, now)
        for one in picked
        if one.certificate_id in stuck and (one.plan is None or one.plan.renewal_request_id != request_id)
    ]
    return [
        RenewalPlan(
            certificate_id=one.certificate_id,
            host=one.host,
            renew_time=renew_time,
            cause=RenewalCause.OPERATOR,
            reason=reason,
            renewal_request_id=request_id,
        )
        for one, renew_time in (*earlier, *again)
    ]


def stuck_renewals(picked: Iterable[InForce], hosts: Iterable[HostRecord], now: datetime) -> list[HeldUp]:
    """Of these certificates, those that are due and whose hosts wait after a failure, as far as they have reported."""
    due = {one.certificate_id for one in picked if one.renew_time <= now}
    return [
        HeldUp(record.host, held.certificate_id, status.last_error, status.name, status.next_attempt_time)
        for record in hosts
        for status in record.certificates
        if status.request_failures and status.next_attempt_time is not None and status.next_attempt_time > now
        for held in (status.installed or status.issued,)
        if held is not None and held.certificate_id in due
    ]


class RenewalRequests:
    """Takes requests."""

    def __init__(
        self,
        plans: RenewalPlanStore,
        fleet: _Fleet,
        clock: Clock,
        trail: AuditTrail,
        *,
        why_none: Callable[[str], str],
    ) -> None:
        """Take what requests work on; `why_none` says why a host gets no certificates, empty if it does."""
        self._plans = plans
        self._fleet = fleet
        self._clock = clock
        self._trail = trail
        self._why_none = why_none

    async def request(self, caller: Caller, order: RenewalRequest) -> tuple[RequestedRenewal, frozenset[str]]:
        """Do it, durable; what came of it, and the hosts of what has changed.

        Asked again with an id that the caller chose, it changes nothing and has the same answer. Should the broker end
        between the plans and the record of them, asking again keeps the times that were given.

        Raises:
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; nothing changed.
        """
        now = self._clock.now()
        if order.chosen_id:
            found = await self._fleet.find_request(caller.name, order.request_id)
            if found is not None:
                return found, frozenset()
        picked = await self._plans.select(order.selection, now)
        stuck = await self._stuck(picked, now)
        plans = spread_renewals(
            picked,
            order.spread,
            now,
            reason=order.reason,
            request_id=order.request_id,
            stuck={one.certificate_id for one in stuck},
        )
        times = [plan.renew_time for plan in plans]
        held_up = [*self._shut_out(picked), *stuck]
        requested = RequestedRenewal(
            order.request_id,
            len(picked),
            len(plans),
            max(times, default=None),
            tuple(held_up[:MOST_HELD_UP]),
            len(held_up),
        )
        if not order.dry_run:
            await self._plans.set_plans(plans, [self._event(caller, order, requested)])
            if order.chosen_id:
                await self._fleet.record_request(caller.name, requested, now)
        return requested, frozenset(plan.host for plan in plans)

    async def _stuck(self, picked: Sequence[InForce], now: datetime) -> list[HeldUp]:
        hosts = sorted({one.host for one in picked if one.renew_time <= now})
        found: list[HeldUp] = []
        for start in range(0, len(hosts), _READ):
            records = await self._fleet.list_hosts(hosts=hosts[start : start + _READ])
            found += stuck_renewals(picked, records, now)
        return found

    def _shut_out(self, picked: Sequence[InForce]) -> list[HeldUp]:
        reasons = {host: self._why_none(host) for host in {one.host for one in picked}}
        return [HeldUp(one.host, one.certificate_id, reason) for one in picked if (reason := reasons[one.host])]

    def _event(self, caller: Caller, order: RenewalRequest, requested: RequestedRenewal) -> AuditEvent:
        spread = f", spread over {order.spread}" if order.spread else ""
        return self._trail.of_caller(caller, order.request_id).event(
            AuditEventType.RENEWAL_REQUESTED,
            decision=AuditDecision.ALLOW,
            reason=f"{requested.changed_count} of {requested.certificate_count} certificates{spread}: {order.reason}",
            count=requested.changed_count,
        )
