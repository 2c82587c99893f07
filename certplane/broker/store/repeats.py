"""The counts of repeated audit events while they grow: one row for each, rewritten in place.

Rows as events are: when counting ends, a row moves to `audit_events` as it stands. Of a broker that was killed, another
start moves them, or another broker of the database. Should that one only have stood still, it goes on counting where
it was, and its later event, which says all that the moved one says and more, takes that one's place.
"""

import functools
import itertools
import logging
from collections.abc import Sequence
from typing import Final

import msgspec
from sqlalchemy import BindParameter, bindparam, delete, select, update
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.ports import AuditFallback, RepeatCounts
from certplane.broker.store.audit_log import AuditRows, SqlAuditLog, reading
from certplane.broker.store.batch import Done, audit_unavailable
from certplane.broker.store.members import is_alive
from certplane.broker.store.rows import EventRow, to_micros
from certplane.broker.store.schema import audit_events, audit_repeats
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import Statement, limited_to
from certplane.broker.store.writer import Writer
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_log = logging.getLogger("certplane.audit")

_COLUMNS: Final = ("event_id", "create_time", "record")
_KEPT: Final = (*_COLUMNS, "broker_id")
_CHUNKS: Final = (64, 8, 1)
"""Rows of one statement: few sizes, since each is compiled once."""


class SqlRepeatCounts(RepeatCounts):
    """`RepeatCounts` over the database; with auditing switched off nothing is kept."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        audit: SqlAuditLog,
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
        self._rows = AuditRows(compiler)
        self._upsert = functools.cache(self._compile_upsert)
        self._delete = compiler(delete(audit_repeats).where(audit_repeats.c.event_id == bindparam("event_id")))
        left = (audit_repeats.c.broker_id != bindparam("me"), ~is_alive(compiler, audit_repeats.c.broker_id))
        self._any_left = compiler(select(audit_repeats.c.event_id).where(*left).suffix_with(limited_to(1)))
        # Taken out and looked at in one step: a lease that ends between two would lose what it held.
        self._take_left = compiler(
            delete(audit_repeats).where(*left).returning(*(audit_repeats.c[n] for n in _COLUMNS))
        )
        self._known = functools.cache(self._compile_known)
        self._replace = compiler(
            update(audit_events)
            .where(audit_events.c.event_id == bindparam("which"))
            .values(create_time=bindparam("new_time"), record=bindparam("new_record"))
        )

    @override
    async def keep(self, summaries: Sequence[AuditEvent]) -> None:
        rows = self._audit.encode(summaries)
        if not rows:
            return

        chunks = _chunks(rows)

        def change(session: Session) -> Done[None]:
            for chunk in chunks:
                values = [(*row, self._broker_id) for row in chunk]
                session.execute(self._upsert(len(chunk)), tuple(itertools.chain.from_iterable(values)))
            return Done(None)

        try:
            await self._writer.write(change, (), single=len(chunks) == 1)
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
            for event_id, _, _ in rows:
                session.execute(self._delete, (event_id,))
            return Done(None, events=self._not_known(session, rows))

        await self._writer.write(change, rows)

    @override
    async def recover(self) -> int:
        values = {"me": self._broker_id, "clock": to_micros(self._clock.now())}

        def change(session: Session) -> Done[int]:
            rows = sorted(session.all(self._take_left, values))
            new = self._not_known(session, rows)
            if new:
                self._rows.insert(session, new)
            return Done(len(rows))

        with reading():
            if await self._database.one(self._any_left, values) is None:
                return 0
        return await self._writer.write(change, ())

    def _not_known(self, session: Session, rows: Sequence[EventRow]) -> Sequence[EventRow]:
        """Those that aren't events yet; an event that is there says from now on what its row does, if that is more."""
        known: dict[str, str] = {}
        for chunk in _chunks(rows):
            statement = self._known(len(chunk))
            values = {f"event_id_{n}": row[0] for n, row in enumerate(chunk)}
            known.update(session.all(statement, values))
        for event_id, time, record in rows:
            if event_id in known and _count(record) > _count(known[event_id]):
                new = {"which": event_id, "new_time": time, "new_record": record}
                session.execute(self._replace, self._replace.arguments(new))
        return [row for row in rows if row[0] not in known] if known else rows

    def _compile_known(self, count: int) -> Statement:
        ids: list[BindParameter[str]] = [bindparam(f"event_id_{n}") for n in range(count)]
        row = select(audit_events.c.event_id, audit_events.c.record)
        return self._compiler(row.where(audit_events.c.event_id.in_(ids)))

    def _compile_upsert(self, count: int) -> Statement:
        rows: list[dict[str, BindParameter[object]]] = [
            {name: bindparam(f"{name}_{n}") for name in _KEPT} for n in range(count)
        ]
        insert = self._compiler.insert(audit_repeats).values(rows)
        values = {name: insert.excluded[name] for name in _COLUMNS[1:]}
        statement = self._compiler(insert.on_conflict_do_update(index_elements=["event_id"], set_=values))
        assert statement.names == tuple(f"{name}_{n}" for n in range(count) for name in _KEPT)
        return statement


def _count(record: str) -> int:
    return msgspec.json.decode(record, type=AuditEvent).count


def _chunks(rows: Sequence[EventRow]) -> list[Sequence[EventRow]]:
    chunks, start = [], 0
    for size in _CHUNKS:
        while len(rows) - start >= size:
            chunks.append(rows[start : start + size])
            start += size
    return chunks
