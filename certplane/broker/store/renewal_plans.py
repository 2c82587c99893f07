"""Renewal plans in the database, and which certificates are in force.

*In force* is asked of the committed rows each time: a certificate that expired, was revoked, or was replaced by an
issued order leaves every answer by itself. Its plan stays until `standing` drops it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Select, and_, bindparam, case, delete, exists, select, text
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.renewal.model import InForce, RenewalPlan, Selection
from certplane.broker.renewal.ports import RenewalChecks, RenewalPlanStore
from certplane.broker.store.audit_log import SqlAuditLog, reading
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import PLAN, decode_names
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import certificates, orders, renewal_plans
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import HOSTS, Row, hosts_parameters, limited_to
from certplane.broker.store.writer import Writer

_CERTIFICATE_COLUMNS: Final = (
    "certificate_id",
    "identity",
    "profile",
    "issuer",
    "dns_names",
    "certificate_pem",
    "not_before",
    "not_after",
    "renew_time",
)
_OF_THE_CA: Final = ("window_start", "window_end", "next_check_time", "check_failures")
"""What a plan that isn't the CA's leaves as it was."""


class SqlRenewalPlanStore(RenewalPlanStore, RenewalChecks):
    """`RenewalPlanStore` and `RenewalChecks` over the database."""

    def __init__(self, database: Database, writer: Writer, audit: SqlAuditLog) -> None:
        self._database = database
        self._writer = writer
        self._audit = audit
        compiler = database.compiler
        planned = certificates.outerjoin(renewal_plans, renewal_plans.c.certificate_id == certificates.c.certificate_id)
        row = select(
            *(certificates.c[name] for name in _CERTIFICATE_COLUMNS), *(renewal_plans.c[name] for name in PLAN.names)
        )
        standing = row.select_from(planned).where(_in_force())
        by_host = (certificates.c.identity, certificates.c.certificate_id)
        of_issuer = certificates.c.issuer == bindparam("issuer")
        self._of_host = compiler(
            standing.where(certificates.c.identity == bindparam("host")).order_by(certificates.c.certificate_id)
        )
        self._of_hosts = compiler(standing.where(certificates.c.identity.in_(HOSTS)))
        self._of_certificate = compiler(standing.where(certificates.c.certificate_id == bindparam("certificate_id")))
        self._every = compiler(standing.order_by(*by_host))
        self._unplanned = compiler(
            standing.where(of_issuer, renewal_plans.c.next_check_time.is_(None))
            .order_by(certificates.c.create_time)
            .suffix_with(limited_to())
        )
        self._due = compiler(
            _due(row).where(of_issuer).order_by(renewal_plans.c.next_check_time).suffix_with(limited_to())
        )
        plan = select(*(renewal_plans.c[name] for name in PLAN.names))
        self._plan = compiler(plan.where(renewal_plans.c.certificate_id == bindparam("certificate_id")))
        self._all = compiler(plan)
        insert = compiler.insert(renewal_plans)
        theirs = {name: insert.excluded[name] for name in PLAN.names if name != "certificate_id"}
        unsaid = insert.excluded.next_check_time.is_(None)
        kept = {name: case((unsaid, renewal_plans.c[name]), else_=theirs[name]) for name in _OF_THE_CA}
        which = ["certificate_id"]
        self._set = compiler(insert.on_conflict_do_update(index_elements=which, set_=theirs | kept), PLAN.names)
        self._replace = compiler(insert.on_conflict_do_update(index_elements=which, set_=theirs), PLAN.names)
        self._forget = compiler(
            delete(renewal_plans).where(
                ~exists().where(certificates.c.certificate_id == renewal_plans.c.certificate_id, _in_force())
            )
        )

    @override
    async def set_plans(self, plans: Sequence[RenewalPlan], events: Sequence[AuditEvent] = ()) -> None:
        rows = [self._set.arguments(PLAN.values(plan)) for plan in plans]

        def change(session: Session) -> Done[None]:
            for arguments in rows:
                session.execute(self._set, arguments)
            return Done(None)

        await self._writer.write(change, self._audit.encode(events))

    @override
    async def in_force(self, host: str, now: datetime) -> Sequence[InForce]:
        with reading():
            rows = await self._database.all(self._of_host, {"host": host, "now": to_micros(now)})
        return [_in_force_from_row(row) for row in rows]

    @override
    async def select(self, selection: Selection, now: datetime) -> Sequence[InForce]:
        """The narrowest index is used: certificates, then hosts, then all."""
        micros = to_micros(now)
        rows: list[Row] = []
        with reading():
            if selection.certificate_ids:
                for certificate_id in sorted(set(selection.certificate_ids)):
                    values = {"certificate_id": certificate_id, "now": micros}
                    rows += await self._database.all(self._of_certificate, values)
            elif selection.hosts:
                for hosts in hosts_parameters(sorted(set(selection.hosts))):
                    rows += await self._database.all(self._of_hosts, {**hosts, "now": micros})
            elif selection != Selection():
                rows = await self._database.all(self._every, {"now": micros})
        return sorted((one for one in map(_in_force_from_row, rows) if selection.matches(one)), key=_place)

    @override
    async def to_check(self, issuer: str, now: datetime, limit: int) -> Sequence[InForce]:
        most = max(0, limit)
        values: dict[str, object] = {"issuer": issuer, "now": to_micros(now)}
        with reading():
            rows = await self._database.all(self._unplanned.at_most(most), values)
            rows += await self._database.all(self._due.at_most(most - len(rows)), values)
        return [_in_force_from_row(row) for row in rows[:most]]

    @override
    async def replace_plan(
        self, before: RenewalPlan | None, after: RenewalPlan, events: Sequence[AuditEvent] = ()
    ) -> bool:
        arguments = self._replace.arguments(PLAN.values(after))

        def change(session: Session) -> Done[bool]:
            row = session.one(self._plan, {"certificate_id": after.certificate_id})
            stored = None if row is None else PLAN.value(row)
            if stored not in (before, after):  # `after`: an earlier try was committed, and the answer was lost
                return Done(False, audited=False)
            session.execute(self._replace, arguments)
            return Done(True)

        return await self._writer.write(change, self._audit.encode(events))

    @override
    async def standing(self, now: datetime) -> Sequence[RenewalPlan]:
        arguments = self._forget.arguments({"now": to_micros(now)})

        def change(session: Session) -> Done[None]:
            session.execute(self._forget, arguments)
            return Done(None)

        await self._writer.write(change, ())
        with reading():
            rows = await self._database.all(self._all, {})
        return [PLAN.value(row) for row in rows]


def _in_force() -> ColumnElement[bool]:
    """Of a row of `certificates`; conditions of partial indexes stand word for word."""
    replacement = exists().where(
        orders.c.replaces_certificate_id == certificates.c.certificate_id, text("state = 'ISSUED'")
    )
    return and_(text("revoke_time IS NULL"), certificates.c.not_after > bindparam("now"), ~replacement)


def _due(row: Select[*tuple[object, ...]]) -> Select[*tuple[object, ...]]:
    joined = renewal_plans.join(certificates, certificates.c.certificate_id == renewal_plans.c.certificate_id)
    return row.select_from(joined).where(renewal_plans.c.next_check_time <= bindparam("now"), _in_force())


def _in_force_from_row(row: Row) -> InForce:
    certificate_id, host, profile, issuer, dns_names, pem, not_before, not_after, renew_time = row[:9]
    plan = None if row[9] is None else PLAN.value(row[9:])
    return InForce(
        certificate_id,
        host,
        profile,
        issuer,
        decode_names(dns_names),
        pem,
        from_micros(not_before),
        from_micros(not_after),
        from_micros(renew_time),
        plan,
    )


def _place(one: InForce) -> tuple[str, str]:
    return (one.host, one.certificate_id)
