"""SQLite: the embedded default. One connection writes, two read, one copies the log.

Durable means write-ahead log with `synchronous=FULL`: a commit returns after its sync. The quick, indexed reads of a
call are done in the event loop on a read-only connection (about 20 us, against 100 us for a thread's turn); what may
take longer runs on a thread with a connection of its own. A reader sees what is committed and waits for nobody.

No descriptor of the database file that is opened by other means is closed while connections to it are open in this
process: closing one drops SQLite's own locks (POSIX record locks belong to the process, not to a descriptor).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import quote

from typing_extensions import override

from certplane.broker.store.session import Database, Fault, SqlError
from certplane.broker.store.statements import Compiler, Row, Statement
from certplane.broker.store.transactions import SqlSession
from certplane.runtime.pool import BlockingPool

_STATEMENTS: Final = 512
"""Prepared statements kept by a connection: more than there are, with an audit insert for each number of rows."""
_LOG_KEEP: Final = 64 << 20
"""Bytes: a log that once grew beyond this is cut back to it. Below, its blocks are written over, which syncs faster."""
_READ_WAIT: Final = timedelta(milliseconds=50)
"""A reader of a write-ahead log waits only while somebody recovers the log; this long, since the loop waits with it."""

_left_open: Final[list[sqlite3.Connection]] = []
"""Connections that must live as long as the process: a forgotten one is closed."""

_FAULTS: Final = {
    sqlite3.SQLITE_BUSY: Fault.BUSY,
    sqlite3.SQLITE_LOCKED: Fault.BUSY,
    sqlite3.SQLITE_FULL: Fault.FULL,
    sqlite3.SQLITE_CORRUPT: Fault.BROKEN,
    sqlite3.SQLITE_NOTADB: Fault.BROKEN,
    sqlite3.SQLITE_CONSTRAINT: Fault.REJECTED,
}


def fault_of(error: sqlite3.Error) -> SqlError:
    """What a driver's exception means here."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code in (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC):
        fault = Fault.BROKEN
    else:
        fault = _FAULTS.get(code & 0xFF, Fault.OTHER)  # the low byte is the primary code
    name = getattr(error, "sqlite_errorname", "")
    return SqlError(fault, f"{error} ({name})" if name else str(error))


def _connect(path: Path, mode: str, wait: timedelta) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=wait.total_seconds(),
        isolation_level=None,  # transactions are begun and ended by us alone
        check_same_thread=False,  # opened on one thread, used by one other
        cached_statements=_STATEMENTS,
    )


def connect_to_look(path: Path, wait: timedelta) -> sqlite3.Connection:
    """A connection to an existing file that may be anybody's; nothing is set in it yet."""
    return _connect(path, "rw", wait)


def connect_to_write(path: Path, wait: timedelta) -> sqlite3.Connection:
    """A connection that writes, to an existing database of ours; waits `wait` for another's lock.

    Raises:
        sqlite3.Error: the file can't be used.
    """
    connection = _connect(path, "rw", wait)
    try:
        _use_log(connection)
        for pragma in (
            "synchronous = FULL",
            "foreign_keys = ON",
            "wal_autocheckpoint = 0",  # see `checkpoint`
            f"journal_size_limit = {_LOG_KEEP}",
            "trusted_schema = OFF",
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _use_log(connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise sqlite3.OperationalError(f"the file system allows no write-ahead log (journal mode {mode})")


def connect_to_copy_log(path: Path) -> sqlite3.Connection:
    """A connection for checkpoints."""
    connection = _connect(path, "rw", timedelta())
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that reads."""
    connection = _connect(path, "ro", _READ_WAIT)
    connection.execute("PRAGMA query_only = ON")
    return connection


class SqliteSession(SqlSession):
    """`Session` over one connection."""

    BEGIN: ClassVar = "BEGIN IMMEDIATE"
    """The lock is taken here or not at all, never in the middle."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__()
        self._connection = connection
        self._cursor = connection.cursor()
        self._abandoned = False

    @property
    @override
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    @override
    def lock(self, keys: Sequence[int]) -> None:
        """Nobody else has a transaction that writes."""

    @override
    def rollback(self) -> None:
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    @override
    def abandon(self) -> None:
        self._abandoned = True

    @override
    def close(self) -> None:
        if self._abandoned:
            # Closing the last connection would copy the log and remove it. The next start finds it, and copies all of
            # it.
            _left_open.append(self._connection)
            return
        with contextlib.suppress(sqlite3.Error):
            # A statement that a cursor still holds keeps the file open behind a closed connection.
            self._cursor.close()
            self._connection.close()

    @override
    def _run(self, sql: str, arguments: Sequence[object] | None = None) -> sqlite3.Cursor:
        try:
            return self._cursor.execute(sql, arguments or ())
        except sqlite3.Error as error:
            raise fault_of(error) from error


class SqliteReader(Database):
    """`Database` over two read-only connections: one for the loop, one for a thread."""

    def __init__(self, path: Path) -> None:
        self.compiler = Compiler("sqlite")
        self._quick = connect_to_read(path)
        self._long = connect_to_read(path)
        self._pool = BlockingPool("store-read", 1)
        self._cursor = self._quick.cursor()

    @property
    @override
    def standing(self) -> int:
        """A file that is open stays the file that it is."""
        return 0

    @override
    async def one(self, statement: Statement, values: Mapping[str, object]) -> Row | None:
        rows = _fetch(self._cursor, statement, values)
        return rows[0] if rows else None

    @override
    async def all(self, statement: Statement, values: Mapping[str, object]) -> list[Row]:
        return await self._pool.run(_fetch, self._long, statement, values)

    async def close(self) -> None:
        """Close the connections, after the query that is under way."""
        await self._pool.run(self._long.close)
        self._pool.close()
        self._cursor.close()
        self._quick.close()


def _fetch(
    source: sqlite3.Connection | sqlite3.Cursor, statement: Statement, values: Mapping[str, object]
) -> list[Row]:
    """All rows. A query must be read to its end: until then it keeps the log from being started over."""
    try:
        return source.execute(statement.sql, statement.arguments(values)).fetchall()
    except sqlite3.Error as error:
        raise fault_of(error) from error
