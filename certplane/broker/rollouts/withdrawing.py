"""Takes back what an aborted rollout has planned and nobody has ordered yet: hosts renew when they would have.

What is ordered, or issued, stays: its hosts hold it, and use it when the certificate in use is due.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, Protocol

from certplane.broker.events import AuditEvent
from certplane.broker.renewal.model import InForce, RenewalPlan
from certplane.broker.rollouts.model import ItemState, Rollout, RolloutItem
from certplane.fleet_report.model import RenewalCause
from certplane.runtime.clock import Clock

_TOGETHER: Final = 128
"""Hosts whose plans are read and written at once."""


class Plans(Protocol):
    """The renewals that are planned."""

    async def in_force_of(self, hosts: Sequence[str], now: datetime) -> Sequence[InForce]:
        """See `RenewalPlanStore.in_force_of`."""
        ...

    async def set_plans(self, plans: Sequence[RenewalPlan], events: Sequence[AuditEvent] = ()) -> None:
        """See `RenewalPlanStore.set_plans`."""
        ...


async def withdraw(rollout: Rollout, items: Iterable[RolloutItem], plans: Plans, clock: Clock) -> None:
    """Plan what was requested for it as if it had not been; what somebody else has planned since stays.

    Raises:
        RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; some of it may be left: those hosts order, and hold.
    """
    waiting = [item for item in items if item.state is ItemState.REQUESTED and not item.new_certificate_id]
    hosts, ids = sorted({item.host for item in waiting}), {item.certificate_id for item in waiting}
    for start in range(0, len(hosts), _TOGETHER):
        found = await plans.in_force_of(hosts[start : start + _TOGETHER], clock.now())
        again = [
            _as_before(one, rollout)
            for one in found
            if one.certificate_id in ids and one.plan is not None and one.plan.rollout_id == rollout.rollout_id
        ]
        if again:
            await plans.set_plans(again)


def _as_before(one: InForce, rollout: Rollout) -> RenewalPlan:
    """When the CA wants it, if it has said so; else when its lifetime does."""
    time, cause = one.lifetime_renew_time, RenewalCause.LIFETIME
    start = None if one.plan is None else one.plan.window_start
    if start is not None and start < time:
        time, cause = start, RenewalCause.ISSUER
    return RenewalPlan(one.certificate_id, one.host, time, cause, f"the rollout {rollout.rollout_id} was aborted")
