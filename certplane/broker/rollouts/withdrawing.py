"""Takes back what a rollout has planned for certificates that had no successor when it ended.

Their hosts renew when they would have. What is issued stays: its hosts hold it, and use it when the certificate in use
is due; so does what they have ordered by then (`agent.renewal.directed.kept_directive`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final, Protocol

from certplane.broker.events import AuditEvent
from certplane.broker.renewal.model import InForce, RenewalPlan
from certplane.broker.rollouts.model import Rollout, RolloutItem
from certplane.fleet_report.model import RenewalCause
from certplane.runtime.clock import Clock

_TOGETHER: Final = 128
"""Hosts whose plans are read and written at once."""


class Plans(Protocol):
    """The renewals that are planned."""

    async def in_force_of(self, hosts: Sequence[str], now: datetime) -> Sequence[InForce]:
        """See `RenewalPlanStore.in_force_of`."""
        ...

    async def replace_plan(
        self, before: RenewalPlan | None, after: RenewalPlan, events: Sequence[AuditEvent] = ()
    ) -> bool:
        """See `RenewalPlanStore.replace_plan`."""
        ...


async def withdraw(rollout: Rollout, items: Iterable[RolloutItem], plans: Plans, clock: Clock) -> None:
    """Plan what was requested for it as if it had not been; what somebody else has planned since stays.

    Raises:
        RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; some of it may be left: do it again.
    """
    waiting = [item for item in items if not item.new_certificate_id]
    hosts, ids = sorted({item.host for item in waiting}), {item.certificate_id for item in waiting}
    for start in range(0, len(hosts), _TOGETHER):
        found = await plans.in_force_of(hosts[start : start + _TOGETHER], clock.now())
        again = [
            plans.replace_plan(one.plan, _as_before(one, one.plan, rollout))
            for one in found
            if one.certificate_id in ids and one.plan is not None and one.plan.rollout_id == rollout.rollout_id
        ]
        await asyncio.gather(*again)  # which the writer takes together


def _as_before(one: InForce, plan: RenewalPlan, rollout: Rollout) -> RenewalPlan:
    """When the CA wants it, if it has said so; else when its lifetime does."""
    time, cause = one.lifetime_renew_time, RenewalCause.LIFETIME
    if plan.window_start is not None and plan.window_start < time:
        time, cause = plan.window_start, RenewalCause.ISSUER
    return replace(
        plan,
        renew_time=time,
        cause=cause,
        reason=f"the rollout {rollout.rollout_id} was {rollout.state}",
        rollout_id="",
        hold_activation=False,
        activate_by_time=None,
        new_key=False,
        to_issuer="",
    )
