"""`RenewalPlans`: the plans as the broker knows them now, in memory in front of the store.

Everybody who plans goes through here: who asks the CAs, an operator's request, a revocation. So the answer to each call
has the time that holds, without a look at the database, and whoever wants to tell the hosts hears of each change, after
it is durable. Another broker's plans are seen at the next `refresh`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.model import CertificateRecord, OrderCause
from certplane.broker.ports import RenewalTimes
from certplane.broker.renewal.model import InForce, RenewalPlan, Selection
from certplane.broker.renewal.ports import RenewalChecks, RenewalPlanStore
from certplane.fleet_report.model import RenewalCause

_SKEW: Final = timedelta(minutes=5)
"""A host's clock may be ahead of ours: what it thinks due by so much is."""


class _Store(RenewalPlanStore, RenewalChecks, Protocol):
    pass


class RenewalPlans(RenewalTimes, RenewalPlanStore, RenewalChecks):
    """`RenewalPlanStore` and `RenewalChecks` over a store of theirs, and `RenewalTimes` from memory."""

    def __init__(self, store: _Store) -> None:
        """Nothing is known before `refresh`."""
        self._store = store
        self._times: dict[str, datetime] = {}
        self._learnt: dict[str, datetime] = {}
        """Since the last refresh began: what it reads may be older."""
        self._on_change: list[Callable[[Sequence[RenewalPlan]], None]] = []
        self._on_issue: list[Callable[[CertificateRecord], None]] = []
        self._on_revoke: list[Callable[[CertificateRecord], None]] = []

    def subscribe(self, on_change: Callable[[Sequence[RenewalPlan]], None]) -> None:
        """Call `on_change` with the plans that have changed in what hosts are told; it must not raise or wait."""
        self._on_change.append(on_change)

    def subscribe_issued(self, on_issue: Callable[[CertificateRecord], None]) -> None:
        """Call `on_issue` with each certificate that was issued; it must not raise or wait."""
        self._on_issue.append(on_issue)

    def subscribe_revoked(self, on_revoke: Callable[[CertificateRecord], None]) -> None:
        """Call `on_revoke` with each certificate that was revoked; it must not raise or wait."""
        self._on_revoke.append(on_revoke)

    @override
    def renew_time(self, certificate: CertificateRecord) -> datetime:
        return self._times.get(certificate.certificate_id, certificate.renew_time)

    @override
    async def wanted(self, certificate: CertificateRecord, now: datetime) -> tuple[OrderCause, datetime] | None:
        chosen = await self._store.select(Selection(certificate_ids=(certificate.certificate_id,)), now)
        plan = chosen[0].plan if chosen else None
        if plan is not None and plan.window_start is not None and plan.window_start <= now:
            return OrderCause.ISSUER, plan.window_start
        asked = plan is not None and plan.cause is RenewalCause.OPERATOR
        since = certificate.renew_time if plan is None else plan.renew_time
        if since > now:
            since -= _SKEW
        if since > now:
            return None
        return OrderCause.OPERATOR if asked else OrderCause.DUE, since

    @override
    def note_issued(self, certificate: CertificateRecord) -> None:
        for on_issue in self._on_issue:
            on_issue(certificate)

    @override
    def note_revoked(self, certificate: CertificateRecord) -> None:
        for on_revoke in self._on_revoke:
            on_revoke(certificate)

    async def refresh(self, now: datetime) -> None:
        """Take what the store has, and forget, there too, the plans of certificates that are no longer in force.

        Raises:
            RefusalError: STORE_UNAVAILABLE; what was known stays.
        """
        self._learnt = {}
        plans = await self._store.standing(now)
        self._times = {plan.certificate_id: plan.renew_time for plan in plans} | self._learnt

    @override
    async def set_plans(self, plans: Sequence[RenewalPlan], events: Sequence[AuditEvent] = ()) -> None:
        await self._store.set_plans(plans, events)
        self._learn(plans)

    @override
    async def in_force(self, host: str, now: datetime) -> Sequence[InForce]:
        return await self._store.in_force(host, now)

    @override
    async def select(self, selection: Selection, now: datetime) -> Sequence[InForce]:
        return await self._store.select(selection, now)

    @override
    async def to_check(self, issuer: str, now: datetime, limit: int) -> Sequence[InForce]:
        return await self._store.to_check(issuer, now, limit)

    @override
    async def replace_plan(
        self, before: RenewalPlan | None, after: RenewalPlan, events: Sequence[AuditEvent] = ()
    ) -> bool:
        replaced = await self._store.replace_plan(before, after, events)
        if replaced and (before is None or before.told != after.told):
            self._learn([after])
        return replaced

    @override
    async def standing(self, now: datetime) -> Sequence[RenewalPlan]:
        return await self._store.standing(now)

    def _learn(self, plans: Sequence[RenewalPlan]) -> None:
        times = {plan.certificate_id: plan.renew_time for plan in plans}
        self._times |= times
        self._learnt |= times
        for on_change in self._on_change:
            on_change(plans)
