"""PostgreSQL: the same schema on a server. One connection writes and holds the lock, a bounded pool of others reads.

The lock is a session lock of the connection that writes: it can't be left behind, and a broker that has lost it can't
write, since it has lost the connection too. After a lost connection the session connects again and takes the lock
again, before anything is written.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import psycopg
from psycopg import conninfo, errors, pq
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from typing_extensions import override

from certplane.broker.store.migrate import SchemaError, check_current, migrate, upgrade_notices
from certplane.broker.store.schema import metadata
from certplane.broker.store.session import Database, Fault, SqlError
from certplane.broker.store.soundness import RESTORE
from certplane.broker.store.statements import Compiler, Row, Statement
from certplane.broker.store.transactions import SqlSession
from certplane.errors import CertplaneError, ConfigurationError, ConfigurationProblem, OperationError
from certplane.runtime.pool import BlockingPool

_log = logging.getLogger("certplane.store")

_LOCK: Final = 0x43504C4E
"""The advisory lock's number, in the database's own space: SQLite's application_id once more."""
_READERS: Final = 4
_CONNECT: Final = timedelta(seconds=5)
_LOST: Final = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""A server that is gone without a word, as after a failover, is noticed within 25 seconds: Linux would wait for a
quarter of an hour, and with it every write of the broker. What the URL says of these counts for more."""

_ENCODING: Final = "UTF8"
"""Of the database: SQL_ASCII, which `initdb` takes where the locale is C, hands out bytes of unknown meaning, and any
other has no room for names and messages that a CA or a host may send."""

_NOT_OURS: Final = """
    SELECT relname FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relname = ANY(%s)
    AND NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
             AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))
    ORDER BY relname
"""

_Connection = psycopg.Connection[Row]

_ONCE_MORE: Final = "see that the server runs and can be reached, then start again"
_REMEDIES: Final = {
    Fault.BUSY: "end the session that holds a lock on the broker's tables (see pg_stat_activity: a pg_dump or an open "
    "transaction, say), then start again",
    Fault.FULL: "make space on the server, then start again",
    Fault.BROKEN: RESTORE,
    Fault.LOST: _ONCE_MORE,
    Fault.UNREACHABLE: _ONCE_MORE,
}
"""Of a start that failed; other faults are the configuration's."""

_FAULTS: Final[tuple[tuple[type[psycopg.Error], Fault], ...]] = (
    (errors.DiskFull, Fault.FULL),
    (errors.LockNotAvailable, Fault.BUSY),
    (errors.QueryCanceled, Fault.BUSY),
    (errors.DeadlockDetected, Fault.BUSY),
    (errors.SerializationFailure, Fault.BUSY),
    (errors.ReadOnlySqlTransaction, Fault.UNREACHABLE),
    (errors.DataCorrupted, Fault.BROKEN),
    (errors.IndexCorrupted, Fault.BROKEN),
    (errors.IntegrityError, Fault.REJECTED),
)


def fault_of(error: psycopg.Error, *, lost: bool) -> SqlError:
    """What a driver's exception means here; its first line, since details may hold a row's values."""
    text = str(error).partition("\n")[0]
    if lost:
        return SqlError(Fault.LOST, text or "the connection was lost")
    return SqlError(next((fault for kind, fault in _FAULTS if isinstance(error, kind)), Fault.OTHER), text)


def _connect(url: str, wait: timedelta, *, read_only: bool = False) -> _Connection:
    """A connection in autocommit mode, so that transactions are begun and ended by us alone.

    Raises:
        SqlError: UNREACHABLE.
    """
    milliseconds = wait // timedelta(milliseconds=1)
    # Whatever the server's default is: a commit returns when it is on the disk.
    setting = "SET default_transaction_read_only = on" if read_only else "SET synchronous_commit = on"
    connection: _Connection | None = None
    try:
        said = conninfo.conninfo_to_dict(url)
        connection = psycopg.connect(
            conninfo.make_conninfo(url, **{name: value for name, value in _LOST.items() if name not in said}),
            autocommit=True,
            connect_timeout=int(_CONNECT.total_seconds()),
            application_name="certplane-broker",
            client_encoding=_ENCODING,  # whatever the URL says
            # After the URL's own, a search_path say: the last one counts.
            options=f"{said.get('options', '')} -c lock_timeout={milliseconds} -c statement_timeout={4 * milliseconds}",
        )
        connection.execute(setting)
    except psycopg.Error as error:
        if connection is not None:
            connection.close()
        raise SqlError(Fault.UNREACHABLE, str(error).partition("\n")[0]) from error
    return connection


def look_at(url: str, wait: timedelta) -> list[str]:
    """What a start would find of the database at `url`, without a lock and without changing anything; notices.

    Raises:
        ConfigurationError: a start would refuse it.
    """
    try:
        connection = _connect(url, wait)
    except SqlError as error:
        return [f"store.url: the database can't be reached from here ({error}); without it no broker starts"]
    with contextlib.closing(connection):
        _check_encoding(connection)
        try:
            found = _revision(connection)
        except psycopg.Error as error:
            return [f"store.url: the schema can't be read ({str(error).partition(chr(10))[0]})"]
    try:
        return upgrade_notices("store.url", found)
    except SchemaError as error:
        raise _configuration(*error.args) from error


def _check_encoding(connection: _Connection) -> None:
    """Whether texts survive in the database."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != _ENCODING:
        raise _configuration(
            f"the database's encoding is {encoding}, and must be {_ENCODING}",
            f"make another one: createdb --encoding {_ENCODING} --template template0 --owner USER NAME",
        )


def _revision(connection: _Connection) -> str | None:
    row = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
    found = connection.execute("SELECT version_num FROM alembic_version").fetchone() if row and row[0] else None
    return None if found is None else str(found[0])


class PostgresqlSession(SqlSession):
    """`Session` over one connection that is made again when it was lost."""

    def __init__(self, url: str, wait: timedelta, *, exclusive: bool) -> None:
        """Connect, take the lock and bring the schema up to date (`exclusive`), or see that it is.

        Raises:
            OperationError: the server can't be reached, or another broker holds the lock.
            ConfigurationError: the URL or the schema is wrong.
        """
        self._url = url
        self._wait = wait
        self._exclusive = exclusive
        try:
            self._connection = self._open()
        except SqlError as error:
            if error.fault is Fault.BUSY:
                raise OperationError(
                    "store.url: another broker uses this database",
                    remedy="stop it first, or give this one a database of its own",
                ) from error
            raise OperationError(
                f"store.url: the database can't be reached ({error})", remedy="check store.url and the server"
            ) from error
        try:
            self._check_usable()
            self._bring_up_to_date()
            self._check_rights()
            if exclusive and self._run("SHOW fsync").fetchone() == ("off",):
                _log.warning("store.url: the server runs with fsync=off, so a power cut can undo what was acknowledged")
        except SqlError as error:
            self.close()
            remedy = "it must be the broker's own: make its user the owner of the database and of all that is in it"
            raise OperationError(
                f"store.url: the database can't be used ({error})", remedy=_REMEDIES.get(error.fault, remedy)
            ) from error
        except BaseException:
            self.close()
            raise

    @property
    @override
    def in_transaction(self) -> bool:
        status = self._connection.info.transaction_status
        return status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)

    @override
    def begin(self) -> None:
        self._ensure()
        self._run("BEGIN")

    @override
    def rollback(self) -> None:
        if not self._connection.closed and self.in_transaction:
            with contextlib.suppress(psycopg.Error):
                self._connection.execute("ROLLBACK")

    @override
    def execute(self, statement: Statement, arguments: Sequence[object]) -> int:
        if not self.in_transaction:
            self._ensure()
        return super().execute(statement, arguments)

    @override
    def abandon(self) -> None:
        """The server looks after its own disk."""

    @override
    def close(self) -> None:
        with contextlib.suppress(psycopg.Error):
            # The server releases the lock by itself, but some time after the close: the next broker may start at once.
            self._connection.execute("SELECT pg_advisory_unlock_all()")
        with contextlib.suppress(psycopg.Error):
            self._connection.close()

    def _open(self) -> _Connection:
        """A connection that holds the lock.

        Raises:
            SqlError: UNREACHABLE, or BUSY if another broker has the lock.
        """
        connection = _connect(self._url, self._wait)
        try:
            query = "SELECT pg_try_advisory_lock(%s)"
            row = connection.execute(query, (_LOCK,)).fetchone() if self._exclusive else (True,)
        except psycopg.Error as error:
            connection.close()
            raise SqlError(Fault.UNREACHABLE, str(error).partition("\n")[0]) from error
        if row is None or not row[0]:
            connection.close()
            raise SqlError(Fault.BUSY, "another broker holds the database's lock")
        return connection

    def _ensure(self) -> None:
        if self._connection.closed:
            self._connection = self._open()

    @override
    def _run(self, sql: str, arguments: Sequence[object] | None = None) -> psycopg.Cursor[Row]:
        try:
            return self._connection.execute(sql.encode(), arguments)
        except psycopg.Error as error:
            raise fault_of(error, lost=self._connection.closed) from error

    def _check_usable(self) -> None:
        """Whether texts survive in the database, and anything can be written."""
        _check_encoding(self._connection)
        if self._run("SHOW transaction_read_only").fetchone() == ("on",):
            raise OperationError(
                "store.url: the database can only be read: a standby, or default_transaction_read_only is on",
                remedy="name the primary server in store.url, or let the broker's user write",
            )

    def _check_rights(self) -> None:
        """Whether what is there, made by another user perhaps, may be read and written."""
        if closed := self._run(_NOT_OURS, (sorted(metadata.tables),)).fetchall():
            names = ", ".join(str(row[0]) for row in closed)
            raise OperationError(
                f"store.url: the broker's user may not read and write {names}",
                remedy="make it the owner: REASSIGN OWNED BY, or ALTER TABLE ... OWNER TO",
            )

    def _bring_up_to_date(self) -> None:
        try:
            revision = _revision(self._connection)
        except psycopg.Error as error:
            raise fault_of(error, lost=self._connection.closed) from error
        try:
            if self._exclusive:
                migrate("postgresql+psycopg://", self._connect_to_migrate, revision)
            else:
                check_current(revision)
        except SchemaError as error:
            raise _configuration(*error.args) from error
        except SQLAlchemyError as error:
            cause = error.__cause__
            remedy = "the database must be the broker's own: its user must be able to create tables"
            if isinstance(error, DBAPIError) and isinstance(cause, psycopg.Error):
                if isinstance(cause, psycopg.OperationalError):  # what the server can't do, not what it refuses
                    remedy = _ONCE_MORE
                cause = fault_of(cause, lost=error.connection_invalidated)
                remedy = _REMEDIES.get(cause.fault, remedy)
            raise OperationError(
                f"store.url: the schema can't be brought up to date ({cause or error})", remedy=remedy
            ) from error

    def _connect_to_migrate(self) -> _Connection:
        """A connection that waits for another's lock as every other does: a migration locks whole tables.

        A session that reads one and never ends its transaction would hold up the start without a word. What the
        migration itself does takes the time that it takes, whatever the server's defaults are.
        """
        connection = _connect(self._url, self._wait)
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            connection.execute(f"SET {name} = 0".encode())
        connection.autocommit = False  # SQLAlchemy begins no transaction by itself: the driver does
        return connection


class PostgresqlReader(Database):
    """`Database` over a pool of connections, one a thread, each made when it is first wanted."""

    def __init__(self, url: str, wait: timedelta) -> None:
        self.compiler = Compiler("postgresql")
        self._url = url
        self._wait = wait
        self._pool = BlockingPool("store-read", _READERS)
        self._mine = threading.local()
        self._open: set[_Connection] = set()
        self._lock = threading.Lock()
        self._closed = False

    @override
    async def one(self, statement: Statement, values: Mapping[str, object]) -> Row | None:
        rows = await self.all(statement, values)
        return rows[0] if rows else None

    @override
    async def all(self, statement: Statement, values: Mapping[str, object]) -> list[Row]:
        return await self._pool.run(self._fetch, statement, statement.arguments(values))

    async def close(self) -> None:
        """Close the connections; a query under way is cut off."""
        self._pool.close()
        with self._lock:
            self._closed = True
            for connection in self._open:
                with contextlib.suppress(psycopg.Error):
                    connection.close()

    def _fetch(self, statement: Statement, arguments: Sequence[object]) -> list[Row]:
        for last in (False, True):
            connection = self._connection()
            try:
                return connection.execute(statement.sql.encode(), arguments).fetchall()
            except psycopg.Error as error:
                # A connection that the server or the network closed while it was idle: a query may be asked again.
                if last or not connection.closed:
                    raise fault_of(error, lost=connection.closed) from error
        raise AssertionError("unreachable")

    def _connection(self) -> _Connection:
        connection: _Connection | None = getattr(self._mine, "connection", None)
        if connection is not None and not connection.closed:
            return connection
        new = _connect(self._url, self._wait, read_only=True)
        with self._lock:
            if self._closed:  # meanwhile
                new.close()
                raise SqlError(Fault.UNREACHABLE, "the store is closed")
            if connection is not None:
                self._open.discard(connection)
            self._open.add(new)
        self._mine.connection = new
        return new


def _configuration(message: str, remedy: str) -> CertplaneError:
    return ConfigurationError([ConfigurationProblem("", None, "store.url", message, remedy)])
