"""Incidents in the database: a row each, and the moved windows that belong to it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, delete, select, text, tuple_, update
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.incidents.model import Incident, Member
from certplane.broker.incidents.ports import IncidentReader, IncidentStore, Place, RolloutMembers, WindowQuestions
from certplane.broker.model import ChangeKind
from certplane.broker.renewal.model import WindowMove
from certplane.broker.store.audit_log import SqlAuditLog, reading
from certplane.broker.store.batch import Done
from certplane.broker.store.campaign_schema import incidents, moved_windows
from certplane.broker.store.cells import Columns, decode_names
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.moved_windows import MOVE
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import certificates, renewal_plans
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import HOSTS, Compiler, Row, Statement, hosts_parameters, limited_to
from certplane.broker.store.successors import newest_successor
from certplane.broker.store.writer import Writer

_INCIDENT: Final = Columns(Incident)
_PAGE: Final = 512
"""Rows of one read: one or two milliseconds of the loop."""
_AT_ONCE: Final = 512
"""Rows of one transaction of a chore."""
_NEVER: Final = 2**62
"""Later than every time."""


class SqlIncidents(IncidentStore, IncidentReader, WindowQuestions, RolloutMembers):
    """`IncidentStore`, `IncidentReader`, `WindowQuestions` and `RolloutMembers` over the database."""

    def __init__(self, database: Database, writer: Writer, audit: SqlAuditLog, changes: ChangeLog) -> None:
        self._database = database
        self._writer = writer
        self._audit = audit
        self._changes = changes
        compiler = database.compiler
        moves, rows = moved_windows.c, incidents.c
        every = select(*(rows[name] for name in _INCIDENT.names))
        standing, ended = text("close_time IS NULL"), text("close_time IS NOT NULL")
        self._open = compiler(every.where(standing).order_by(rows.issuer))
        self._one = compiler(every.where(rows.incident_id == bindparam("which")))
        behind = tuple_(rows.open_time, rows.incident_id) < tuple_(bindparam("open_time"), bindparam("which"))
        by_age = (rows.open_time.desc(), rows.incident_id.desc())
        self._ended = compiler(
            every.where(ended, rows.open_time <= bindparam("open_time"), behind)
            .order_by(*by_age)
            .suffix_with(limited_to())
        )
        insert = compiler.insert(incidents).values({name: bindparam(name) for name in _INCIDENT.names})
        self._begin = compiler(insert.on_conflict_do_nothing())
        self._change = compiler(
            update(incidents)
            .where(rows.incident_id == bindparam("which"), rows.version == bindparam("before"))
            .values({name: bindparam(name) for name in _INCIDENT.names if name != "incident_id"})
        )
        free = moves.incident_id == bindparam("none")
        self._unassigned = compiler(
            select(*(moves[name] for name in MOVE.names))
            .where(free, moves.certificate_id > bindparam("after"), moves.forward == 1)
            .order_by(moves.certificate_id)
            .suffix_with(limited_to())
        )
        these = moves.certificate_id.in_(HOSTS)
        self._join = compiler(update(moved_windows).where(these, free).values(incident_id=bindparam("to")))
        self._give = compiler(
            update(moved_windows).where(these, moves.incident_id == bindparam("of")).values(rollout_id=bindparam("to"))
        )
        self._leave = compiler(delete(moved_windows).where(moves.incident_id == bindparam("which"), moves.forward == 0))
        self._members = _members(compiler)
        plans = renewal_plans.c
        later = select(plans.certificate_id).where(
            plans.issuer == bindparam("of"), plans.next_check_time > bindparam("now")
        )
        self._ask = compiler(
            update(renewal_plans)
            .where(plans.certificate_id.in_(later.suffix_with(limited_to(_AT_ONCE))))
            .values(next_check_time=bindparam("now"))
        )
        old = select(moves.certificate_id).where(free, moves.move_time < bindparam("time"))
        self._forget_moves = compiler(
            delete(moved_windows).where(moves.certificate_id.in_(old.suffix_with(limited_to(_AT_ONCE))))
        )
        self._forgotten = compiler(
            select(rows.incident_id)
            .where(ended, rows.open_time < bindparam("time"), rows.close_time < bindparam("time"))
            .suffix_with(limited_to())
        )
        of_it = select(moves.certificate_id).where(moves.incident_id == bindparam("which"))
        self._forget_members = compiler(
            delete(moved_windows).where(moves.certificate_id.in_(of_it.suffix_with(limited_to(_AT_ONCE))))
        )
        self._forget = compiler(delete(incidents).where(rows.incident_id == bindparam("which")))

    @override
    async def unassigned(self) -> Sequence[WindowMove]:
        found: list[WindowMove] = []
        after = ""
        with reading():
            while True:
                place = {"none": "", "after": after}
                rows = await self._database.all(self._unassigned.at_most(_PAGE), place)
                found += map(MOVE.value, rows)
                if len(rows) < _PAGE:
                    return found
                after = found[-1].certificate_id

    @override
    async def open_incidents(self) -> Sequence[Incident]:
        with reading():
            return [_INCIDENT.value(row) for row in await self._database.all(self._open, {})]

    @override
    async def record(
        self,
        before: Incident | None,
        after: Incident,
        *,
        members: Collection[str] = (),
        events: Sequence[AuditEvent] = (),
    ) -> bool:
        def change(session: Session) -> Done[bool]:
            if not self._write(session, before, after):
                return Done(False, audited=False)
            for some in hosts_parameters([*members]):
                session.execute(self._join, self._join.arguments({**some, "none": "", "to": after.incident_id}))
            if after.close_time is not None:
                session.execute(self._leave, self._leave.arguments({"which": after.incident_id}))
            return Done(True)

        return await self._writer.write(change, self._audit.encode(events))

    def _write(self, session: Session, before: Incident | None, after: Incident) -> bool:
        values = _INCIDENT.values(after)
        if before is None:
            written = session.execute(self._begin, self._begin.arguments(values))
        else:
            values = {**values, "which": before.incident_id, "before": before.version}
            written = session.execute(self._change, self._change.arguments(values))
        if written:
            self._changes.add_shared(session, ChangeKind.INCIDENT, after.incident_id)
        return written == 1

    @override
    async def members(self, incident_id: str, after: str, limit: int) -> Sequence[Member]:
        most = max(0, limit)
        with reading():
            rows = await self._database.all(self._members.at_most(most), {"which": incident_id, "after": after})
        return [_member_of(row) for row in rows[:most]]

    @override
    async def ask_now(self, issuer: str, now: datetime) -> None:
        await self._repeat(self._ask, {"of": issuer, "now": to_micros(now)})

    @override
    async def give(self, before: Incident, after: Incident, certificate_ids: Collection[str]) -> bool:
        def change(session: Session) -> Done[bool]:
            if not self._write(session, before, after):
                return Done(False)
            for some in hosts_parameters([*certificate_ids]):
                values = {**some, "of": after.incident_id, "to": after.rollout_id}
                session.execute(self._give, self._give.arguments(values))
            return Done(True)

        return await self._writer.write(change, ())

    @override
    async def forget(self, *, moved_before: datetime, closed_before: datetime) -> None:
        await self._repeat(self._forget_moves, {"none": "", "time": to_micros(moved_before)})
        with reading():
            rows = await self._database.all(self._forgotten.at_most(_PAGE), {"time": to_micros(closed_before)})
        for (incident_id,) in rows:
            await self._repeat(self._forget_members, {"which": incident_id})
            await self._repeat(self._forget, {"which": incident_id})

    async def _repeat(self, statement: Statement, values: dict[str, object]) -> None:
        def change(session: Session) -> Done[int]:
            return Done(session.execute(statement, statement.arguments(values)))

        while await self._writer.write(change, ()) == _AT_ONCE:
            pass

    @override
    async def get_incident(self, incident_id: str) -> Incident | None:
        with reading():
            row = await self._database.one(self._one, {"which": incident_id})
        return None if row is None else _INCIDENT.value(row)

    @override
    async def list_incidents(self, after: Place | None, limit: int, *, open_only: bool = False) -> Sequence[Incident]:
        found: list[Incident] = []
        if after is None or not after.closed:
            found = sorted(await self.open_incidents(), key=_age, reverse=True)
        if after is not None and not after.closed:
            found = [each for each in found if _age(each) < (after.open_time, after.incident_id)]
            after = None
        left = max(0, limit) - len(found)
        if left > 0 and not open_only:
            values = {"open_time": _NEVER, "which": ""}
            if after is not None:
                values = {"open_time": to_micros(after.open_time), "which": after.incident_id}
            with reading():
                rows = await self._database.all(self._ended.at_most(left), values)
            found += map(_INCIDENT.value, rows)
        return found[: max(0, limit)]


def _age(incident: Incident) -> tuple[datetime, str]:
    return incident.open_time, incident.incident_id


def _members(compiler: Compiler) -> Statement:
    moves, plans, held = moved_windows.c, renewal_plans.c, certificates.c
    newer = newest_successor(moves.certificate_id, moved_windows)
    query = (
        select(
            moves.certificate_id,
            moves.host,
            moves.move_time,
            moves.window_end,
            moves.forward,
            moves.rollout_id,
            plans.certificate_id.label("in_force"),
            newer.label("new_certificate_id"),
            held.not_after,
            held.revoke_time,
            held.serial_number,
            held.profile,
            held.dns_names,
        )
        .outerjoin_from(moved_windows, renewal_plans, plans.certificate_id == moves.certificate_id)
        .outerjoin(certificates, held.certificate_id == moves.certificate_id)
        .where(moves.incident_id == bindparam("which"), moves.certificate_id > bindparam("after"))
        .order_by(moves.certificate_id)
    )
    return compiler(query.suffix_with(limited_to()))


def _member_of(row: Row) -> Member:
    which, host, moved, window_end, forward, rollout_id, in_force, new_id, ends, revoked, serial, profile, names = row
    return Member(
        which,
        host,
        from_micros(moved),
        from_micros(window_end),
        bool(forward),
        rollout_id,
        in_force=in_force is not None,
        new_certificate_id=new_id or "",
        not_after=None if ends is None else from_micros(ends),
        revoke_time=None if revoked is None else from_micros(revoked),
        serial_number=serial or "",
        profile=profile or "",
        dns_names=() if names is None else decode_names(names),
    )
