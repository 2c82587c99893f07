"""What hosts report, in the database: the latest of each certificate, and each host's last stream.

Calls are gathered while others are being written, and then written together (`reports`): the busier the broker, the
more of them share a statement, and a lone one waits for nobody. A host's coming and going can wait a moment for the
next one's; so can a report on PostgreSQL, where a transaction's statements each cost a round trip, and of several
brokers each has a part of the fleet's reports to share them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, select, text
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.fleet.audience import HostAnchor, HostAnchors
from certplane.broker.fleet.model import HostRecord, HostStream, RecordedStream, RevokedCertificate
from certplane.broker.fleet.ports import FleetStore, RecordedReports, StreamPlaces
from certplane.broker.fleet.refusals import displaced
from certplane.broker.store.audit_log import SqlAuditLog, reading
from certplane.broker.store.cells import decode_refusal, encode_refusal
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.fleet_rows import (
    STREAM_COLUMNS,
    decode_status,
    stream_from_row,
)
from certplane.broker.store.reports import Entry, ReportRows
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import (
    certificate_statuses,
    certificates,
    host_streams,
    report_sequences,
)
from certplane.broker.store.session import Database, Fault, SqlError
from certplane.broker.store.statements import HOSTS, Row, hosts_parameters, limited_to
from certplane.broker.store.writer import Writer
from certplane.errors import Refusal, RefusalError
from certplane.fleet_report.model import CertificateStatus, Report

_TOGETHER: Final = 512
"""Calls that are written at once: what the last of them waits longer for it stays some milliseconds."""
_LINGER: Final = 0.02
_LATELY: Final = 0.05
"""Seconds. Streams come, go and are seen one after the other when a fleet returns: one that follows another one so soon
waits so long for more. Each transaction costs more than what is written in it."""
_UNDER_WAY: Final = 2
"""One that is being written, and one that waits for it, so that the writer never waits for the loop."""


class SqlFleetStore(FleetStore, StreamPlaces, HostAnchors):
    """`FleetStore` and the other ports of the fleet over the database."""

    def __init__(
        self, database: Database, writer: Writer, audit: SqlAuditLog, *, broker_id: str, changes: ChangeLog
    ) -> None:
        self.broker_id = broker_id
        self._database = database
        self._writer = writer
        self._audit = audit
        self._rows = ReportRows(database.compiler, changes)
        self._waiting: list[tuple[Entry, asyncio.Future[RecordedReports]]] = []
        self._writing: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._lingering: asyncio.TimerHandle | None = None
        self._gathers_all = database.compiler.driver != "sqlite"
        self._put_time = float("-inf")
        compiler = database.compiler
        streams = select(
            *(host_streams.c[name] for name in STREAM_COLUMNS),
            host_streams.c.directive_error,
            report_sequences.c.acknowledged_sequence,
        ).outerjoin_from(host_streams, report_sequences, report_sequences.c.host == host_streams.c.host)
        self._one = compiler(streams.where(host_streams.c.host == bindparam("host")))
        host, status_host = host_streams.c.host, certificate_statuses.c.host
        self._page = compiler(streams.where(host > bindparam("after")).order_by(host).suffix_with(limited_to()))
        statuses = select(certificate_statuses.c.host, certificate_statuses.c.status).order_by(
            certificate_statuses.c.host, certificate_statuses.c.name
        )
        anchored = select(host, host_streams.c.identity_anchor, host_streams.c.broker_id, host_streams.c.end_time)
        self._anchors = compiler(anchored.where(host > bindparam("after")).order_by(host).suffix_with(limited_to()))
        self._statuses = compiler(statuses.where(status_host >= bindparam("first"), status_host <= bindparam("last")))
        places = select(
            *(host_streams.c[name] for name in STREAM_COLUMNS),
            report_sequences.c.epoch,
            report_sequences.c.acknowledged_sequence,
        ).outerjoin_from(host_streams, report_sequences, report_sequences.c.host == host_streams.c.host)
        self._places = compiler(places.where(host_streams.c.host.in_(HOSTS)))
        self._some = compiler(streams.where(host_streams.c.host.in_(HOSTS)).order_by(host_streams.c.host))
        self._statuses_of = compiler(statuses.where(certificate_statuses.c.host.in_(HOSTS)))
        revoked = select(
            certificates.c.identity,
            certificates.c.serial_number,
            certificates.c.revoke_time,
            certificates.c.revocation_reason,
        ).where(
            text("revoke_time IS NOT NULL"),  # word for word the index's condition
            certificates.c.not_after > bindparam("now"),
        )
        self._revoked = compiler(revoked.where(certificates.c.revoke_time >= 0))  # the index's column
        self._revoked_of = compiler(revoked.where(certificates.c.identity.in_(HOSTS)))

    @override
    async def record_reports(
        self,
        host: str,
        epoch: str,
        reports: Sequence[Report],
        events: Mapping[int, AuditEvent] | None = None,
        *,
        names: Sequence[str] | None = None,
        stream: HostStream | None = None,
        stream_epoch: int = 0,
    ) -> RecordedReports:
        rows = dict(zip(events, self._audit.encode(list(events.values())), strict=False)) if events else {}
        return await self._put(Entry(host, epoch, reports, rows, names, stream, stream_epoch))

    @override
    async def record_stream(self, stream: HostStream) -> None:
        await self._put(Entry(stream.host, stream=stream))

    @override
    async def record_directive_error(self, host: str, error: Refusal | None, stream_epoch: int) -> None:
        answer = (None if error is None else encode_refusal(error),)
        await self._put(Entry(host, stream_epoch=stream_epoch, answer=answer))

    @override
    async def get_host(self, host: str) -> HostRecord | None:
        with reading():
            row = await self._database.one(self._one, {"host": host})
            if row is None:
                return None
            statuses = await self._database.all(self._statuses, {"first": host, "last": host})
        return _record(row, [decode_status(status) for _, status in statuses])

    @override
    async def list_hosts(
        self, *, after: str = "", limit: int = 500, hosts: Sequence[str] | None = None
    ) -> Sequence[HostRecord]:
        with reading():
            if hosts is None:
                rows = await self._database.all(self._page.at_most(limit), {"after": after})
                rows = rows[: max(0, limit)]
                bounds: dict[str, object] = {"first": rows[0][0], "last": rows[-1][0]} if rows else {}
                found = await self._database.all(self._statuses, bounds) if rows else []
            else:
                which = hosts_parameters([host for host in sorted(set(hosts)) if host > after])
                rows = [row for some in which for row in await self._database.all(self._some, some)][: max(0, limit)]
                found = [row for some in which for row in await self._database.all(self._statuses_of, some)]
        statuses: dict[str, list[CertificateStatus]] = defaultdict(list)
        for host, status in found:
            statuses[host].append(decode_status(status))
        return [_record(row, statuses[row[0]]) for row in rows]

    @override
    async def list_revoked(self, now: datetime, hosts: Sequence[str] | None = None) -> Sequence[RevokedCertificate]:
        with reading():
            if hosts is None:
                rows = await self._database.all(self._revoked, {"now": to_micros(now)})
            else:
                which = hosts_parameters(sorted(set(hosts)))
                values = ({**some, "now": to_micros(now)} for some in which)
                rows = [row for each in values for row in await self._database.all(self._revoked_of, each)]
        return sorted(
            (RevokedCertificate(host, serial, from_micros(time), reason or "") for host, serial, time, reason in rows),
            key=lambda each: (each.host, each.serial_number),
        )

    @override
    async def find_streams(self, hosts: Sequence[str]) -> Sequence[RecordedStream]:
        with reading():
            rows = [row for some in hosts_parameters(hosts) for row in await self._database.all(self._places, some)]
        return [
            RecordedStream(stream_from_row(tuple(stream)), epoch or "", sequence or 0)
            for *stream, epoch, sequence in rows
        ]

    @override
    async def list_anchors(self, *, after: str, limit: int) -> Sequence[HostAnchor]:
        with reading():
            rows = await self._database.all(self._anchors.at_most(limit), {"after": after})
        return [
            HostAnchor(host, anchor, "" if end_time is not None else broker_id)
            for host, anchor, broker_id, end_time in rows[: max(0, limit)]
        ]

    def _put(self, entry: Entry) -> asyncio.Future[RecordedReports]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[RecordedReports] = loop.create_future()
        self._waiting.append((entry, future))
        lingers = False
        if entry.stream is not None or self._gathers_all:
            lingers = loop.time() - self._put_time < _LATELY
            self._put_time = loop.time()
        if not self._scheduled and len(self._writing) < _UNDER_WAY:
            if not lingers:
                self._scheduled = True
                loop.call_soon(self._hand_over)
            elif self._lingering is None:
                self._lingering = loop.call_later(_LINGER, self._hand_over)
        return future

    def _hand_over(self) -> None:
        """Begin to write what came in this turn of the loop, or lately, or while others were written."""
        self._scheduled = False
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if self._waiting and len(self._writing) < _UNDER_WAY:
            calls, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
            task = asyncio.create_task(self._write(calls), name="store-reports")
            self._writing.add(task)
            task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        self._hand_over()

    async def _write(self, calls: Sequence[tuple[Entry, asyncio.Future[RecordedReports]]]) -> None:
        """Write the calls together; should the database refuse a row of one, each by itself."""
        entries = [entry for entry, _ in calls]
        try:
            results = await self._writer.write(lambda session: self._rows.write(session, entries, self.broker_id), ())
        except Exception as error:  # noqa: BLE001 - its caller's to see
            if len(calls) > 1 and _is_of_one(error):
                for call in calls:
                    await self._write([call])
                return
            for _, future in calls:
                if not future.done():
                    future.set_exception(_own(error))
            return
        for (_, future), result in zip(calls, results, strict=True):
            if future.done():
                continue
            if result is None:
                future.set_exception(displaced())
            else:
                future.set_result(result)


def _is_of_one(error: Exception) -> bool:
    """Whether the database may take the other rows."""
    cause = error.__cause__
    return not isinstance(error, RefusalError) or (
        isinstance(cause, SqlError) and cause.fault in (Fault.REJECTED, Fault.OTHER)
    )


def _own(error: Exception) -> Exception:
    """The error for one of many callers: raised in several tasks, one object would gather all their tracebacks."""
    if not isinstance(error, RefusalError):
        return error
    own = RefusalError.of(error.refusal)
    own.__cause__ = error.__cause__
    return own


def _record(row: Row, statuses: Sequence[CertificateStatus]) -> HostRecord:
    *stream, error, sequence = row
    return HostRecord(
        row[0],
        stream_from_row(tuple(stream)),
        tuple(statuses),
        sequence or 0,
        None if error is None else decode_refusal(error),
    )
