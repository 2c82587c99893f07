"""The audit log as its copies are made of it, and how far each of them is."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import BindParameter, bindparam, select, update
from typing_extensions import override

from certplane.broker.sinks.ports import StoredEvent, StoredEvents
from certplane.broker.sinks.position import SinkPosition
from certplane.broker.store.audit_log import reading
from certplane.broker.store.audit_reader import STORED
from certplane.broker.store.audit_records import record_of
from certplane.broker.store.batch import Done
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import audit_events, audit_sinks
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import limited_to
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock

_log = logging.getLogger("certplane.audit")

_ROWS: Final = 64
"""Of one statement: shorter lists are filled up with their last one."""


class SqlStoredEvents(StoredEvents):
    """`StoredEvents` over the database."""

    def __init__(self, database: Database, writer: Writer, clock: Clock) -> None:
        self._database = database
        self._writer = writer
        self._clock = clock
        compiler = database.compiler
        number = audit_events.c.sequence
        numbers = select(number).where(number > bindparam("after")).order_by(number)
        self._sequences = compiler(numbers.suffix_with(limited_to()))
        self._newest = compiler(select(number).order_by(number.desc()).suffix_with(limited_to(1)))
        ids: list[BindParameter[Any]] = [bindparam(f"sequence_{n}") for n in range(_ROWS)]
        self._events = compiler(select(number, *STORED).where(number.in_(ids)))
        this = audit_sinks.c.sink == bindparam("this")
        self._position = compiler(select(audit_sinks.c.low, audit_sinks.c.ranges).where(this))
        columns: dict[str, BindParameter[Any]] = {column.name: bindparam(column.name) for column in audit_sinks.c}
        self._begin = compiler(compiler.insert(audit_sinks).values(columns).on_conflict_do_nothing())
        self._advance = compiler(
            update(audit_sinks)
            .where(this, audit_sinks.c.low == bindparam("low_before"), audit_sinks.c.ranges == bindparam("before"))
            .values({name: value for name, value in columns.items() if name != "sink"})
        )

    @override
    async def sequences(self, after: int, most: int) -> Sequence[int]:
        with reading():
            rows = await self._database.all(self._sequences.at_most(most), {"after": after})
        return [int(row[0]) for row in rows[:most]]

    @override
    async def newest(self) -> int:
        with reading():
            row = await self._database.one(self._newest, {})
        return 0 if row is None else int(row[0])

    @override
    async def events(self, sequences: Sequence[int]) -> Sequence[StoredEvent]:
        events = []
        for start in range(0, len(sequences), _ROWS):
            part = sequences[start : start + _ROWS]
            values = {f"sequence_{n}": part[min(n, len(part) - 1)] for n in range(_ROWS)}
            with reading():
                rows = await self._database.all(self._events, values)
            events += [event for row in sorted(rows) if (event := _event(*row)) is not None]
        return events

    @override
    async def position(self, sink: str) -> SinkPosition | None:
        with reading():
            row = await self._database.one(self._position, {"this": sink})
        return None if row is None else SinkPosition(int(row[0]), tuple(map(tuple, json.loads(row[1]))))

    @override
    async def advance(self, sink: str, before: SinkPosition | None, after: SinkPosition) -> bool:
        values: dict[str, object] = {
            "this": sink,
            "sink": sink,
            "low": after.low,
            "ranges": _text(after),
            "change_time": to_micros(self._clock.now()),
        }
        statement = self._begin if before is None else self._advance
        if before is not None:
            values |= {"low_before": before.low, "before": _text(before)}

        def change(session: Session) -> Done[bool]:
            return Done(session.execute(statement, statement.arguments(values)) == 1)

        return await self._writer.write(change, ())


def _text(position: SinkPosition) -> str:
    return json.dumps(position.ranges, separators=(",", ":"))


def _event(sequence: int, event_id: str, create_time: int, record: str, body: bytes | None) -> StoredEvent | None:
    try:
        return StoredEvent(sequence, event_id, from_micros(create_time), record_of(event_id, create_time, record, body))
    except ValueError as error:
        _log.error("an audit event can't be read, and is not copied: %s", error)
        return None
