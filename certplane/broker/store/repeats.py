"""The counts of repeated audit events while they grow: one row for each, rewritten in place.

Rows as events are: when counting ends, a row moves to `audit_events` as it stands.
"""

import functools
import itertools
import logging
from collections.abc import Sequence
from typing import Final

from sqlalchemy import BindParameter, bindparam, delete, func, select
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.ports import AuditFallback, RepeatCounts
from certplane.broker.store.audit_log import SqlAuditLog
from certplane.broker.store.batch import Done, audit_unavailable
from certplane.broker.store.rows import EventRow
from certplane.broker.store.schema import audit_events, audit_repeats
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import Statement
from certplane.broker.store.writer import Writer
from certplane.errors import RefusalError

_log = logging.getLogger("certplane.audit")

_COLUMNS: Final = ("event_id", "create_time", "record")
_CHUNKS: Final = (64, 8, 1)
"""Rows of one statement: few sizes, since each is compiled once."""


class SqlRepeatCounts(RepeatCounts):
    """`RepeatCounts` over the database; with auditing switched off nothing is kept."""

    def __init__(self, database: Database, writer: Writer, audit: SqlAuditLog, fallback: AuditFallback) -> None:
        self._writer = writer
        self._audit = audit
        self._fallback = fallback
        self._keeping = True
        """Whether what was last counted is in the database."""
        self._compiler = compiler = database.compiler
        self._upsert = functools.cache(self._compile_upsert)
        self._delete = compiler(delete(audit_repeats).where(audit_repeats.c.event_id == bindparam("event_id")))
        rows = select(*(audit_repeats.c[name] for name in _COLUMNS)).order_by(audit_repeats.c.event_id)
        # SQLite reads an ON CONFLICT after a SELECT without WHERE as a join's condition.
        move = compiler.insert(audit_events).from_select(list(_COLUMNS), rows.where(audit_repeats.c.event_id != ""))
        self._count = compiler(select(func.count()).select_from(audit_repeats))
        self._move = compiler(move.on_conflict_do_nothing())
        self._clear = compiler(delete(audit_repeats))

    @override
    async def keep(self, summaries: Sequence[AuditEvent]) -> None:
        rows = self._audit.encode(summaries)
        if not rows:
            return

        chunks = _chunks(rows)

        def change(session: Session) -> Done[None]:
            for chunk in chunks:
                session.execute(self._upsert(len(chunk)), tuple(itertools.chain.from_iterable(chunk)))
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
            return Done(None)

        await self._writer.write(change, rows)

    @override
    async def recover(self) -> int:

        def change(session: Session) -> Done[int]:
            row = session.one(self._count, {})
            session.execute(self._move, self._move.arguments({}))
            session.execute(self._clear, ())
            return Done(int(row[0]) if row is not None else 0)

        return await self._writer.write(change, ())

    def _compile_upsert(self, count: int) -> Statement:
        rows: list[dict[str, BindParameter[object]]] = [
            {name: bindparam(f"{name}_{n}") for name in _COLUMNS} for n in range(count)
        ]
        insert = self._compiler.insert(audit_repeats).values(rows)
        values = {name: insert.excluded[name] for name in _COLUMNS[1:]}
        statement = self._compiler(insert.on_conflict_do_update(index_elements=["event_id"], set_=values))
        assert statement.names == tuple(f"{name}_{n}" for n in range(count) for name in _COLUMNS)
        return statement


def _chunks(rows: Sequence[EventRow]) -> list[Sequence[EventRow]]:
    chunks, start = [], 0
    for size in _CHUNKS:
        while len(rows) - start >= size:
            chunks.append(rows[start : start + size])
            start += size
    return chunks
