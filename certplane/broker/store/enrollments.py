"""The latest enrollment report of each identity."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.model import EnrollmentReport
from certplane.broker.ports import EnrollmentStore
from certplane.broker.store.audit_log import SqlAuditLog
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import encode_json
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import enrollment_reports
from certplane.broker.store.session import Database, Session
from certplane.broker.store.writer import Writer


class SqlEnrollmentStore(EnrollmentStore):
    """`EnrollmentStore` over the database."""

    def __init__(self, database: Database, writer: Writer, audit: SqlAuditLog) -> None:
        self._writer = writer
        self._audit = audit
        columns = ("identity", "agent_version", "host_facts", "identity_serial_number", "record_time")
        insert = database.compiler.insert(enrollment_reports)
        self._upsert = database.compiler(
            insert.on_conflict_do_update(
                index_elements=["identity"], set_={name: insert.excluded[name] for name in columns[1:]}
            ),
            columns,
        )

    @override
    async def record_report(self, report: EnrollmentReport, events: Sequence[AuditEvent]) -> None:
        arguments = (
            report.identity,
            report.agent_version,
            encode_json(report.host_facts),
            report.identity_serial_number,
            to_micros(report.record_time),
        )

        def change(session: Session) -> Done[None]:
            session.execute(self._upsert, arguments)
            return Done(None)

        await self._writer.write(change, self._audit.encode(events))
