"""Renewal plans in the database, and which certificates are in force.

*In force* is asked of the committed rows each time: a certificate that expired, was revoked, or was replaced by an
issued order leaves every answer by itself. Each one that is in force has a row among the plans (`plan_rows`), by which
it is found.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    bindparam,
    delete,
    exists,
    literal_column,
    null,
    select,
    update,
)
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.model import ChangeKind
from certplane.broker.renewal.model import (
    DueCheck,
    FollowedItem,
    InForce,
    RecordedRequest,
    RenewalPlan,
    RequestedRenewal,
    RequestItem,
    Selected,
    Selection,
    WindowMove,
)
from certplane.broker.renewal.ports import RenewalChecks, RenewalPlanStore, RenewalRequestLog, RequestItems
from certplane.broker.store.audit_log import SqlAuditLog, reading
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import PLAN, decode_names
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.moved_windows import MoveRows
from certplane.broker.store.plan_rows import BEGUN, PlanRows
from certplane.broker.store.request_rows import (
    RequestRows,
    followed_from_row,
    identity_plan,
    recorded_from_row,
    request_from_row,
)
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import certificates, renewal_plans
from certplane.broker.store.selected_rows import SelectedRows, in_force
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import HOSTS, Row, hosts_parameters, limited_to
from certplane.broker.store.writer import Writer
from certplane.fleet_report.model import RenewalCause

_CERTIFICATE_COLUMNS: Final = (
    "certificate_id",
    "identity",
    "profile",
    "issuer",
    "dns_names",
    "not_before",
    "not_after",
    "renew_time",
)
_AT_ONCE: Final = 512
"""Rows of one transaction of a chore."""


class SqlRenewalPlanStore(RenewalPlanStore, RenewalRequestLog, RequestItems, RenewalChecks):
    """`RenewalPlanStore`, `RenewalRequestLog`, `RequestItems` and `RenewalChecks` over the database."""

    def __init__(self, database: Database, writer: Writer, audit: SqlAuditLog, changes: ChangeLog) -> None:
        self._database = database
        self._writer = writer
        self._audit = audit
        self._changes = changes
        compiler = database.compiler
        self._rows = PlanRows(compiler)
        self._moves = MoveRows(compiler)
        self._requests = RequestRows(compiler)
        plans = renewal_plans.c
        planned = renewal_plans.join(certificates, certificates.c.certificate_id == plans.certificate_id)
        plan = tuple(plans[name] for name in PLAN.names)
        row = (*(certificates.c[name] for name in _CERTIFICATE_COLUMNS), *plan)
        standing = select(*row).select_from(planned).where(in_force(renewal_plans))
        self._of_host = compiler(standing.where(plans.host == bindparam("host")).order_by(plans.certificate_id))
        self._of_hosts = compiler(standing.where(plans.host.in_(HOSTS)))
        self._of_certificate = compiler(standing.where(plans.certificate_id == bindparam("certificate_id")))
        self._selected = SelectedRows(compiler)
        to_check = select(certificates.c.certificate_pem, *row).select_from(planned).where(in_force(renewal_plans))
        of_issuer = to_check.where(plans.issuer == bindparam("issuer"))
        self._unchecked = compiler(
            of_issuer.where(plans.next_check_time.is_(null()))
            .order_by(plans.certificate_id)  # which sort by age
            .suffix_with(limited_to())
        )
        self._due = compiler(
            of_issuer.where(plans.next_check_time <= bindparam("now"))
            .order_by(plans.next_check_time, plans.certificate_id)
            .suffix_with(limited_to())
        )
        self._plan = compiler(select(*plan).where(plans.certificate_id == bindparam("certificate_id")))
        self._planned = compiler(
            select(*plan).where(plans.certificate_id.in_(HOSTS), plans.cause != literal_column("''"))
        )
        self._replace = compiler(
            update(renewal_plans).where(plans.certificate_id == bindparam("which")),
            [name for name in PLAN.names if name != "certificate_id"],
        )
        self._times = compiler(
            select(plans.certificate_id, plans.renew_time, plans.cause)
            .where(plans.certificate_id > bindparam("after"))
            .order_by(plans.certificate_id)
            .suffix_with(limited_to())
        )
        expired = (
            select(plans.certificate_id)
            .where(plans.not_after <= bindparam("now"))
            .order_by(plans.not_after)
            .suffix_with(limited_to(_AT_ONCE))
        )
        self._forget = compiler(delete(renewal_plans).where(plans.certificate_id.in_(expired)))
        own = exists().where(plans.certificate_id == certificates.c.certificate_id)
        self._lost = compiler(
            select(*(certificates.c[name] for name in BEGUN))
            .where(in_force(certificates), ~own)
            .suffix_with(limited_to(_AT_ONCE))
        )

    @override
    async def set_plans(self, plans: Sequence[RenewalPlan], events: Sequence[AuditEvent] = ()) -> None:

        def change(session: Session) -> Done[None]:
            self._set(session, plans)
            return Done(None)

        await self._writer.write(change, self._audit.encode(events))

    @override
    async def find_request(self, requester: str, request_id: str) -> RequestedRenewal | None:
        with reading():
            values = {"requester": requester, "request_id": request_id}
            row = await self._database.one(self._requests.find, values)
        return None if row is None else request_from_row(row)

    @override
    async def set_requested(
        self,
        plans: Sequence[RenewalPlan],
        requester: str,
        requested: RequestedRenewal,
        time: datetime,
        events: Sequence[AuditEvent] = (),
        *,
        reason: str = "",
        items: Sequence[RequestItem] = (),
    ) -> RequestedRenewal:
        values = {"requester": requester, "request_id": requested.request_id}

        def change(session: Session) -> Done[RequestedRenewal]:
            if not self._requests.add(session, requester, requested, time, reason=reason, items=items):
                first = session.one(self._requests.find, values)
                assert first is not None
                return Done(request_from_row(first), audited=False)
            self._set(session, plans)
            for item in items:
                if not item.certificate_id:
                    self._changes.add_shared(session, ChangeKind.IDENTITY_RENEWAL, item.host)
            return Done(requested)

        return await self._writer.write(change, self._audit.encode(events))

    @override
    async def get_request(self, request_id: str, requester: str) -> RecordedRequest | None:
        with reading():
            rows = await self._database.all(self._requests.recorded, {"request_id": request_id})
        found = [recorded_from_row(row) for row in rows]
        own = [each for each in found if each.requester == requester]
        return next(reversed(own or found), None)

    @override
    async def follow_items(self, request: RecordedRequest, after: int, limit: int) -> Sequence[FollowedItem]:
        most = max(0, limit)
        values = {"requester": request.requester, "request_id": request.request_id, "after": after}
        with reading():
            rows = await self._database.all(self._requests.follow.at_most(most), values)
        return [followed_from_row(row) for row in rows[:most]]

    @override
    async def identity_renewals(self, hosts: Sequence[str]) -> Sequence[tuple[str, RenewalPlan]]:
        with reading():
            which = hosts_parameters(sorted(set(hosts)))
            rows = [row for some in which for row in await self._database.all(self._requests.identities, some)]
        newest = {plan.host: (serial_number, plan) for serial_number, plan in map(identity_plan, rows)}
        return [*newest.values()]

    def _set(self, session: Session, plans: Sequence[RenewalPlan]) -> None:
        self._rows.set(session, plans)
        for plan in plans:
            self._changes.add_shared(session, ChangeKind.PLAN, plan.certificate_id)

    @override
    async def in_force(self, host: str, now: datetime) -> Sequence[InForce]:
        with reading():
            rows = await self._database.all(self._of_host, {"host": host, "now": to_micros(now)})
        return [_in_force_from_row(row) for row in rows]

    @override
    async def in_force_of(self, hosts: Sequence[str], now: datetime) -> Sequence[InForce]:
        found: list[InForce] = []
        with reading():
            for some in hosts_parameters(sorted(set(hosts))):
                rows = await self._database.all(self._of_hosts, {**some, "now": to_micros(now)})
                found += map(_in_force_from_row, rows)
        return sorted(found, key=_place)

    @override
    async def find(self, certificate_id: str, now: datetime) -> InForce | None:
        values = {"certificate_id": certificate_id, "now": to_micros(now)}
        with reading():
            rows = await self._database.all(self._of_certificate, values)
        return _in_force_from_row(rows[0]) if rows else None

    @override
    async def select(self, selection: Selection, now: datetime) -> Sequence[Selected]:
        with reading():
            return await self._selected.read(self._database, selection, now)

    @override
    async def to_check(self, issuer: str, now: datetime, limit: int) -> Sequence[DueCheck]:
        most = max(0, limit)
        values: dict[str, object] = {"issuer": issuer, "now": to_micros(now)}
        with reading():
            rows = await self._database.all(self._unchecked.at_most(most), values)
            rows += await self._database.all(self._due.at_most(most - len(rows)), values)
        return [DueCheck(_in_force_from_row(row), pem) for pem, *row in rows[:most]]

    @override
    async def replace_plan(
        self,
        before: RenewalPlan | None,
        after: RenewalPlan,
        events: Sequence[AuditEvent] = (),
        *,
        move: WindowMove | None = None,
    ) -> bool:
        values = PLAN.values(after)
        arguments = self._replace.arguments({**values, "which": values["certificate_id"]})

        def change(session: Session) -> Done[bool]:
            row = session.one(self._plan, {"certificate_id": after.certificate_id})
            # `after`: an earlier try was committed, and the answer was lost.
            if row is None or plan_from_row(row) not in (before, after):
                return Done(False, audited=False)
            session.execute(self._replace, arguments)
            if move is not None:
                self._moves.note(session, move)
            if before is None or before.told != after.told:
                self._changes.add_shared(session, ChangeKind.PLAN, after.certificate_id)
            return Done(True)

        return await self._writer.write(change, self._audit.encode(events))

    @override
    async def planned(self, certificate_ids: Collection[str]) -> Sequence[RenewalPlan]:
        with reading():
            which = hosts_parameters([*certificate_ids])
            rows = [row for some in which for row in await self._database.all(self._planned, some)]
        return [plan for row in rows if (plan := plan_from_row(row)) is not None]

    @override
    async def renew_times(self, after: str, limit: int) -> Sequence[tuple[str, datetime | None]]:
        most = max(0, limit)
        with reading():
            rows = await self._database.all(self._times.at_most(most), {"after": after})
        return [(certificate_id, from_micros(time) if cause else None) for certificate_id, time, cause in rows[:most]]

    @override
    async def forget_expired(self, now: datetime) -> None:
        arguments = self._forget.arguments({"now": to_micros(now)})

        def change(session: Session) -> Done[int]:
            return Done(session.execute(self._forget, arguments))

        while await self._writer.write(change, ()) == _AT_ONCE:
            pass

    @override
    async def adopt(self, now: datetime) -> int:
        adopted = 0
        while True:
            with reading():
                lost = await self._database.all(self._lost, {"now": to_micros(now)})
            if not lost:
                return adopted
            await self._writer.write(functools.partial(self._adopt, lost), ())
            adopted += len(lost)

    def _adopt(self, lost: Sequence[Row], session: Session) -> Done[None]:
        for row in lost:
            self._rows.adopt(session, row)
        return Done(None)


def _place(one: InForce) -> tuple[str, str]:
    return (one.host, one.certificate_id)


def _in_force_from_row(row: Sequence[Any]) -> InForce:
    certificate_id, host, profile, issuer, dns_names, not_before, not_after, renew_time = row[:8]
    return InForce(
        certificate_id,
        host,
        profile,
        issuer,
        decode_names(dns_names),
        from_micros(not_before),
        from_micros(not_after),
        from_micros(renew_time),
        plan_from_row(row[8:]),
    )


def plan_from_row(row: Sequence[Any]) -> RenewalPlan | None:
    """The plan of a row; None if it has none.

    A broker of a release without rollouts that plans anew leaves what a rollout asked for as it was: it counts for
    nothing then.
    """
    plan = PLAN.value(row)
    if plan.rollout_id and (plan.cause is not RenewalCause.OPERATOR or plan.renewal_request_id):
        return replace(plan, rollout_id="", hold_activation=False, activate_by_time=None, new_key=False, to_issuer="")
    return plan if plan.cause else None
