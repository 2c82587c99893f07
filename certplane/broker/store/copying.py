"""Copies all of a store into an empty one: every row of every table, in one transaction, compared by count and by hash.

    source, locked --rows in the order of their keys--> target, locked
            `- SHA-256 of what was read  ==  SHA-256 of what then stands there, before the commit

Rules it keeps:

- The target gets schema, rows, numbers of sequences and the audit event of the copy in one transaction: until its
  commit there is nothing, whatever happens.
- A table is never in memory: rows go through in the order of the primary key, which is the same in both databases
  (texts compare by their octets), and so does the hash.
- Nobody writes to the source meanwhile: the caller holds its broker's lock, and a lock against commands.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import sqlite3
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from sqlalchemy import Table, insert, select
from typing_extensions import override

from certplane.broker.proof.chain import ChainStart, next_hash
from certplane.broker.store.audit_records import EventRow
from certplane.broker.store.schema import audit_chains, audit_events, metadata
from certplane.broker.store.statements import Compiler, Driver, Row, limited_to
from certplane.errors import OperationError
from certplane.runtime.text import counted

_BATCH: Final = 1_000
"""Rows at a time: some megabytes of the largest, orders with their CSRs and audit records."""
_TELL: Final = 100_000
"""Rows after which progress is told."""

_NEWEST: Final = (
    select(audit_events.c.sequence, audit_events.c.chain_id, audit_events.c.number, audit_events.c.hash)
    .order_by(audit_events.c.sequence.desc())
    .suffix_with(limited_to(1))
)

Progress = Callable[[str], None]


class WholeTables(Compiler):
    """Makes statements that read whole tables, which is what a copy is: the tests of query plans pass over them."""


class Database(ABC):
    """A database inside a transaction that somebody else begins and ends."""

    def __init__(self, driver: Driver) -> None:
        self._compiler = WholeTables(driver)

    def select(self, table: Table) -> str:
        """The query of all rows of a table in the order of its primary key."""
        return self._compiler(select(table).order_by(*table.primary_key)).sql

    def insert(self, table: Table, columns: Sequence[str]) -> str:
        """The statement that adds a row."""
        return self._compiler(insert(table).inline(), columns).sql

    @abstractmethod
    def rows(self, table: Table) -> Iterator[Row]:
        """All rows of a table, in the order of its primary key."""

    @abstractmethod
    def add(self, table: Table, rows: Iterable[Row]) -> None:
        """Add rows with all their columns."""

    @abstractmethod
    def last_number(self, table: Table, column: str) -> int:
        """The highest number that a column was ever given by the database itself; 0 if none was."""

    @abstractmethod
    def number_on(self, table: Table, column: str, last: int) -> None:
        """Let the database go on after `last`."""

    @abstractmethod
    def first(self, query: str) -> Row | None:
        """The first row of a query."""

    def add_event(self, event: EventRow, start_time: int) -> None:
        """Add an audit event at the end of the log, in a chain of its own that begins at this time."""
        newest = self.first(self._compiler(_NEWEST).sql) or (0, None, None, None)
        sequence = max(newest[0], self.last_number(audit_events, "sequence")) + 1
        after = tuple(newest[1:]) if newest[1] is not None else (0, 0, b"")
        start = ChainStart(self.last_number(audit_chains, "chain_id") + 1, str(uuid.uuid4()), start_time, *after)
        chain = {**dataclasses.asdict(start), "first_sequence": sequence, "pruned_number": 0, "end_time": None}
        row = {
            **event._asdict(),
            "sequence": sequence,
            "chain_id": start.chain_id,
            "number": 1,
            "hash": next_hash(start.genesis, 1, event),
        }
        for table, values in ((audit_chains, chain), (audit_events, row)):
            self.add(table, [tuple(values[name] for name in table.c.keys())])  # noqa: SIM118 - not a dict
        self.number_on(audit_chains, "chain_id", start.chain_id)
        self.number_on(audit_events, "sequence", sequence)


class SqliteDatabase(Database):
    """SQLite over a connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__("sqlite")
        self._connection = connection

    @override
    def rows(self, table: Table) -> Iterator[Row]:
        return iter(self._connection.execute(self.select(table)))

    @override
    def add(self, table: Table, rows: Iterable[Row]) -> None:
        self._connection.executemany(self.insert(table, table.c.keys()), rows)

    @override
    def last_number(self, table: Table, column: str) -> int:
        highest = self._number(f"SELECT max({column}) FROM {table.name}")  # noqa: S608 - names of the schema
        return max(highest, self._number("SELECT seq FROM sqlite_sequence WHERE name = ?", table.name))

    @override
    def number_on(self, table: Table, column: str, last: int) -> None:
        if table.dialect_options["sqlite"]["autoincrement"]:  # others take the highest that is there
            self._connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table.name,))
            self._connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table.name, last))

    @override
    def first(self, query: str) -> Row | None:
        row: Row | None = self._connection.execute(query).fetchone()
        return row

    def _number(self, query: str, *values: str) -> int:
        row = self._connection.execute(query, values).fetchone()
        return int((row and row[0]) or 0)


class PostgresqlDatabase(Database):
    """PostgreSQL over a connection that isn't in autocommit mode."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__("postgresql")
        self._connection = connection

    @override
    def rows(self, table: Table) -> Iterator[Row]:
        with self._connection.cursor(name="copied_rows") as cursor:  # a name: the server keeps the rows
            cursor.itersize = _BATCH
            yield from cursor.execute(self.select(table).encode())

    @override
    def add(self, table: Table, rows: Iterable[Row]) -> None:
        columns = ", ".join(f'"{name}"' for name in table.c.keys())  # noqa: SIM118 - not a dict
        with (
            self._connection.cursor() as cursor,
            cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN".encode()) as copy,
        ):
            for row in rows:
                copy.write_row(row)

    @override
    def last_number(self, table: Table, column: str) -> int:
        sequence = self._one("SELECT pg_get_serial_sequence(%s, %s)", table.name, column)
        return int(self._one(f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}"))  # noqa: S608

    @override
    def number_on(self, table: Table, column: str, last: int) -> None:
        self._one("SELECT setval(pg_get_serial_sequence(%s, %s), %s)", table.name, column, last)

    @override
    def first(self, query: str) -> Row | None:
        row: Row | None = self._connection.execute(query.encode()).fetchone()
        return row

    def _one(self, query: str, *values: object) -> Any:
        row = self._connection.execute(query.encode(), values or None).fetchone()
        assert row is not None
        return row[0]


@dataclass(frozen=True, slots=True)
class CopiedTable:
    """A table that is in the target as it was in the source."""

    table: str
    rows: int
    sha256: str


def copy_all(
    source: Database, target: Database, event: Callable[[Sequence[CopiedTable]], EventRow | None], progress: Progress
) -> list[CopiedTable]:
    """Copy and compare all tables; the target has the schema and no rows.

    Args:
        source: Read from.
        target: Written to; whoever calls commits, or undoes everything.
        event: Makes the audit event of the copy, if there is to be one.
        progress: Told a line now and then.

    Raises:
        OperationError: a row can't be read or written, or the target doesn't hold what was read.
        sqlite3.Error: the target can't be read again.
        psycopg.Error: the same.
    """
    read = [_copy(source, target, table, progress) for table in metadata.sorted_tables]
    for table, expected in zip(metadata.sorted_tables, read, strict=True):
        progress(f"{table.name}: comparing {counted(expected.rows, 'row')}")
        found = _Digest(table.name, lambda _: None)
        for _ in found.through(target.rows(table)):
            pass
        if found.copied != expected:
            raise OperationError(
                f"{table.name}: {counted(expected.rows, 'row')} read, SHA-256 {expected.sha256[:16]}, and"
                f" {found.rows} in the target, SHA-256 {found.copied.sha256[:16]}; nothing was copied",
                remedy="check both databases (`certplane-broker store check`, pg_amcheck), then copy again",
            )
    if (row := event(read)) is not None:
        target.add_event(row, row.create_time)
    return read


def _copy(source: Database, target: Database, table: Table, progress: Progress) -> CopiedTable:
    digest = _Digest(table.name, progress)
    try:
        target.add(table, digest.through(source.rows(table)))
    except (psycopg.Error, sqlite3.Error, UnicodeError) as error:
        cause = str(error).partition("\n")[0]
        raise OperationError(
            f"{table.name}: a row from {digest.rows + 1} to {digest.rows + _BATCH} can't be copied ({cause})",
            remedy="nothing was; mend it and copy again (`certplane-broker store check --full` finds a damaged source)",
        ) from error
    if (column := table.autoincrement_column) is not None and (last := source.last_number(table, column.name)):
        target.number_on(table, column.name, last)
    progress(f"{table.name}: {counted(digest.rows, 'row')}")
    return digest.copied


class _Digest:
    """Counts and hashes rows that go through; both drivers hand out None, int, str and bytes, and nothing else."""

    def __init__(self, table: str, progress: Progress) -> None:
        self._table = table
        self._progress = progress
        self._hash = hashlib.sha256()
        self.rows = 0

    @property
    def copied(self) -> CopiedTable:
        """What has gone through so far."""
        return CopiedTable(self._table, self.rows, self._hash.hexdigest())

    def through(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows, unchanged."""
        while batch := [*itertools.islice(rows, _BATCH)]:
            for row in batch:
                self._hash.update(repr(row).encode())  # a text for each value, and no two values with one text
                yield row
            self.rows += len(batch)
            if self.rows % _TELL == 0:
                self._progress(f"{self._table}: {counted(self.rows, 'row')} so far")
