"""The audit log's rows: written by every transaction that has events, read from the newest."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from sqlalchemy import BindParameter, bindparam, select
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.ports import AuditGate, AuditImport, AuditLog
from certplane.broker.proof.chain import Head
from certplane.broker.store.audit_chain import COLUMNS, AuditChain
from certplane.broker.store.audit_records import EventRow, event_row, record_of, record_row
from certplane.broker.store.batch import AuditTable, Done, store_unavailable
from certplane.broker.store.schema import audit_events
from certplane.broker.store.session import Database, Session, SqlError
from certplane.broker.store.statements import Compiler, Statement, chunks, limited_to
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock

_log = logging.getLogger("certplane.store")

_ROWS: Final = 256
"""Rows in one INSERT. Each number of rows is a statement of its own, made when it is first needed."""


class AuditRows(AuditTable):
    """`batch.AuditTable`: all rows of a group in one statement, which is one step of the database."""

    def __init__(self, compiler: Compiler, writer_id: str, clock: Clock) -> None:
        self._compiler = compiler
        self._chain = AuditChain(compiler, writer_id, clock)
        self._statement = functools.cache(self._compile)
        self._known = functools.cache(self._compile_known)

    @property
    def writer_id(self) -> str:
        """Whose rows they are."""
        return self._chain.writer_id

    @property
    @override
    def head(self) -> Head | None:
        return self._chain.head

    @head.setter
    def head(self, head: Head | None) -> None:
        self._chain.head = head

    @override
    def insert(self, session: Session, rows: Sequence[EventRow], *, again: bool = False) -> None:
        if self._chain.head is not None and len(rows) <= _ROWS and not again:
            self._insert(session, rows)
            return
        alone = not session.in_transaction
        if alone:
            session.begin()
        if again:
            known = self.known(session, rows)
            rows = [row for row in rows if row.event_id not in known]
        if rows:
            self._chain.begin(session)  # else a chain could have no event
        for start in range(0, len(rows), _ROWS):
            self._insert(session, rows[start : start + _ROWS])
        if alone:
            session.commit()

    def known(self, session: Session, rows: Sequence[EventRow]) -> dict[str, str]:
        """Those of the rows' events that are there already, in the public format."""
        found: dict[str, str] = {}
        for chunk in chunks(rows):
            values = {f"event_id_{n}": row.event_id for n, row in enumerate(chunk)}
            for event_id, *stored in session.all(self._known(len(chunk)), values):
                found[event_id] = record_of(event_id, *stored)
        return found

    def _insert(self, session: Session, rows: Sequence[EventRow]) -> None:
        session.execute(self._statement(len(rows)), self._chain.link(rows))

    def _compile(self, count: int) -> Statement:
        # The text of many rows from that of one: SQLAlchemy takes tens of milliseconds for two thousand parameters.
        one = self._compiler(self._compiler.insert(audit_events).values({name: bindparam(name) for name in COLUMNS}))
        assert one.names == COLUMNS
        values = one.sql.rpartition(" VALUES ")[2]
        return replace(one, sql=one.sql + f", {values}" * (count - 1), names=COLUMNS * count)

    def _compile_known(self, count: int) -> Statement:
        ids: list[BindParameter[str]] = [bindparam(f"event_id_{n}") for n in range(count)]
        columns = (audit_events.c[name] for name in ("event_id", "create_time", "record", "body"))
        return self._compiler(select(*columns).where(audit_events.c.event_id.in_(ids)))


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
        self.gate: AuditGate | None = None
        """Asked before anything is recorded, if there is one."""
        columns = (audit_events.c[name] for name in ("event_id", "create_time", "record", "body"))
        newest = select(*columns).order_by(audit_events.c.sequence.desc()).suffix_with(limited_to())
        self._tail = database.compiler(newest)

    def encode(self, events: Sequence[AuditEvent]) -> Sequence[EventRow]:
        """The rows of a change's events, none when auditing is switched off.

        Raises:
            RefusalError: AUDIT_UNAVAILABLE: the gate holds the change up.
        """
        if self.gate is not None and self._enabled:
            self.gate.check(events)
        return [event_row(event) for event in events] if self._enabled else ()

    @override
    async def append(self, events: Sequence[AuditEvent]) -> None:
        await self._writer.append(self.encode(events))

    @override
    async def tail(self, limit: int) -> Sequence[dict[str, object]]:
        with reading():
            rows = await self._database.all(self._tail.at_most(limit), {})
        return [json.loads(record_of(*row)) for row in reversed(rows[: max(0, limit)])]

    @override
    async def import_records(self, records: Sequence[str]) -> int:
        rows = {row.event_id: row for row in map(record_row, records)}

        def change(session: Session) -> Done[int]:
            known = self._rows.known(session, [*rows.values()])
            new = [row for event_id, row in rows.items() if event_id not in known]
            if new:
                self._rows.insert(session, new)
            return Done(len(new))

        return await self._writer.write(change, ())
