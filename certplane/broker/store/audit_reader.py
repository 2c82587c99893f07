"""The audit log as it is read: what changed lately, pages of it, and what comes."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import BigInteger, bindparam, select
from typing_extensions import override

from certplane.broker.event_filter import EventFilter
from certplane.broker.events import CHANGE_EVENTS, AuditEvent, AuditEventType
from certplane.broker.ports import AuditReader, AuditTail, EventPage, ShownEvent
from certplane.broker.store.audit_log import reading
from certplane.broker.store.audit_records import record_of
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import audit_events
from certplane.broker.store.session import Database
from certplane.broker.store.statements import Row, limited_to
from certplane.runtime.clock import Clock

_log = logging.getLogger("certplane.audit")

STORED: Final = tuple(audit_events.c[name] for name in ("event_id", "create_time", "record", "body"))
"""What an event is read from, as `record_of` takes it."""
_AT_ONCE: Final = 256
"""Rows that are read, and looked at without giving up the loop: some milliseconds."""
_MOST: Final = 16 * _AT_ONCE
"""Rows of one page: what a call may cost that picks one event among many."""
_SLACK: Final = timedelta(minutes=10)
"""By so much clocks may differ, and events stand in another order than their times."""
_LATE: Final = timedelta(seconds=15)
"""Within it an event may become durable behind ones that are already: longer than a transaction waits for a lock."""
_END: Final = (1 << 63) - 1


class SqlAuditReader(AuditReader):
    """`AuditReader` over the database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        compiler = database.compiler
        sequence = audit_events.c.sequence
        first, last = bindparam("first", type_=BigInteger), bindparam("last", type_=BigInteger)
        self._recent = compiler(
            select(sequence, *STORED)
            .where(audit_events.c.kind == bindparam("kind"))
            # The kind is one alone. Named here, it shows a planner that its index has the order.
            .order_by(audit_events.c.kind.desc(), sequence.desc())
            .suffix_with(limited_to())
        )
        between = select(sequence, *STORED).where(sequence >= first, sequence <= last)
        self._up = compiler(between.order_by(sequence).suffix_with(limited_to()))
        self._down = compiler(between.order_by(sequence.desc()).suffix_with(limited_to()))
        self._at = compiler(
            select(sequence, audit_events.c.create_time)
            .where(sequence >= first)
            .order_by(sequence)
            .suffix_with(limited_to(1))
        )
        self._newest = compiler(select(sequence).order_by(sequence.desc()).suffix_with(limited_to(1)))

    @override
    async def recent(self, types: Collection[AuditEventType], *, since: datetime, limit: int) -> Sequence[AuditEvent]:
        if unknown := {*types} - CHANGE_EVENTS:
            raise ValueError(f"{', '.join(sorted(unknown))} can't be found without reading all events")
        found: list[tuple[int, AuditEvent]] = []
        statement = self._recent.at_most(limit)
        for kind in sorted(types):
            with reading():
                rows = await self._database.all(statement, {"kind": kind.value})
            found += [(sequence, event) for sequence, *stored in rows if (event := _event(*stored)) is not None]
        newest = sorted(found, key=lambda each: each[0], reverse=True)
        return [event for _, event in newest if event.timestamp >= since][:limit]

    @override
    async def page(
        self, wanted: EventFilter, *, after: int | None = None, limit: int, oldest_first: bool = False
    ) -> EventPage:
        first = 0 if wanted.start is None else await self.place_of(_moved(wanted.start, -_SLACK))
        last = _END if wanted.end is None else await self.place_of(_moved(wanted.end, _SLACK))
        if after is not None:
            first, last = (max(first, after + 1), last) if oldest_first else (first, min(last, after - 1))
        statement = (self._up if oldest_first else self._down).at_most(_AT_ONCE)
        events: list[ShownEvent] = []
        for _ in range(_MOST // _AT_ONCE):
            rows = await self._rows(statement, first, last)
            for row in rows:
                event = _shown(row)
                if event is not None and wanted.picks(event.time, event.record):
                    events.append(event)
                    if len(events) == limit:
                        return EventPage(events, event.sequence)
            if len(rows) < _AT_ONCE:
                return EventPage(events, None)
            first, last = (rows[-1][0] + 1, last) if oldest_first else (first, rows[-1][0] - 1)
        return EventPage(events, first - 1 if oldest_first else last + 1)

    @override
    async def follow(self) -> AuditTail:
        place = max(0, await self.newest() - _AT_ONCE)
        return _Tail(self, place, {row[0] for row in await self.after(place)}, self._clock)

    @override
    async def place_of(self, time: datetime) -> int:
        # Places and times ascend together but for clocks, so the place is found by halves: each half one row of a key.
        wanted = to_micros(time)
        low, high = 0, await self.newest() + 1
        while low < high:
            middle = (low + high) // 2
            with reading():
                row = await self._database.one(self._at, {"first": middle})
            if row is None or row[1] >= wanted:
                high = middle
            else:
                low = row[0] + 1
        return low

    async def newest(self) -> int:
        """The place of the newest event; 0 of an empty log."""
        with reading():
            row = await self._database.one(self._newest, {})
        return int(row[0]) if row is not None else 0

    async def after(self, place: int) -> Sequence[Row]:
        """Some rows after a place, in their order."""
        return await self._rows(self._up.at_most(_AT_ONCE), place + 1, _END)

    async def _rows(self, statement: Any, first: int, last: int) -> Sequence[Row]:
        with reading():
            return await self._database.all(statement, {"first": first, "last": last})


class _Tail(AuditTail):
    """`AuditTail` over a database whose transactions become durable in another order than their rows are numbered.

    Each look reads again what is younger than `_LATE`, and passes over what it has shown.
    """

    def __init__(self, reader: SqlAuditReader, place: int, there: set[int], clock: Clock) -> None:
        self._reader = reader
        self._clock = clock
        self._settled = place
        """Up to here all is shown, or was there before."""
        self._shown = there
        """What is beyond that."""
        self._newest = max(there, default=place)
        self._looks: deque[tuple[float, int]] = deque()
        """When the newest place was what."""

    @override
    async def new(self) -> Sequence[ShownEvent]:
        now = self._clock.monotonic()
        found: list[ShownEvent] = []
        place = self._settled
        while rows := await self._reader.after(place):
            place = rows[-1][0]
            fresh = [row for row in rows if row[0] not in self._shown]
            found += [event for event in map(_shown, fresh) if event is not None]
            self._shown.update(row[0] for row in fresh)
            self._newest = max(self._newest, place)
            if len(rows) < _AT_ONCE:
                break
        self._looks.append((now, self._newest))
        while self._looks and self._looks[0][0] < now - _LATE.total_seconds():
            self._settled = self._looks.popleft()[1]
        self._shown = {sequence for sequence in self._shown if sequence > self._settled}
        return found


def _moved(time: datetime, span: timedelta) -> datetime:
    """The time so much later; where there is no such time, the time itself."""
    try:
        return time + span
    except OverflowError:
        return time


def _shown(row: Row) -> ShownEvent | None:
    sequence, event_id, create_time, record, body = row
    try:
        said = json.loads(record_of(event_id, create_time, record, body))
    except ValueError as error:
        _log.warning("an audit event can't be read: %s", error)
        return None
    return ShownEvent(sequence, from_micros(create_time), said)


def _event(event_id: str, create_time: int, record: str, body: bytes | None) -> AuditEvent | None:
    """The event of a row; None, and a line in the log, if this release can't read it."""
    try:
        return msgspec.convert(json.loads(record_of(event_id, create_time, record, body)), AuditEvent)
    except ValueError as error:
        _log.warning("an audit event can't be read: %s", error)
        return None
