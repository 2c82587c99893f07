"""PostgreSQL: the same schema on a server. One connection writes, a bounded pool of others reads.

The connection that writes holds a lock that all brokers of the database share, and that whoever copies the database has
alone. It is its session's lock: it can't be left behind, and who has lost it can't write, having lost the connection
too. After a lost connection the session connects again and takes the lock again, before anything is written. A server
that can't be written any more, as a primary that was demoted, is left for the one of the URL that can.

With a pooler in between, `direct_url` leads past it: what is a session's (the lock, a transaction that writes) goes
there, and only what reads goes over the pooler, a transaction each and nothing kept.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final

import psycopg
from psycopg import errors, pq
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from typing_extensions import override

from certplane.broker.store.migrate import (
    FoundSchema,
    SchemaError,
    check_current,
    check_known,
    check_whole,
    upgrade_notices,
)
from certplane.broker.store.postgresql_reader import Standing
from certplane.broker.store.postgresql_schema import (
    alone_migrating,
    check_none_is_shut_out,
    connect_to_migrate,
    migrate_beside_others,
    schema_of,
    without_limits,
)
from certplane.broker.store.schema import APPLICATION_ID, SCHEMA_REVISION, metadata
from certplane.broker.store.servers import (
    ENCODING,
    Connection,
    PoolerError,
    ReadOnlyServerError,
    connect,
    fault_of,
    first_line,
    own_session,
    place,
    refuse_shared_session,
    run,
    several_hosts,
    standby_notices,
)
from certplane.broker.store.session import Fault, SqlError
from certplane.broker.store.soundness import RESTORE
from certplane.broker.store.statements import Row, Statement
from certplane.broker.store.transactions import SqlSession
from certplane.errors import CertplaneError, ConfigurationError, ConfigurationProblem, OperationError

_log = logging.getLogger("certplane.store")

_LOCK: Final = APPLICATION_ID
"""The advisory lock's number, in the database's own space."""
_DECIDING: Final = "SELECT pg_advisory_xact_lock(%s, key) FROM unnest(%s::integer[]) AS key"
"""Locks of decisions (`locks`), in their order. Two numbers: a space of its own, apart from the locks of one number."""
_AMONG_BROKERS: Final = "SELECT pg_try_advisory_lock_shared(%s)"
_ALONE: Final = "SELECT pg_try_advisory_lock(%s)"

_NOT_OURS: Final = """
    SELECT relname FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relname = ANY(%s)
    AND NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
             AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))
    ORDER BY relname
"""


_ANYTHING: Final = "SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
_ONCE_MORE: Final = "see that the server runs and can be reached, then start again"
_REMEDIES: Final = {
    Fault.BUSY: "end the session that holds a lock on the broker's tables (see pg_stat_activity: a pg_dump or an open "
    "transaction, say), then start again",
    Fault.FULL: "make space on the server, then start again",
    Fault.BROKEN: RESTORE,
    Fault.LOST: _ONCE_MORE,
    Fault.UNREACHABLE: _ONCE_MORE,
    Fault.UNDONE: "start again",
}
"""Of a start that failed; other faults are the configuration's."""


def look_at(url: str, wait: timedelta, *, key: str = "store.url") -> list[str]:
    """What a start would find of the database at `url`, without a lock and without changing anything; notices.

    Args:
        url: As the session that writes would have it.
        wait: For locks.
        key: Where the URL stands in the configuration.

    Raises:
        ConfigurationError: a start would refuse it.
    """
    try:
        connection = connect(url, wait)
    except PoolerError as error:
        raise _pooled(error, key) from error
    except SqlError as error:
        return [f"{key}: the database can't be reached from here ({error}); without it no broker starts"]
    with contextlib.closing(connection):
        try:
            refuse_shared_session(connection, url, wait)
            own_session(connection, wait)
            _check_encoding(connection, key)
            found = schema_of(connection)
            standbys = standby_notices(connection, expected=several_hosts(url))
        except PoolerError as error:
            raise _pooled(error, key) from error
        except SqlError as error:
            return [f"{key}: the database can't be used ({error})"]
        except psycopg.Error as error:
            return [f"{key}: the schema can't be read ({first_line(error)})"]
    try:
        return [*upgrade_notices(key, found), *(f"{key}: {notice}" for notice in standbys)]
    except SchemaError as error:
        raise _configuration(*error.args, key=key) from error


def _check_encoding(connection: Connection, key: str) -> None:
    """Whether texts survive in the database."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != ENCODING:
        raise _configuration(
            f"the database's encoding is {encoding}, and must be {ENCODING}",
            f"make another one: createdb --encoding {ENCODING} --template template0 --owner USER NAME",
            key=key,
        )


def _open_session(url: str, wait: timedelta, lock: str = "") -> Connection:
    """A connection whose session is its own; `lock` is the query that takes the lock that it holds.

    Raises:
        SqlError: UNREACHABLE, or BUSY if somebody else's lock is in the way.
    """
    connection = connect(url, wait)
    try:
        refuse_shared_session(connection, url, wait)
        own_session(connection, wait)
        row = connection.execute(lock.encode(), (_LOCK,)).fetchone() if lock else (True,)
    except psycopg.Error as error:
        connection.close()
        raise SqlError(Fault.UNREACHABLE, first_line(error)) from error
    except SqlError:
        connection.close()
        raise
    if row is None or not row[0]:
        connection.close()
        raise SqlError(Fault.BUSY, "another program holds the database's lock")
    return connection


def _explain(error: SqlError, key: str) -> CertplaneError:
    """What is said of a connection that a start doesn't get."""
    if error.fault is Fault.BUSY:
        return OperationError(
            f"{key}: another program has this database to itself: a copy of it, or a broker of an older release",
            remedy="wait for its end, or stop it first",
        )
    if isinstance(error, PoolerError):
        return _pooled(error, key)
    if isinstance(error, ReadOnlyServerError):
        return OperationError(
            f"{key}: {error}",
            remedy=f"name the primary server in {key}, all servers that may become it, or let the broker's user write",
        )
    return OperationError(f"{key}: the database can't be reached ({error})", remedy=f"check {key} and the server")


@contextlib.contextmanager
def alone(url: str, wait: timedelta, key: str, *, empty: bool) -> Iterator[Connection]:
    """A connection to a database that this process alone has, for a copy: in no transaction, and without time limits.

    Args:
        url: Of the server itself.
        wait: For others' locks.
        key: Where the URL stands in the configuration.
        empty: It is to have no tables. Else it has the program's schema, and no row changes until the connection's
            transaction ends, which has begun.

    Raises:
        ConfigurationError: it has another schema or encoding, isn't empty, or is behind a pooler.
        OperationError: a broker has it, or it can't be reached.
    """
    try:
        connection = _open_session(url, wait, _ALONE)
    except SqlError as error:
        if error.fault is Fault.BUSY:
            raise OperationError(f"{key}: a broker uses this database", remedy="stop all its brokers first") from error
        raise _explain(error, key) from error
    with contextlib.closing(connection):
        try:
            _check_encoding(connection, key)
            without_limits(connection)
            if empty:
                if connection.execute(_ANYTHING).fetchone() != (0,):
                    text = "there is something in the target database"
                    raise _configuration(text, "make an empty one: createdb --owner USER NAME", key=key)
            else:
                check_whole(schema_of(connection))
                connection.autocommit = False
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                connection.execute(f"LOCK TABLE {', '.join(sorted(metadata.tables))} IN EXCLUSIVE MODE".encode())
            yield connection
        except SchemaError as error:
            raise _configuration(*error.args, key=key) from error
        except psycopg.Error as error:
            raise OperationError(
                f"{key}: {first_line(error)}", remedy="see the server's log, then try again"
            ) from error


class PostgresqlSession(SqlSession):
    """`Session` over one connection that is made again when it was lost."""

    BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
    """Whatever the server's default is: who has waited for a lock then reads what others have committed meanwhile."""

    def __init__(
        self, url: str, wait: timedelta, *, exclusive: bool, standing: Standing | None = None, key: str = "store.url"
    ) -> None:
        """Connect, share the brokers' lock and bring the schema up to date (`exclusive`), or see that it is.

        Args:
            url: Of the server itself, or of a pooler that keeps sessions.
            wait: For locks; four times as long for a statement.
            exclusive: The broker's own use.
            standing: Told of each connection that is made anew.
            key: Where the URL stands in the configuration.

        Raises:
            OperationError: the server can't be reached, or somebody has the database to itself.
            ConfigurationError: the URL or the schema is wrong.
        """
        super().__init__()
        self._url = url
        self._wait = wait
        self._exclusive = exclusive
        self._standing = standing or Standing()
        self._key = key
        try:
            self._connection = self._open()
        except SqlError as error:
            raise _explain(error, key) from error
        try:
            _check_encoding(self._connection, self._key)
            if exclusive:
                self._warn()
            self._bring_up_to_date()
            self._check_rights()
        except SqlError as error:
            self.close()
            remedy = "it must be the broker's own: make its user the owner of the database and of all that is in it"
            raise OperationError(
                f"{self._key}: the database can't be used ({error})", remedy=_REMEDIES.get(error.fault, remedy)
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
        super().begin()

    @override
    def lock(self, keys: Sequence[int]) -> None:
        self._run(_DECIDING, (_LOCK, list(keys)))

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

    def _open(self) -> Connection:
        return _open_session(self._url, self._wait, _AMONG_BROKERS if self._exclusive else "")

    def _ensure(self) -> None:
        if self._connection.closed:
            self._connection = self._open()
            self._standing.changed()
            _log.warning("the database's connection was lost; writing goes on at %s", place(self._connection))

    @override
    def _run(self, sql: str, arguments: Sequence[object] | None = None) -> psycopg.Cursor[Row]:
        try:
            if arguments is None:
                return self._connection.execute(sql.encode())
            return run(self._connection, sql, arguments)
        except errors.ReadOnlySqlTransaction as error:
            # Nothing that is begun here will ever be written, and the next connection finds the server that writes.
            _log.warning("the server at %s can only be read now; it is left", place(self._connection))
            self._connection.close()
            raise fault_of(error, lost=False) from error
        except psycopg.Error as error:
            raise fault_of(error, lost=self._connection.closed) from error

    def _warn(self) -> None:
        """Log what the server may lose that it has acknowledged."""
        if self._run("SHOW fsync").fetchone() == ("off",):
            text = "%s: the server runs with fsync=off, so a power cut can undo what was acknowledged"
            _log.warning(text, self._key)
        try:
            notices = standby_notices(self._connection, expected=several_hosts(self._url))
        except psycopg.Error as error:
            raise fault_of(error, lost=self._connection.closed) from error
        for notice in notices:
            _log.warning("%s: %s", self._key, notice)

    def _check_rights(self) -> None:
        """Whether what is there, made by another user perhaps, may be read and written."""
        if closed := self._run(_NOT_OURS, (sorted(metadata.tables),)).fetchall():
            names = ", ".join(str(row[0]) for row in closed)
            raise OperationError(
                f"{self._key}: the broker's user may not read and write {names}",
                remedy="make it the owner: REASSIGN OWNED BY, or ALTER TABLE ... OWNER TO",
            )

    def _bring_up_to_date(self) -> None:
        try:
            found = self._found_schema()
            if not self._exclusive:
                check_current(found)
            elif found.revision != SCHEMA_REVISION:
                check_known(found)
                with alone_migrating(self._url, self._wait):
                    found = self._found_schema()
                    check_none_is_shut_out(self._connection, found)
                    migrate_beside_others(self._connect_to_migrate, found)
        except SchemaError as error:
            raise _configuration(*error.args, key=self._key) from error
        except SQLAlchemyError as error:
            cause = error.__cause__
            remedy = "the database must be the broker's own: its user must be able to create tables"
            if isinstance(error, DBAPIError) and isinstance(cause, psycopg.Error):
                if isinstance(cause, psycopg.OperationalError):  # what the server can't do, not what it refuses
                    remedy = _ONCE_MORE
                cause = fault_of(cause, lost=error.connection_invalidated)
                remedy = _REMEDIES.get(cause.fault, remedy)
            raise OperationError(
                f"{self._key}: the schema can't be brought up to date ({cause or error})", remedy=remedy
            ) from error

    def _found_schema(self) -> FoundSchema:
        try:
            return schema_of(self._connection)
        except psycopg.Error as error:
            raise fault_of(error, lost=self._connection.closed) from error

    def _connect_to_migrate(self) -> Connection:
        return connect_to_migrate(self._url, self._wait)


def _pooled(error: PoolerError, key: str) -> CertplaneError:
    remedy = "set store.direct_url to the server itself; store.url may stay the pooler's, for what only reads"
    if key == "store.direct_url":
        remedy = "name the server itself in store.direct_url"
    return _configuration(f"{error}, and the broker needs one of its own", remedy, key=key)


def _configuration(message: str, remedy: str, *, key: str) -> CertplaneError:
    return ConfigurationError([ConfigurationProblem("", None, key, message, remedy)])
