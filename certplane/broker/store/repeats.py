"""The counts of repeated audit events while they grow: one row for each, rewritten in place.

Rows as events are: when counting ends, a row moves to `audit_events` as it stands. Of a broker that was killed, another
start moves them, or another broker of the database. Should that one only have stood still, it goes on counting where
it was. Events never change, so what it has counted since is an event of its own beside the one that was moved.
"""

import functools
import itertools
import logging
import uuid
from collections.abc import Sequence
from typing import Final

import msgspec
from sqlalchemy import BindParameter, bindparam, delete, select
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.ports import AuditFallback, RepeatCounts
from certplane.broker.store.audit_log import AuditRows, SqlAuditLog, reading
from certplane.broker.store.audit_records import EventRow, event_row, record_row
from certplane.broker.store.batch import Done, audit_unavailable
from certplane.broker.store.members import is_alive
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import audit_repeats
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import Statement, chunks, limited_to
from certplane.broker.store.writer import Writer
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_log = logging.getLogger("certplane.audit")

_COLUMNS: Final = ("event_id", "create_time", "record")
_KEPT: Final = (*_COLUMNS, "broker_id")
_LATER: Final = uuid.UUID("0c8f6b0e-6a51-4b0e-9d0c-5a7c6f2f8f14")


class SqlRepeatCounts(RepeatCounts):
    """`RepeatCounts` over the database; with auditing switched off nothing is kept."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        audit: SqlAuditLog,
        rows: AuditRows,
        fallback: AuditFallback,
        *,
        clock: Clock,
        broker_id: str,
    ) -> None:
        self._database = database
        self._writer = writer
        self._clock = clock
        self._broker_id = broker_id
        self._audit = audit
        self._fallback = fallback
        self._keeping = True
        """Whether what was last counted is in the database."""
        self._compiler = compiler = database.compiler
        self._rows = rows
        self._upsert = functools.cache(self._compile_upsert)
        self._delete = compiler(delete(audit_repeats).where(audit_repeats.c.event_id == bindparam("event_id")))
        left = (audit_repeats.c.broker_id != bindparam("me"), ~is_alive(compiler, audit_repeats.c.broker_id))
        self._any_left = compiler(select(audit_repeats.c.event_id).where(*left).suffix_with(limited_to(1)))
        # Taken out and looked at in one step: a lease that ends between two would lose what it held.
        self._take_left = compiler(
            delete(audit_repeats).where(*left).returning(*(audit_repeats.c[n] for n in _COLUMNS))
        )

    @override
    async def keep(self, summaries: Sequence[AuditEvent]) -> None:
        rows = self._audit.encode(summaries)
        if not rows:
            return

        counted = [*chunks([(row.event_id, row.create_time, row.text, self._broker_id) for row in rows])]

        def change(session: Session) -> Done[None]:
            for chunk in counted:
                session.execute(self._upsert(len(chunk)), tuple(itertools.chain.from_iterable(chunk)))
            return Done(None)

        try:
            await self._writer.write(change, (), single=len(counted) == 1)
        except RefusalError as error:
            if not self._fallback.fail_open:
                raise audit_unavailable() from error
            # They are counted in memory all the same, and their summary is written or spilled when it is due.
            if self._keeping:  # not once for each call while the database is down
                _log.error("could not store counts of repeated events; keeping them in memory: %s", error)
            self._keeping = False
        else:
            self._keeping = True

    @override
    async def close(self, summaries: Sequence[AuditEvent]) -> None:
        rows = self._audit.encode(summaries)
        if not rows:
            return

        def change(session: Session) -> Done[None]:
            for row in rows:
                session.execute(self._delete, (row.event_id,))
            return Done(None, events=self._not_known(session, rows))

        await self._writer.write(change, rows)

    @override
    async def recover(self) -> int:
        values = {"me": self._broker_id, "clock": to_micros(self._clock.now())}

        def change(session: Session) -> Done[int]:
            rows = [record_row(record) for _, _, record in sorted(session.all(self._take_left, values))]
            new = self._not_known(session, rows)
            if new:
                self._rows.insert(session, new)
            return Done(len(rows))

        with reading():
            if await self._database.one(self._any_left, values) is None:
                return 0
        return await self._writer.write(change, ())

    def _not_known(self, session: Session, rows: Sequence[EventRow]) -> Sequence[EventRow]:
        """What the rows say that no event says yet."""
        known = self._rows.known(session, rows)
        if not known:
            return rows
        more = [_since(row, known[row.event_id]) for row in rows if row.event_id in known]
        later = [row for row in more if row is not None]
        later_known = self._rows.known(session, later)
        new = [row for row in rows if row.event_id not in known]
        return new + [row for row in later if row.event_id not in later_known]

    def _compile_upsert(self, count: int) -> Statement:
        rows: list[dict[str, BindParameter[object]]] = [
            {name: bindparam(f"{name}_{n}") for name in _KEPT} for n in range(count)
        ]
        insert = self._compiler.insert(audit_repeats).values(rows)
        values = {name: insert.excluded[name] for name in _COLUMNS[1:]}
        statement = self._compiler(insert.on_conflict_do_update(index_elements=["event_id"], set_=values))
        assert statement.names == tuple(f"{name}_{n}" for n in range(count) for name in _KEPT)
        return statement


def _since(row: EventRow, written: str) -> EventRow | None:
    """What was counted since an event was written of the same count: None if nothing was."""
    event = msgspec.json.decode(row.text, type=AuditEvent)
    count = event.count - msgspec.json.decode(written, type=AuditEvent).count
    if count <= 0:
        return None
    reason = f"{event.reason}; counted since event_id {event.event_id} was written"
    # One id for one count, whoever writes it, and however often.
    event_id = str(uuid.uuid5(_LATER, f"{event.event_id} {event.count}"))
    return event_row(msgspec.structs.replace(event, event_id=event_id, reason=reason, count=count))
