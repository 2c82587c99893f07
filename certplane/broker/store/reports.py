"""Hosts' reports as rows: what one transaction makes of many hosts' calls.

A fleet reports at once: after a change of policy, after the broker was away. A job of its own for each host would cost
a savepoint and five statements; all that waits is written here together instead, each step one statement for up to 128
rows, so that a report costs little more than its audit event.

Synchronous, on the writer's thread, inside its transaction. `fleet` owns the calls and the waiting.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from sqlalchemy import BindParameter, Table, and_, bindparam, delete, null, or_, select, update

from certplane.broker.fleet.model import HostStream
from certplane.broker.fleet.ports import RecordedReports
from certplane.broker.fleet.reports import KnownReports, take_reports
from certplane.broker.store.batch import Done
from certplane.broker.store.fleet_rows import STREAM_COLUMNS, encode_status, stream_row
from certplane.broker.store.rows import EventRow
from certplane.broker.store.schema import certificate_statuses, host_streams, report_sequences
from certplane.broker.store.session import Session
from certplane.broker.store.statements import Compiler, Row, Statement
from certplane.fleet_report.model import CertificateStatus, Report
from certplane.runtime.failpoints import failpoint

T = TypeVar("T")

_CHUNKS: Final = (128, 32, 8, 4, 2, 1)
"""Rows of one statement: few sizes, since each is compiled once. At most 1,280 parameters; SQLite takes 32,766."""


@dataclass(slots=True, eq=False)
class Entry:
    """One host's call: reports with their events and names, or its stream, or its answer to a directive."""

    host: str
    epoch: str = ""
    reports: Sequence[Report] = ()
    events: Mapping[int, EventRow] = field(default_factory=dict)
    names: Sequence[str] | None = None
    stream: HostStream | None = None
    answer: tuple[str | None] | None = None
    """Why it refused the last directive, None: it took it; nothing is said of it where this isn't set."""
    telling: dict[int, None] = field(default_factory=dict)
    new: dict[int, Report] = field(default_factory=dict)
    """What was found new by any try of the transaction: an earlier one may have been committed after all."""


class ReportRows:
    """Writes entries, many at once."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._sequences = functools.cache(self._select_sequences)
        self._outcomes = functools.cache(self._select_outcomes)
        self._put_sequences = functools.cache(self._upsert(report_sequences, ("host",)))
        self._put_statuses = functools.cache(self._upsert(certificate_statuses, ("host", "name")))
        self._put_streams = functools.cache(self._upsert(host_streams, ("host",), STREAM_COLUMNS))
        self._take_back = functools.cache(self._clear_errors)
        self._refuse = compiler(
            update(host_streams).where(host_streams.c.host == bindparam("which")), ["directive_error"]
        )
        host, name = certificate_statuses.c.host, certificate_statuses.c.name
        self._names = functools.cache(self._select_names)
        self._forget = compiler(
            delete(certificate_statuses).where(host == bindparam("host"), name == bindparam("name"))
        )

    def write(self, session: Session, entries: Sequence[Entry]) -> Done[list[RecordedReports]]:
        """Write the entries in their order; what each came to, and the events of what is new."""
        known = self._known(session, [entry for entry in entries if entry.epoch])
        before = dict(known)
        results: list[RecordedReports] = []
        events: list[EventRow] = []
        statuses: dict[tuple[str, str], CertificateStatus] = {}
        for entry in entries:
            if not entry.epoch:
                results.append(RecordedReports(0, ()))
                continue
            taken = take_reports(known[entry.host], entry.epoch, entry.reports)
            known[entry.host] = taken.known
            entry.new |= {report.sequence: report for report in taken.new}
            entry.telling |= dict.fromkeys(taken.telling)
            events += [entry.events[sequence] for sequence in taken.telling if sequence in entry.events]
            statuses |= {(entry.host, report.certificate.name): report.certificate for report in taken.new}
            new = tuple(entry.new.values())
            results.append(RecordedReports(taken.known.sequence, new, telling=tuple(entry.telling)))
        rows = [
            (host, name, status.state.value, encode_status(status), known[host].outcomes.get(name, ""))
            for (host, name), status in statuses.items()
        ]
        for chunk in _chunks(rows):
            self._run(session, self._put_statuses, chunk)
        counted = [(host, *one.counted) for host, one in known.items() if one.counted != before[host].counted]
        for counts in _chunks(counted):
            self._run(session, self._put_sequences, counts)
        streams = {entry.host: stream_row(entry.stream) for entry in entries if entry.stream is not None}
        for stream_rows in _chunks(list(streams.values())):
            self._run(session, self._put_streams, stream_rows)
        self._put_answers(session, {entry.host: entry.answer[0] for entry in entries if entry.answer is not None})
        self._forget_others(session, entries, results)
        if rows:
            failpoint("report.store.written")  # what is locked by now, stays so until this transaction's end
        return Done(results, events=events)

    def _known(self, session: Session, entries: Sequence[Entry]) -> dict[str, KnownReports]:
        """What is durable of the hosts that report, with the outcomes of the certificates that they report of."""
        hosts = list(dict.fromkeys(entry.host for entry in entries))
        sequences = {
            host: (epoch, sequence)
            for rows in _chunks(hosts)
            for host, epoch, sequence in self._all(session, self._sequences, [(host,) for host in rows])
        }
        wanted = {(entry.host, report.certificate.name) for entry in entries for report in entry.reports}
        outcomes: dict[str, dict[str, str]] = defaultdict(dict)
        for rows in _chunks(sorted(wanted)):
            for host, name, outcome in self._all(session, self._outcomes, rows):
                outcomes[host][name] = outcome
        return {host: KnownReports(*sequences.get(host, ("", 0)), outcomes[host]) for host in hosts}

    def _put_answers(self, session: Session, answers: Mapping[str, str | None]) -> None:
        """Note what was refused; mostly nothing was, and nothing is noted of the host either."""
        for chunk in _chunks([(host,) for host, error in answers.items() if error is None]):
            self._run(session, self._take_back, chunk)
        for host, error in answers.items():
            if error is not None:
                session.execute(self._refuse, self._refuse.arguments({"directive_error": error, "which": host}))

    def _forget_others(self, session: Session, entries: Sequence[Entry], results: list[RecordedReports]) -> None:
        """Drop the certificates that hosts no longer name; the last of a host's calls counts."""
        naming = {entry.host: index for index, entry in enumerate(entries) if entry.epoch and entry.names is not None}
        others: dict[str, list[str]] = defaultdict(list)
        for chunk in _chunks([(host,) for host in naming]):
            for host, name in self._all(session, self._names, chunk):
                if name not in (entries[naming[host]].names or ()):
                    others[host].append(name)
        for host, names in others.items():
            for name in names:
                session.execute(self._forget, (host, name))
            results[naming[host]] = replace(results[naming[host]], forgotten=tuple(names))

    def _all(self, session: Session, make: Callable[[int], Statement], keys: Sequence[tuple[object, ...]]) -> list[Row]:
        statement = make(len(keys))
        values = [value for key in keys for value in key]
        return session.all(statement, dict(zip(statement.names, values, strict=True)))

    def _run(self, session: Session, make: Callable[[int], Statement], rows: Sequence[tuple[object, ...]]) -> None:
        session.execute(make(len(rows)), tuple(value for row in rows for value in row))

    def _select_sequences(self, count: int) -> Statement:
        hosts: list[BindParameter[Any]] = [bindparam(f"host_{n}") for n in range(count)]
        columns = report_sequences.c
        query = select(columns.host, columns.epoch, columns.acknowledged_sequence)
        return self._compiler(query.where(columns.host.in_(hosts)))

    def _clear_errors(self, count: int) -> Statement:
        hosts: list[BindParameter[Any]] = [bindparam(f"host_{n}") for n in range(count)]
        columns = host_streams.c
        statement = update(host_streams).where(columns.host.in_(hosts), columns.directive_error.is_not(None))
        return self._compiler(statement.values(directive_error=null()))

    def _select_names(self, count: int) -> Statement:
        hosts: list[BindParameter[Any]] = [bindparam(f"host_{n}") for n in range(count)]
        columns = certificate_statuses.c
        return self._compiler(select(columns.host, columns.name).where(columns.host.in_(hosts)))

    def _select_outcomes(self, count: int) -> Statement:
        columns = certificate_statuses.c
        # Not `(host, name) IN (...)`, which SQLite doesn't take with a list of values.
        keys = [
            and_(columns.host == bindparam(f"host_{n}"), columns.name == bindparam(f"name_{n}")) for n in range(count)
        ]
        return self._compiler(select(columns.host, columns.name, columns.outcome).where(or_(*keys)))

    def _upsert(
        self, table: Table, key: Sequence[str], columns: Sequence[str] | None = None
    ) -> Callable[[int], Statement]:
        names = tuple(columns or (column.name for column in table.c))

        def compile_for(count: int) -> Statement:
            rows: list[dict[str, BindParameter[Any]]] = [
                {name: bindparam(f"{name}_{n}") for name in names} for n in range(count)
            ]
            insert = self._compiler.insert(table).values(rows)
            values = {name: insert.excluded[name] for name in names if name not in key}
            statement = self._compiler(insert.on_conflict_do_update(index_elements=list(key), set_=values))
            assert statement.names == tuple(f"{name}_{n}" for n in range(count) for name in names)
            return statement

        return compile_for


def _chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """`rows` in pieces of the sizes that statements are made for."""
    start = 0
    for size in _CHUNKS:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size
