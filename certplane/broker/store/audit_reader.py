"""The audit log as it is read: what changed lately, pages of it, and what came since."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy import bindparam, select
from typing_extensions import override

from certplane.broker.events import CHANGE_EVENTS, AuditEvent, AuditEventType
from certplane.broker.ports import AuditReader
from certplane.broker.store.audit_log import reading
from certplane.broker.store.audit_records import record_of
from certplane.broker.store.schema import audit_events
from certplane.broker.store.session import Database
from certplane.broker.store.statements import limited_to

_log = logging.getLogger("certplane.audit")

STORED: Final = tuple(audit_events.c[name] for name in ("event_id", "create_time", "record", "body"))
"""What an event is read from, as `record_of` takes it."""


class SqlAuditReader(AuditReader):
    """`AuditReader` over the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._recent = database.compiler(
            select(audit_events.c.sequence, *STORED)
            .where(audit_events.c.kind == bindparam("kind"))
            # The kind is one alone. Named here, it shows a planner that its index has the order.
            .order_by(audit_events.c.kind.desc(), audit_events.c.sequence.desc())
            .suffix_with(limited_to())
        )

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


def _event(event_id: str, create_time: int, record: str, body: bytes | None) -> AuditEvent | None:
    """The event of a row; None, and a line in the log, if this release can't read it."""
    try:
        return msgspec.convert(json.loads(record_of(event_id, create_time, record, body)), AuditEvent)
    except ValueError as error:
        _log.warning("an audit event can't be read: %s", error)
        return None
