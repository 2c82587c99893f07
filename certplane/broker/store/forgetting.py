"""A host that is gone, removed from the database: its stream, its reports, its plans.

Its certificates stay as the record of what was issued, marked, so that they count as in force no longer
(`renewal_plans`) and no start adopts them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Table, bindparam, delete, null, select, update
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.fleet.model import HostStream
from certplane.broker.fleet.ports import HostRemoval
from certplane.broker.model import ChangeKind
from certplane.broker.store.audit_log import SqlAuditLog
from certplane.broker.store.batch import Done
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import (
    certificate_statuses,
    certificate_watchers,
    certificates,
    enrollment_reports,
    host_streams,
    renewal_plans,
    report_sequences,
)
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import Statement
from certplane.broker.store.writer import Writer

_KEYS: Final[tuple[tuple[Table, str], ...]] = (
    (certificate_statuses, "host"),
    (report_sequences, "host"),
    (enrollment_reports, "identity"),
    (certificate_watchers, "identity"),
    (renewal_plans, "host"),
)


class SqlHostRemoval(HostRemoval):
    """`HostRemoval` over the database."""

    def __init__(self, database: Database, writer: Writer, audit: SqlAuditLog, changes: ChangeLog) -> None:
        self._writer = writer
        self._audit = audit
        self._changes = changes
        compiler = database.compiler
        streams = host_streams.c
        self._stream = compiler(select(streams.host).where(streams.host == bindparam("host")))
        self._end_stream = compiler(
            delete(host_streams).where(
                streams.host == bindparam("host"),
                streams.broker_id == bindparam("broker_id"),
                streams.stream_epoch == bindparam("stream_epoch"),
            )
        )
        self._deletes: list[Statement] = [
            compiler(delete(table).where(table.c[key] == bindparam("host"))) for table, key in _KEYS
        ]
        self._mark = compiler(
            update(certificates)
            .where(
                certificates.c.identity == bindparam("host"),
                certificates.c.forget_time.is_(null()),
                certificates.c.not_after > bindparam("now"),
            )
            .values(forget_time=bindparam("time"))
        )

    @override
    async def forget_host(
        self, host: str, stream: HostStream | None, time: datetime, events: Sequence[AuditEvent]
    ) -> bool:
        micros = to_micros(time)
        values: dict[str, object] = {"host": host, "now": micros, "time": micros}
        if stream is not None:
            values |= {"broker_id": stream.broker_id, "stream_epoch": stream.stream_epoch}

        def change(session: Session) -> Done[bool]:
            if stream is not None:
                gone = session.execute(self._end_stream, self._end_stream.arguments(values)) == 1
            else:
                gone = session.one(self._stream, values) is None
            if not gone:
                return Done(False, audited=False)
            for statement in self._deletes:
                session.execute(statement, statement.arguments(values))
            session.execute(self._mark, self._mark.arguments(values))
            self._changes.add_shared(session, ChangeKind.STREAM, host)
            return Done(True)

        return await self._writer.write(change, self._audit.encode(events))
