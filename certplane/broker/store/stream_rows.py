"""Rows of hosts' streams: which broker has each, and what is written only while it has it.

A stream has a number among those of its host, `stream_epoch`, which the row draws when it begins. Everything that comes
on the stream later names the broker and the number, and finds no row when another stream has begun since: at this
broker, at another one, or in a database that was restored from before.

Synchronous, inside the transaction of whoever writes (`reports`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, and_, bindparam, literal_column, null, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from certplane.broker.fleet.model import HostStream
from certplane.broker.store.fleet_rows import STREAM_COLUMNS, stream_row
from certplane.broker.store.schema import host_streams, report_sequences
from certplane.broker.store.session import Session
from certplane.broker.store.statements import Compiler, Row, Statement, chunks, numbered

_OWN: Final = ("host", "stream_epoch")
"""What a stream that begins doesn't take over as it is given."""


class StreamPlace(NamedTuple):
    """Who has a host's stream, and what is durable of the host's reports: `sequence` of the counting `epoch`."""

    broker_id: str
    stream_epoch: int
    epoch: str
    sequence: int

    def is_of(self, broker_id: str, stream_epoch: int) -> bool:
        """Whether it is the stream's of this number, at this broker."""
        return (self.broker_id, self.stream_epoch) == (broker_id, stream_epoch)


class StreamRows:
    """Writes rows of streams, many at once."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._begin = functools.cache(self._beginning)
        self._go_on = functools.cache(self._going_on)
        self._places = functools.cache(self._select_places)
        self._take_back = functools.cache(self._clear_errors)
        self._refuse = compiler(
            update(host_streams).where(
                host_streams.c.host == bindparam("which"),
                host_streams.c.broker_id == bindparam("at"),
                host_streams.c.stream_epoch == bindparam("under"),
            ),
            ["directive_error"],
        )

    def begin(self, session: Session, streams: Iterable[HostStream], broker_id: str) -> Mapping[str, int]:
        """Let these be their hosts' streams from now on, one of each host: their numbers, by host."""
        # In one order at all brokers: of two that write the same rows in different order each would wait for the other.
        rows = sorted(stream_row(replace(one, broker_id=broker_id, stream_epoch=1)) for one in streams)
        return {host: number for some in chunks(rows) for host, number in self._all(session, self._begin, some)}

    def go_on(self, session: Session, streams: Iterable[HostStream]) -> set[tuple[str, int]]:
        """Write what is known of streams now, one of each host; those that still are their hosts', by host and number.

        A row that is gone was removed for its age, or is missing in a restored database: it is made anew.
        """
        rows = sorted(map(stream_row, streams))
        return {(host, number) for some in chunks(rows) for host, number in self._all(session, self._go_on, some)}

    def lock(self, session: Session, hosts: Sequence[str]) -> Mapping[str, StreamPlace]:
        """Who has the streams of these hosts, which nobody else changes before the transaction's end.

        Only the stream's row is locked. The count of reports beside it is read as of the statement's start, and that is
        enough: only who has the stream writes it, and who takes the stream waits for the lock before it reads.
        """
        return {
            host: StreamPlace(broker_id, stream_epoch, epoch or "", sequence or 0)
            for some in chunks(sorted(hosts))
            for host, broker_id, stream_epoch, epoch, sequence in self._all(
                session, self._places, [(host,) for host in some]
            )
        }

    def put_answers(
        self, session: Session, answers: Mapping[tuple[str, int], str | None], broker_id: str
    ) -> Sequence[str]:
        """Note why directives on streams, by host and number, were refused; None: one was taken. Whose row it changed.

        Mostly nothing was refused, and nothing is noted of the host either.
        """
        changed: list[str] = []
        taken = sorted((host, broker_id, number) for (host, number), error in answers.items() if error is None)
        for some in chunks(taken):
            changed += [host for (host,) in self._all(session, self._take_back, some)]
        for (host, number), error in answers.items():
            if error is not None:
                values = {"directive_error": error, "which": host, "at": broker_id, "under": number}
                changed += [host] * session.execute(self._refuse, self._refuse.arguments(values))
        return changed

    def _all(self, session: Session, make: Callable[[int], Statement], rows: Sequence[tuple[Any, ...]]) -> list[Row]:
        statement = make(len(rows))
        values = [value for row in rows for value in row]
        return session.all(statement, dict(zip(statement.names, values, strict=True)))

    def _beginning(self, count: int) -> Statement:
        insert = self._compiler.insert(host_streams).values(numbered(STREAM_COLUMNS, count))
        changing: dict[str, Any] = {name: insert.excluded[name] for name in STREAM_COLUMNS if name not in _OWN}
        changing["stream_epoch"] = host_streams.c.stream_epoch + literal_column("1")
        return self._upserting(insert.on_conflict_do_update(index_elements=["host"], set_=changing), count)

    def _going_on(self, count: int) -> Statement:
        insert = self._compiler.insert(host_streams).values(numbered(STREAM_COLUMNS, count))
        upsert = insert.on_conflict_do_update(
            index_elements=["host"],
            set_={name: insert.excluded[name] for name in STREAM_COLUMNS if name not in _OWN},
            where=and_(
                host_streams.c.broker_id == insert.excluded.broker_id,
                host_streams.c.stream_epoch == insert.excluded.stream_epoch,
            ),
        )
        return self._upserting(upsert, count)

    def _upserting(self, upsert: sqlite.Insert | postgresql.Insert, count: int) -> Statement:
        statement = self._compiler(upsert.returning(host_streams.c.host, host_streams.c.stream_epoch))
        assert statement.names == tuple(f"{name}_{n}" for n in range(count) for name in STREAM_COLUMNS)
        return statement

    def _select_places(self, count: int) -> Statement:
        streams, sequences = host_streams.c, report_sequences.c
        query = select(
            streams.host, streams.broker_id, streams.stream_epoch, sequences.epoch, sequences.acknowledged_sequence
        ).outerjoin_from(host_streams, report_sequences, sequences.host == streams.host)
        hosts = [row["host"] for row in numbered(["host"], count)]
        return self._compiler(query.where(streams.host.in_(hosts)).with_for_update(key_share=True, of=host_streams))

    def _clear_errors(self, count: int) -> Statement:
        columns = host_streams.c
        own: list[ColumnElement[bool]] = [
            and_(
                columns.host == row["host"], columns.broker_id == row["broker_id"], columns.stream_epoch == row["under"]
            )
            for row in numbered(["host", "broker_id", "under"], count)
        ]
        statement = update(host_streams).where(or_(*own), columns.directive_error.is_not(None))
        return self._compiler(statement.values(directive_error=null()).returning(columns.host))
