"""Hosts' reports as rows: what one transaction makes of many hosts' calls.

A fleet reports at once: after a change of policy, after the broker was away. A job of its own for each host would cost
a savepoint and five statements; all that waits is written here together instead, each step one statement for up to 128
rows, so that a report costs little more than its audit event.

A host has one stream, at one broker (ADR 0033). Its row says which broker's, and under which number of the host's
streams; hello raises that number, and all that comes on a stream later is written only while its own is there. What a
broker writes of a stream that has begun elsewhere meanwhile finds no row: nothing of it is written.

Synchronous, on the writer's thread, inside its transaction. `fleet` owns the calls and the waiting.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy import BindParameter, Table, and_, bindparam, delete, or_, select

from certplane.broker.fleet.model import HostStream
from certplane.broker.fleet.ports import RecordedReports
from certplane.broker.fleet.reports import KnownReports, take_reports
from certplane.broker.model import ChangeKind
from certplane.broker.store.audit_records import EventRow
from certplane.broker.store.batch import Done
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.fleet_rows import encode_status
from certplane.broker.store.schema import certificate_statuses, report_sequences
from certplane.broker.store.session import Session
from certplane.broker.store.statements import Compiler, Row, Statement, chunks, numbered
from certplane.broker.store.stream_rows import StreamPlace, StreamRows
from certplane.fleet_report.model import CertificateStatus, Report
from certplane.runtime.failpoints import failpoint

_NAMED: Final = 8
"""Certificates of a host that other brokers are told by name; of more they read the whole host."""


@dataclass(slots=True, eq=False)
class Entry:
    """One host's call: reports with their events and names, or its stream, or its answer to a directive.

    It came on the stream of number `stream_epoch` at this broker, unless `stream` begins with it.
    """

    host: str
    epoch: str = ""
    reports: Sequence[Report] = ()
    events: Mapping[int, EventRow] = field(default_factory=dict)
    names: Sequence[str] | None = None
    stream: HostStream | None = None
    stream_epoch: int = 0
    answer: tuple[str | None] | None = None
    """Why it refused the last directive, None: it took it; nothing is said of it where this isn't set."""
    telling: dict[int, None] = field(default_factory=dict)
    new: dict[int, Report] = field(default_factory=dict)
    """What was found new by any try of the transaction: an earlier one may have been committed after all."""

    @property
    def begins(self) -> bool:
        """Whether its stream begins with it."""
        return self.stream is not None and not self.stream.stream_epoch

    @property
    def comes_or_goes(self) -> bool:
        """Whether its stream begins or ends with it: what others are told."""
        return self.begins or (self.stream is not None and self.stream.end_time is not None)


class ReportRows:
    """Writes entries, many at once."""

    def __init__(self, compiler: Compiler, changes: ChangeLog) -> None:
        self._compiler = compiler
        self._changes = changes
        self._streams = StreamRows(compiler)
        self._outcomes = functools.cache(self._select_outcomes)
        self._put_sequences = functools.cache(self._upsert(report_sequences, ("host",)))
        self._put_statuses = functools.cache(self._upsert(certificate_statuses, ("host", "name")))
        host, name = certificate_statuses.c.host, certificate_statuses.c.name
        self._names = functools.cache(self._select_names)
        self._forget = compiler(
            delete(certificate_statuses).where(host == bindparam("host"), name == bindparam("name"))
        )

    def write(self, session: Session, entries: Sequence[Entry], broker_id: str) -> Done[list[RecordedReports | None]]:
        """Write the entries of a broker, in their order; what each came to, and the events of what is new.

        None for those of streams that are not their hosts' any more: nothing of them is written.
        """
        numbers = self._put_streams(session, entries, broker_id)
        reporting = [entry for entry in entries if entry.epoch]
        places = self._streams.lock(session, list({entry.host for entry in reporting}))
        standing = {
            entry
            for entry, number in numbers.items()
            if number and (not entry.epoch or (entry.host in places and places[entry.host].is_of(broker_id, number)))
        }
        known = self._known(session, [entry for entry in reporting if entry in standing], places)
        before = dict(known)
        results: list[RecordedReports | None] = []
        events: list[EventRow] = []
        statuses: dict[tuple[str, str], CertificateStatus] = {}
        for entry in entries:
            if entry not in standing:
                results.append(None)
                continue
            if not entry.epoch:
                results.append(RecordedReports(0, ()))
                continue
            taken = take_reports(known[entry.host], entry.epoch, entry.reports)
            known[entry.host] = taken.known
            entry.new |= {report.sequence: report for report in taken.new}
            entry.telling |= dict.fromkeys(taken.telling)
            events += [entry.events[sequence] for sequence in taken.telling if sequence in entry.events]
            statuses |= {(entry.host, report.certificate.name): report.certificate for report in taken.new}
            new, telling = tuple(entry.new.values()), tuple(entry.telling)
            begun = numbers[entry] if entry.begins else 0
            results.append(RecordedReports(taken.known.sequence, new, telling=telling, stream_epoch=begun))
        rows = [
            (host, name, status.state.value, encode_status(status), known[host].outcomes.get(name, ""))
            for (host, name), status in statuses.items()
        ]
        for chunk in chunks(rows):
            self._run(session, self._put_statuses, chunk)
        counted = [(host, *one.counted) for host, one in known.items() if one.counted != before[host].counted]
        for counts in chunks(counted):
            self._run(session, self._put_sequences, counts)
        self._forget_others(session, entries, results)
        if rows:
            failpoint("report.store.written")  # what is locked by now, stays so until this transaction's end
        answers = {(entry.host, entry.stream_epoch): entry.answer[0] for entry in entries if entry.answer is not None}
        streams = [
            *(entry.host for entry in entries if entry in standing and entry.comes_or_goes),
            *self._streams.put_answers(session, answers, broker_id),
        ]
        for host in dict.fromkeys(streams):
            self._changes.add_shared(session, ChangeKind.STREAM, host)
        self._tell_others(session, statuses, entries, results)
        return Done(results, events=events)

    def _put_streams(self, session: Session, entries: Sequence[Entry], broker_id: str) -> Mapping[Entry, int]:
        """Write the streams that begin or go on: the number of each entry's, but of those that have lost their place.

        Of those that begin for one host the last one has it then.
        """
        beginning = {entry.host: entry for entry in entries if entry.begins}
        going_on: dict[str, HostStream] = {}
        for entry in entries:
            stream = entry.stream
            if stream is not None and not entry.begins:
                newest = going_on.setdefault(entry.host, stream)
                if stream.stream_epoch >= newest.stream_epoch:
                    going_on[entry.host] = stream
        begun = self._streams.begin(session, [one.stream for one in beginning.values() if one.stream], broker_id)
        written = self._streams.go_on(session, going_on.values())
        numbers = {entry: entry.stream_epoch for entry in entries}
        for entry in entries:
            if entry.begins:
                numbers[entry] = begun[entry.host] if beginning[entry.host] is entry else 0
            elif entry.stream is not None:
                number = entry.stream.stream_epoch
                numbers[entry] = number if (entry.host, number) in written else 0
        return numbers

    def _known(
        self, session: Session, entries: Sequence[Entry], places: Mapping[str, StreamPlace]
    ) -> dict[str, KnownReports]:
        """What is durable of the hosts that report, with the outcomes of the certificates that they report of."""
        wanted = {(entry.host, report.certificate.name) for entry in entries for report in entry.reports}
        outcomes: dict[str, dict[str, str]] = defaultdict(dict)
        for rows in chunks(sorted(wanted)):
            for host, name, outcome in self._all(session, self._outcomes, rows):
                outcomes[host][name] = outcome
        hosts = dict.fromkeys(entry.host for entry in entries)
        return {host: KnownReports(places[host].epoch, places[host].sequence, outcomes[host]) for host in hosts}

    def _forget_others(self, session: Session, entries: Sequence[Entry], results: list[RecordedReports | None]) -> None:
        """Drop the certificates that hosts no longer name; the last of a host's calls counts."""
        naming = {
            entry.host: (entry.names, index, result)
            for index, (entry, result) in enumerate(zip(entries, results, strict=True))
            if result is not None and entry.names is not None
        }
        others: dict[str, list[str]] = defaultdict(list)
        for chunk in chunks([(host,) for host in naming]):
            for host, name in self._all(session, self._names, chunk):
                if name not in naming[host][0]:
                    others[host].append(name)
        for host, names in others.items():
            for name in names:
                session.execute(self._forget, (host, name))
            _, index, result = naming[host]
            results[index] = replace(result, forgotten=tuple(names))

    def _tell_others(
        self,
        session: Session,
        reported: Iterable[tuple[str, str]],
        entries: Sequence[Entry],
        results: Sequence[RecordedReports | None],
    ) -> None:
        """Let other brokers hear of certificates, by host and name, that are new, other than they were, or gone."""
        changed: defaultdict[str, list[str]] = defaultdict(list)
        for host, name in reported:
            changed[host].append(name)
        for entry, result in zip(entries, results, strict=True):
            if result is not None and result.forgotten:
                changed[entry.host] += result.forgotten
        for host, names in changed.items():
            named = names if len(names) <= _NAMED else ()
            self._changes.add_shared(session, ChangeKind.REPORT, " ".join((host, *named)))

    def _all(self, session: Session, make: Callable[[int], Statement], keys: Sequence[tuple[object, ...]]) -> list[Row]:
        statement = make(len(keys))
        values = [value for key in keys for value in key]
        return session.all(statement, dict(zip(statement.names, values, strict=True)))

    def _run(self, session: Session, make: Callable[[int], Statement], rows: Sequence[tuple[object, ...]]) -> None:
        session.execute(make(len(rows)), tuple(value for row in rows for value in row))

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

    def _upsert(self, table: Table, key: Sequence[str]) -> Callable[[int], Statement]:
        names = tuple(column.name for column in table.c)

        def compile_for(count: int) -> Statement:
            insert = self._compiler.insert(table).values(numbered(names, count))
            values = {name: insert.excluded[name] for name in names if name not in key}
            statement = self._compiler(insert.on_conflict_do_update(index_elements=list(key), set_=values))
            assert statement.names == tuple(f"{name}_{n}" for n in range(count) for name in names)
            return statement

        return compile_for
