"""The schema of a PostgreSQL database: which one it has, and who may bring it up to date."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final

import psycopg
from psycopg import errors
from sqlalchemy.exc import OperationalError

from certplane.broker.store.migrate import FoundSchema, SchemaError, found_schema, migrate
from certplane.broker.store.schema import APPLICATION_ID, READABLE_FROM
from certplane.broker.store.servers import Connection, connect, fault_of

_log = logging.getLogger("certplane.store")

MIGRATING: Final = APPLICATION_ID + 1
"""The advisory lock of who looks whether the schema is current and migrates it: of brokers that start together, one."""

_TRIES: Final = 4
"""As of a transaction that the server has undone for another's sake (`batch`)."""

_SHARED_SINCE: Final = "0013"
"""The first schema that brokers share; a program of before has its database to itself, by its lock."""
_SHUT_OUT: Final = """
    SELECT name || ' ' || address || ' (version ' || version || ')' FROM brokers
    WHERE schema_revision < %s AND lease_until > extract(epoch FROM clock_timestamp()) * 1000000 ORDER BY start_time
"""


def schema_of(connection: Connection) -> FoundSchema:
    """What the database has.

    Raises:
        psycopg.Error: it can't be read.
    """

    def first(query: str, *values: str) -> object:
        return next(iter(connection.execute(query.encode(), values or None).fetchone() or ()), None)

    return found_schema(lambda table: bool(first("SELECT to_regclass(%s) IS NOT NULL", table)), first)


def check_none_is_shut_out(connection: Connection, found: FoundSchema) -> None:
    """Whether no broker runs whose program can't use the schema that the database is to have.

    One that starts in this moment isn't seen: it has no lease yet, and serves nobody.

    Raises:
        SchemaError: one does.
        SqlError: the database doesn't answer.
    """
    if found.revision is None or found.revision < _SHARED_SINCE:
        return
    try:
        running = connection.execute(_SHUT_OUT.encode(), (READABLE_FROM,)).fetchall()
    except psycopg.Error as error:
        raise fault_of(error, lost=connection.closed) from error
    if running:
        names = ", ".join(str(row[0]) for row in running)
        raise SchemaError(
            f"brokers of an older release run that can't use the new schema: {names}",
            "stop them all, then start this one; or upgrade them one by one to a release in between first",
        )


@contextlib.contextmanager
def alone_migrating(url: str, wait: timedelta) -> Iterator[None]:
    """Be the one, of the brokers that start together, that migrates; the others wait for as long as that takes.

    Raises:
        SqlError: the database doesn't answer.
    """
    with contextlib.closing(connect(url, wait)) as connection:
        try:
            without_limits(connection)
            if connection.execute("SELECT pg_try_advisory_lock(%s)", (MIGRATING,)).fetchone() != (True,):
                _log.info("another broker brings the schema up to date; this one waits for its end")
                connection.execute(b"SET lock_timeout = 0")  # as long as it runs: a dead one's lock is gone
                connection.execute("SELECT pg_advisory_lock(%s)", (MIGRATING,))
        except psycopg.Error as error:
            raise fault_of(error, lost=connection.closed) from error
        yield


def migrate_beside_others(connect: Callable[[], Connection], found: FoundSchema) -> None:
    """Migrate while brokers of the release before may write.

    A migration locks one table after the other, and so do they. Where the two wait for each other, the server undoes
    one of them; if that is the migration, it is done again.

    Raises:
        SchemaError: see `migrate`.
        sqlalchemy.exc.SQLAlchemyError: see `migrate`.
    """
    for left in reversed(range(_TRIES)):
        try:
            migrate("postgresql+psycopg://", connect, found)
        except OperationalError as error:
            if not left or not isinstance(error.orig, errors.DeadlockDetected):
                raise
            _log.warning("the migration and a broker that writes waited for each other; it is done again")
        else:
            return


def without_limits(connection: Connection) -> None:
    """What is done here takes the time that it takes, whatever the server's defaults are."""
    for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
        connection.execute(f"SET {name} = 0".encode())


def connect_to_migrate(url: str, wait: timedelta) -> Connection:
    """A connection that waits for another's lock as every other does: a migration locks whole tables.

    A session that reads one and never ends its transaction would hold up the start without a word.
    """
    connection = connect(url, wait)
    without_limits(connection)
    connection.autocommit = False  # SQLAlchemy begins no transaction by itself: the driver does
    return connection
