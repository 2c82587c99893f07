"""Whether a database is whole: SQLite's read from end to end, as often as somebody wants to know, and never by a start.

`broken_pages` and `broken_references` are for a person at the file; `SqliteSoundness` looks at the pages piece by piece
beside a running broker's work. All read with a connection of their own, and no writer waits for them. What a server
knows of its own files `ServerSoundness` asks it.

SQLite walks through a table and its indexes in one statement, which can be interrupted and not slowed down. So the disk
is spared from outside: the file is read ahead at a bounded rate, and what is checked then is in the page cache already,
as far as there is room for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import text
from typing_extensions import override

from certplane.broker.ports import Soundness
from certplane.broker.store import sqlite
from certplane.broker.store.audit_log import reading
from certplane.broker.store.session import Database, Fault, SqlError
from certplane.errors import OperationError, Reason, RefusalError
from certplane.runtime.pool import BlockingPool
from certplane.runtime.text import counted

QUICK_AT_START: Final = 16 << 20
"""Octets: a file of no more than this is checked at the start too, in some hundredths of a second."""
MOST_FINDINGS: Final = 20
"""Of a table, or a file: who has so many needs a copy and no longer list."""
_PIECE: Final = 4 << 20
_PAUSE: Final = 0.125
"""Octets that are read ahead, and seconds between them: 32 MiB a second, a quarter of what a slow disk reads."""
_AGAIN: Final = 0.02
"""Seconds between interrupts."""


RESTORE: Final = "stop the broker and restore the database: docs/operations.md, 'Restore'"


def corrupt(place: str, error: BaseException) -> OperationError | None:
    """What a start says of a read that failed because the database at `place` is damaged; None for other failures."""
    cause = error if isinstance(error, SqlError) else error.__cause__
    if not isinstance(cause, SqlError) or cause.fault is not Fault.BROKEN:
        return None
    return OperationError(f"{place}: the database is corrupt ({cause})", remedy=RESTORE)


def broken_pages(connection: sqlite3.Connection, *, full: bool) -> list[str]:
    """What is wrong with a database's pages, nothing if it is whole.

    Args:
        connection: To it; one snapshot is read.
        full: Compare each index with its table too, which takes several times as long.

    Raises:
        sqlite3.Error: it can't be read so far.
    """
    pragma = "integrity_check" if full else "quick_check"
    try:
        found = _findings(connection, f"PRAGMA {pragma}({MOST_FINDINGS})")
    except sqlite3.DatabaseError as error:
        if sqlite.fault_of(error).fault is not Fault.BROKEN:
            raise
        found = [str(error)]
    if not found:
        return []
    # SQLite tells pages, and ends where it can't go on: which tables are hurt each tells by itself.
    named = [line for table in _tables(connection) for line in _table_findings(connection, table)]
    return list(dict.fromkeys(named + found))[:MOST_FINDINGS]


def broken_references(connection: sqlite3.Connection) -> list[str]:
    """Rows that refer to a row that isn't there.

    Raises:
        sqlite3.Error: as `broken_pages`.
    """
    rows = connection.execute("PRAGMA foreign_key_check").fetchmany(MOST_FINDINGS)
    return [f"row {rowid} of {table} refers to a row of {parent} that isn't there" for table, rowid, parent, _ in rows]


def _tables(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]


def _table_findings(connection: sqlite3.Connection, table: str) -> list[str]:
    """What is wrong with a table and its indexes, with its name where SQLite gives up and says none."""
    try:
        return _findings(connection, f"PRAGMA quick_check('{table}')")
    except sqlite3.DatabaseError as error:
        fault = sqlite.fault_of(error)
        if fault.fault is not Fault.BROKEN:
            raise
        return [f"the table {table}: {fault}"]


def _findings(connection: sqlite3.Connection, sql: str) -> list[str]:
    lines = [" ".join(str(line).split()) for (line,) in connection.execute(sql)]
    return [] if lines == ["ok"] else lines


class SqliteSoundness(Soundness):
    """`Soundness` of the file that this process has open."""

    def __init__(self, path: Path, database: int | None) -> None:
        """Nothing is looked at yet; nothing is read ahead without `database`.

        `database` is a descriptor of the file, and of whoever closes it after every connection.
        """
        self._path = path
        self._database = database
        self._pool = BlockingPool("store-check", 1)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    @override
    async def damage(self) -> Sequence[str]:
        return await self._pool.run(self._look)

    async def close(self) -> None:
        """End what is under way, at once."""
        self._stopping.set()
        while True:  # an interrupt between two statements is lost, so that one isn't enough
            with self._lock:
                if self._connection is None:
                    break
                self._connection.interrupt()
            await asyncio.sleep(_AGAIN)
        await self._pool.run(lambda: None)  # after the look, which has a descriptor in use
        self._pool.close()

    def _look(self) -> list[str]:
        try:
            if self._database is not None:
                self._read_ahead(self._database)
            with self._reading() as connection:
                if connection is None:
                    return []
                found: list[str] = []
                for table in _tables(connection):
                    if self._stopping.is_set():
                        break
                    # A table at a time: a snapshot that is kept keeps the write-ahead log from being started over.
                    found += _table_findings(connection, table)
                return found[:MOST_FINDINGS]
        except sqlite3.Error as error:
            if self._stopping.is_set():
                return []
            fault = sqlite.fault_of(error)
            if fault.fault is Fault.BROKEN:
                return [str(fault)]
            raise RefusalError(Reason.STORE_UNAVAILABLE, f"the database can't be checked: {fault}") from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection that `close` can interrupt; None if it was called already."""
        connection = sqlite.connect_to_read(self._path)
        try:
            with self._lock:
                if not self._stopping.is_set():
                    self._connection = connection
            yield self._connection
        finally:
            with self._lock:
                self._connection = None
                connection.close()

    def _read_ahead(self, database: int) -> None:
        for offset in range(0, os.fstat(database).st_size, _PIECE):
            with contextlib.suppress(OSError):  # a file system without it is read by the check alone
                os.posix_fadvise(database, offset, _PIECE, os.POSIX_FADV_WILLNEED)
            if self._stopping.wait(_PAUSE):
                return


_FAILURES: Final = text(
    "SELECT coalesce(checksum_failures, 0) FROM pg_stat_database WHERE datname = current_database()"
)
_INVALID: Final = text(
    "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indrelid"
    " WHERE relnamespace = current_schema()::regnamespace AND NOT (indisvalid AND indisready) ORDER BY 1"
)
"""Compiled when they are asked, once a day: they are PostgreSQL's alone."""


class ServerSoundness(Soundness):
    """`Soundness` of a PostgreSQL database: what the server has noticed by itself, which is all that a client can tell.

    Pages that nobody has read since they broke are not among it, and without data checksums hardly any; `pg_amcheck` on
    the server looks at them.
    """

    def __init__(self, database: Database) -> None:
        """Ask through `database`."""
        self._database = database

    @override
    async def damage(self) -> Sequence[str]:
        with reading():
            failures = await self._database.one(self._database.compiler(_FAILURES), {})
            invalid = await self._database.all(self._database.compiler(_INVALID), {})
        found = [f"the index {row[0]} is invalid" for row in invalid[:MOST_FINDINGS]]
        if failures is not None and failures[0]:
            found.append(f"the server has read {counted(failures[0], 'page')} with a wrong checksum")
        return found

    async def close(self) -> None:
        """Nothing is kept."""
