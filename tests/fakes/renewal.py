"""Fakes of the renewal planner's ports: the plans over a `FakeDatabase`, and a CA that is asked about renewals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from certplane.broker.events import AuditEvent
from certplane.broker.model import CertificateRecord, OrderState
from certplane.broker.renewal.model import InForce, RenewalInfo, RenewalInfoUnsupportedError, RenewalPlan, Selection
from certplane.errors import Reason, RefusalError
from tests.fakes.database import FakeDatabase
from tests.fakes.faults import FaultScript


class FakeRenewalPlanStore:
    """`RenewalPlanStore` and `RenewalChecks` in memory."""

    def __init__(self, database: FakeDatabase) -> None:
        self._db = database

    async def set_plans(self, plans: Sequence[RenewalPlan], events: Sequence[AuditEvent] = ()) -> None:
        def write() -> None:
            self._check_known(plans)
            for plan in plans:
                stored = self._db.plans.get(plan.certificate_id)
                if stored is not None and plan.next_check_time is None:
                    plan = replace(  # noqa: PLW2901 - the plan as it is stored
                        plan,
                        window_start=stored.window_start,
                        window_end=stored.window_end,
                        next_check_time=stored.next_check_time,
                        check_failures=stored.check_failures,
                    )
                self._db.plans[plan.certificate_id] = plan

        await self._db.write("set_plans", events, write)

    async def in_force(self, host: str, now: datetime) -> Sequence[InForce]:
        return await self._db.read("in_force", lambda: [one for one in self._all(now) if one.host == host])

    async def select(self, selection: Selection, now: datetime) -> Sequence[InForce]:
        return await self._db.read("select", lambda: [one for one in self._all(now) if selection.matches(one)])

    async def to_check(self, issuer: str, now: datetime, limit: int) -> Sequence[InForce]:
        def query() -> list[InForce]:
            certificates = self._db.certificates
            new, due = [], []
            for one in self._all(now):
                if one.issuer != issuer:
                    continue
                if one.plan is None or one.plan.next_check_time is None:
                    new.append((certificates[one.certificate_id].create_time, one))
                elif one.plan.next_check_time <= now:
                    due.append((one.plan.next_check_time, one))
            return [one for part in (new, due) for _, one in sorted(part, key=lambda pair: pair[0])][:limit]

        return await self._db.read("to_check", query)

    async def replace_plan(
        self, before: RenewalPlan | None, after: RenewalPlan, events: Sequence[AuditEvent] = ()
    ) -> bool:
        if self._db.plans.get(after.certificate_id) != before:
            return await self._db.read("replace_plan", lambda: False)

        def write() -> bool:
            self._check_known([after])
            self._db.plans[after.certificate_id] = after
            return True

        return await self._db.write("replace_plan", events, write)

    async def standing(self, now: datetime) -> Sequence[RenewalPlan]:
        def write() -> list[RenewalPlan]:
            kept = {one.certificate_id for one in self._all(now)}
            self._db.plans = {name: plan for name, plan in self._db.plans.items() if name in kept}
            return list(self._db.plans.values())

        return await self._db.write("standing", (), write)

    def _check_known(self, plans: Sequence[RenewalPlan]) -> None:
        if any(plan.certificate_id not in self._db.certificates for plan in plans):
            raise RefusalError(Reason.STORE_UNAVAILABLE, "a plan for no certificate")

    def _all(self, now: datetime) -> list[InForce]:
        replaced = {
            order.replaces_certificate_id for order in self._db.orders.values() if order.state is OrderState.ISSUED
        }
        found = [
            self._in_force(record)
            for record in self._db.certificates.values()
            if record.revoke_time is None and record.not_after > now and record.certificate_id not in replaced
        ]
        return sorted(found, key=lambda one: (one.host, one.certificate_id))

    def _in_force(self, record: CertificateRecord) -> InForce:
        plan = self._db.plans.get(record.certificate_id)
        return InForce(
            record.certificate_id,
            record.identity,
            record.profile,
            record.issuer,
            record.dns_names,
            record.certificate_pem,
            record.not_before,
            record.not_after,
            record.renew_time,
            plan,
        )


class FakeRenewalInfoSource:
    """`RenewalInfoSource`: says `answer` about every certificate, or what `answers` has for one (by its PEM).

    Attributes:
        asked: the certificates that it was asked about, in order.
        most_at_once: questions that were under way together.
        faults: errors and gates, by `renewal_info`.
    """

    def __init__(self, answer: RenewalInfo | None = None) -> None:
        self.answer = answer
        self.answers: dict[str, RenewalInfo] = {}
        self.asked: list[str] = []
        self.most_at_once = 0
        self.faults = FaultScript()
        self._under_way = 0

    async def renewal_info(self, certificate_pem: str, timeout: timedelta) -> RenewalInfo:
        self.asked.append(certificate_pem)
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            async with self.faults.around("renewal_info"):
                answer = self.answers.get(certificate_pem, self.answer)
                if answer is None:
                    raise RenewalInfoUnsupportedError("the CA offers no renewal information")
                return answer
        finally:
            self._under_way -= 1
