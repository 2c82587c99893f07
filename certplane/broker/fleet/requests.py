"""An operator's request that certificates be renewed: which ones, when each, and the record of it.

`spread_renewals` decides, purely; `RenewalRequests` makes it durable with its audit event and answers. The hosts are
told by whoever listens to the plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from certplane.broker.fleet.model import RequestedRenewal
from certplane.broker.fleet.ports import RenewalRequestLog
from certplane.broker.model import AuditDecision, AuditEvent, AuditEventType, Caller
from certplane.broker.renewal.model import InForce, RenewalCause, RenewalPlan, Selection
from certplane.broker.renewal.ports import RenewalPlanStore
from certplane.runtime.clock import Clock

__all__ = ["RenewalOrder", "RenewalRequests", "spread_renewals"]


@dataclass(frozen=True, slots=True)
class RenewalOrder:
    """What is asked for. `chosen_id`: the caller chose `request_id`, and may ask again with it."""

    selection: Selection
    reason: str
    request_id: str
    chosen_id: bool = False
    spread: timedelta = timedelta()
    dry_run: bool = False


def spread_renewals(
    picked: Sequence[InForce], spread: timedelta, now: datetime, *, reason: str, request_id: str
) -> list[RenewalPlan]:
    """The new plans, the times evenly spread from `now` on; none for what is due as early anyway.

    What is due already takes no place in the spread, and neither does what this very request has planned before.
    """
    waiting = [
        one
        for one in picked
        if one.renew_time > now and (one.plan is None or one.plan.renewal_request_id != request_id)
    ]
    plans = []
    for index, one in enumerate(waiting):
        renew_time = now + spread * index / len(waiting)
        if renew_time < one.renew_time:
            plans.append(
                RenewalPlan(
                    certificate_id=one.certificate_id,
                    host=one.host,
                    renew_time=renew_time,
                    cause=RenewalCause.OPERATOR,
                    reason=reason,
                    renewal_request_id=request_id,
                )
            )
    return plans


class RenewalRequests:
    """Takes requests."""

    def __init__(
        self, plans: RenewalPlanStore, log: RenewalRequestLog, clock: Clock, new_event_id: Callable[[], str]
    ) -> None:
        self._plans = plans
        self._log = log
        self._clock = clock
        self._new_event_id = new_event_id

    async def request(self, caller: Caller, order: RenewalOrder) -> tuple[RequestedRenewal, frozenset[str]]:
        """Do it, durable; what came of it, and the hosts of what has changed.

        Asked again with an id that the caller chose, it changes nothing and has the same answer. Should the broker end
        between the plans and the record of them, asking again keeps the times that were given.

        Raises:
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; nothing changed.
        """
        now = self._clock.now()
        if order.chosen_id:
            found = await self._log.find_request(caller.name, order.request_id)
            if found is not None:
                return found, frozenset()
        picked = await self._plans.select(order.selection, now)
        plans = spread_renewals(picked, order.spread, now, reason=order.reason, request_id=order.request_id)
        times = [plan.renew_time for plan in plans]
        requested = RequestedRenewal(order.request_id, len(picked), len(plans), max(times, default=None))
        if not order.dry_run:
            await self._plans.set_plans(plans, [self._event(caller, order, requested, now)])
            if order.chosen_id:
                await self._log.record_request(caller.name, requested, now)
        return requested, frozenset(plan.host for plan in plans)

    def _event(self, caller: Caller, order: RenewalOrder, requested: RequestedRenewal, now: datetime) -> AuditEvent:
        spread = f", spread over {order.spread}" if order.spread else ""
        return AuditEvent(
            event_id=self._new_event_id(),
            timestamp=now,
            event_type=AuditEventType.RENEWAL_REQUESTED,
            request_id=order.request_id,
            decision=AuditDecision.ALLOW,
            identity=caller.name,
            reason=f"{requested.changed_count} of {requested.certificate_count} certificates{spread}: {order.reason}",
            source_ip=caller.source_ip,
            user_agent=caller.user_agent,
            count=requested.changed_count,
        )
