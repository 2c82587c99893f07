"""The audit log's rows: written by every transaction that has events, read from the newest."""

from __future__ import annotations

import functools
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from sqlalchemy import BindParameter, bindparam, select
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.ports import AuditImport, AuditLog
from certplane.broker.store.batch import AuditTable, Done, store_unavailable
from certplane.broker.store.rows import EventRow, event_row, record_row
from certplane.broker.store.schema import audit_events
from certplane.broker.store.session import Database, Session, SqlError
from certplane.broker.store.statements import Compiler, Statement, limited_to
from certplane.broker.store.writer import Writer

_log = logging.getLogger("certplane.store")

_ROWS: Final = 256
"""Rows in one INSERT. Each number of rows is a statement of its own, made when it is first needed."""


class AuditRows(AuditTable):
    """`batch.AuditTable`: all rows of a group in one statement, which is one step of the database."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._statement = functools.cache(self._compile)

    @override
    def insert(self, session: Session, rows: Sequence[EventRow], *, again: bool = False) -> None:
        if len(rows) <= _ROWS:
            session.execute(self._statement(len(rows), again), tuple(itertools.chain.from_iterable(rows)))
            return
        alone = not session.in_transaction
        if alone:
            session.begin()
        for start in range(0, len(rows), _ROWS):
            self.insert(session, rows[start : start + _ROWS], again=again)
        if alone:
            session.commit()

    def add(self, session: Session, row: EventRow) -> bool:
        """Insert one row unless its event is there already; whether it was new."""
        return session.execute(self._statement(1, True), row) == 1

    def _compile(self, count: int, again: bool) -> Statement:
        columns = ("event_id", "create_time", "record")
        rows: list[dict[str, BindParameter[object]]] = [
            {name: bindparam(f"{name}_{n}") for name in columns} for n in range(count)
        ]
        insert = self._compiler.insert(audit_events).values(rows)
        statement = self._compiler(insert.on_conflict_do_nothing() if again else insert)
        assert statement.names == tuple(f"{name}_{n}" for n in range(count) for name in columns)
        return statement


@contextmanager
def reading() -> Iterator[None]:
    """A read that fails is STORE_UNAVAILABLE."""
    try:
        yield
    except SqlError as error:
        _log.warning("the database can't be read (%s): %s", error.fault.name.lower(), error)
        raise store_unavailable("the store can't be read now") from error


class SqlAuditLog(AuditLog, AuditImport):
    """`AuditLog` and `AuditImport` over the database; with auditing switched off, a log that stays as it is."""

    def __init__(self, database: Database, writer: Writer, rows: AuditRows, *, enabled: bool) -> None:
        self._database = database
        self._writer = writer
        self._rows = rows
        self._enabled = enabled
        newest = select(audit_events.c.record).order_by(audit_events.c.sequence.desc()).suffix_with(limited_to())
        self._tail = database.compiler(newest)

    def encode(self, events: Sequence[AuditEvent]) -> Sequence[EventRow]:
        """The rows of a change's events, none when auditing is switched off."""
        return [event_row(event) for event in events] if self._enabled else ()

    @override
    async def append(self, events: Sequence[AuditEvent]) -> None:
        await self._writer.append(self.encode(events))

    @override
    async def tail(self, limit: int) -> Sequence[dict[str, object]]:
        with reading():
            rows = await self._database.all(self._tail.at_most(limit), {})
        return [json.loads(record) for (record,) in reversed(rows[: max(0, limit)])]

    @override
    async def import_records(self, records: Sequence[str]) -> int:
        rows = [record_row(record) for record in records]

        def change(session: Session) -> Done[int]:
            return Done(sum(self._rows.add(session, row) for row in rows))

        return await self._writer.write(change, ())
