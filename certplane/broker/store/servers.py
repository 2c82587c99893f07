"""Connections to PostgreSQL: which of the servers of a URL, whether a pooler stands between, and what errors mean.

A connection is always one to a primary, also where it only reads: a standby is behind, and a primary that has been
demoted is further behind each minute. Of several hosts of a URL libpq takes the first that says that it
can (`target_session_attrs=read-write`); what it then finds is asked once more here, with cause and remedy.

How long a statement and a lock may take is said with the connection, so that no default of the server ends the first
ones; a pooler that refuses such parameters is asked without. Settings of the session come later: a pooler would hand
them to whoever gets the session next, so first comes the question whether it is ours alone (`refuse_shared_session`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final

import psycopg
from psycopg import conninfo, errors

from certplane.broker.store.session import Fault, SqlError
from certplane.broker.store.statements import Row

_log = logging.getLogger("certplane.store")

Connection = psycopg.Connection[Row]

CONNECT: Final = timedelta(seconds=5)
"""For each host of the URL, and each address of a host."""
ENCODING: Final = "UTF8"
"""Of the database: SQL_ASCII, which `initdb` takes where the locale is C, hands out bytes of unknown meaning, and any
other has no room for names and messages that a CA or a host may send."""

_LOST: Final = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""A server that is gone without a word, as after a failover, is noticed within 25 seconds: Linux would wait for a
quarter of an hour, and with it every write of the broker. What the URL says of these counts for more."""
_LOOKS: Final = 4
"""Questions to a pooler. It keeps sessions apart, or the first question shows already that it doesn't; the others are
for one that happens to choose the same server twice."""

_FAULTS: Final[tuple[tuple[type[psycopg.Error], Fault], ...]] = (
    (errors.DiskFull, Fault.FULL),
    (errors.LockNotAvailable, Fault.BUSY),
    (errors.QueryCanceled, Fault.BUSY),
    (errors.DeadlockDetected, Fault.UNDONE),
    (errors.SerializationFailure, Fault.UNDONE),
    (errors.ReadOnlySqlTransaction, Fault.UNDONE),
    (errors.DataCorrupted, Fault.BROKEN),
    (errors.IndexCorrupted, Fault.BROKEN),
    (errors.IntegrityError, Fault.REJECTED),
)

_SESSION: Final = """
    SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', %s, false), set_config(%s, %s, false),
        set_config('idle_in_transaction_session_timeout', %s, false)
"""
_STANDS_STILL: Final = timedelta(seconds=10)
"""How long a broker may say nothing in the midst of a transaction. One that was stopped there, or whose machine was
suspended, would keep its locks for as long: no other broker could write these rows, and TCP sees nothing wrong. Shorter
than a lease (`members.membership`), so that nobody who takes its orders meets them."""
_STANDBY: Final = "SELECT CASE WHEN pg_is_in_recovery() THEN 'on' ELSE 'off' END"
_STANDBYS: Final = """
    SELECT application_name, sync_state FROM pg_stat_replication AS standby
    WHERE state IS DISTINCT FROM 'backup' AND NOT EXISTS (
        SELECT FROM pg_replication_slots WHERE active_pid = standby.pid AND slot_type = 'logical'
    )
    ORDER BY application_name
"""


class ReadOnlyServerError(SqlError):
    """The server that was reached can only be read."""


class PoolerError(SqlError):
    """What was reached is a pooler that hands each transaction to another session of the server."""


def fault_of(error: psycopg.Error, *, lost: bool) -> SqlError:
    """What a driver's exception means here; its first line, since details may hold a row's values."""
    text = first_line(error)
    if lost:
        return SqlError(Fault.LOST, text or "the connection was lost")
    return SqlError(next((fault for kind, fault in _FAULTS if isinstance(error, kind)), Fault.OTHER), text)


def first_line(error: Exception) -> str:
    """What a driver's exception says, without details."""
    return str(error).partition("\n")[0]


def several_hosts(url: str) -> bool:
    """Whether a URL names more than one host."""
    said = conninfo.conninfo_to_dict(url)
    return "," in f"{said.get('host', '')}{said.get('hostaddr', '')}"


def place(connection: Connection) -> str:
    """The server that a connection leads to, `host:port`, for people."""
    return f"{connection.info.host}:{connection.info.port}"


def connect(url: str, wait: timedelta, *, reads: bool = False, pooled: bool = False) -> Connection:
    """A connection to the primary, in autocommit mode: transactions are begun and ended by us alone.

    Nothing is set in its session, and nothing prepared: both are `own_session`'s.

    Args:
        url: libpq's.
        wait: For locks; four times as long for a statement.
        reads: It is to read alone: a primary that takes no writes for a while will do, where it is the only host.
        pooled: A pooler is expected, which has no place for these limits.

    Raises:
        ReadOnlyServerError: UNREACHABLE; there is a server, and it can only be read.
        PoolerError: UNREACHABLE; a pooler doesn't let us in.
        SqlError: UNREACHABLE.
    """
    if not pooled:
        with contextlib.suppress(PoolerError):
            return _connect(url, wait, reads=reads)
    return _connect(url, None, reads=reads)


def _connect(url: str, wait: timedelta | None, *, reads: bool) -> Connection:
    try:
        said = conninfo.conninfo_to_dict(url)
        wanted: dict[str, str | int | None] = {**_LOST, **said}
        if several_hosts(url):
            wanted.setdefault("target_session_attrs", "read-write")
        if wait is not None:
            # After the URL's own, a search_path say: the last one counts.
            limits = "-c lock_timeout={} -c statement_timeout={}".format(*_limits(wait))
            wanted["options"] = f"{said.get('options', '')} {limits}"
        connection = psycopg.connect(
            conninfo.make_conninfo("", **wanted),
            autocommit=True,
            connect_timeout=int(CONNECT.total_seconds()),
            application_name="certplane-broker",
            client_encoding=ENCODING,  # whatever the URL says
            prepare_threshold=None,
        )
    except psycopg.Error as error:
        text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        kind = PoolerError if "unsupported startup parameter" in text else SqlError
        raise kind(Fault.UNREACHABLE, text) from error
    try:
        with _cut_off(connection):
            unfit = connection.execute(_STANDBY if reads else "SHOW transaction_read_only").fetchone()
    except psycopg.Error as error:
        connection.close()
        raise SqlError(Fault.UNREACHABLE, first_line(error)) from error
    if unfit == ("on",):
        where = place(connection)
        connection.close()
        text = f"the server at {where} can only be read: a standby, or default_transaction_read_only is on"
        raise ReadOnlyServerError(Fault.UNREACHABLE, text)
    connection.add_notice_handler(_log_notice)
    return connection


def own_session(connection: Connection, wait: timedelta, *, read_only: bool = False) -> None:
    """Make a session of the server ours: what locks and statements wait for at most, and how it writes.

    Raises:
        SqlError: UNREACHABLE.
    """
    # Whatever the server's default is: a commit returns when it is on the disk.
    setting = ("default_transaction_read_only", "on") if read_only else ("synchronous_commit", "on")
    try:
        connection.execute(_SESSION, (*_limits(wait), *setting, str(_STANDS_STILL // timedelta(milliseconds=1))))
    except psycopg.Error as error:
        raise SqlError(Fault.UNREACHABLE, first_line(error)) from error
    connection.prepare_threshold = 5  # the driver's default


def _limits(wait: timedelta) -> tuple[str, str]:
    """How long a lock is waited for, and a statement may take, in milliseconds."""
    milliseconds = wait // timedelta(milliseconds=1)
    return str(milliseconds), str(4 * milliseconds)


def refuse_shared_session(connection: Connection, url: str, wait: timedelta) -> None:
    """See that the server's session is the connection's own from its first transaction to its last.

    The server tells a client its process at the start, and says in each transaction which process works: with nobody
    between, they are one. A pooler tells a number of its own. Then a second connection shows how sessions are kept:
    where the first is in no transaction and the second gets *its* process, or the first a new one while the second
    holds one, transactions are handed around.

    Raises:
        PoolerError: UNREACHABLE; it isn't, or that can't be seen.
        SqlError: UNREACHABLE.
    """
    where = place(connection)
    try:
        process = _process(connection)
        if process == connection.info.backend_pid:
            return
        with contextlib.closing(connect(url, wait)) as other, _cut_off(other):
            shared = _changes_session(connection, process, other)
    except (psycopg.Error, SqlError) as error:
        text = f"a pooler at {where} doesn't show whether it keeps sessions ({first_line(error)})"
        raise PoolerError(Fault.UNREACHABLE, text) from error
    if shared:
        text = f"a pooler at {where} hands each transaction to another session of the server"
        raise PoolerError(Fault.UNREACHABLE, text)


def _changes_session(connection: Connection, process: int, other: Connection) -> bool:
    """Whether `connection`, whose session was `process`, loses it while it is in no transaction."""
    for _ in range(_LOOKS):
        other.execute("BEGIN")
        # In this order: where a pooler has one session for both, a question of the first would wait for the second.
        if _process(other) == process or _process(connection) != process:
            return True
        other.execute("ROLLBACK")
    return False


def _process(connection: Connection) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


@contextlib.contextmanager
def _cut_off(connection: Connection) -> Iterator[None]:
    """End what waits at `connection` after a while: a pooler without room keeps a transaction waiting for minutes."""
    line = socket.socket(fileno=os.dup(connection.fileno()))
    timer = threading.Timer(CONNECT.total_seconds(), line.shutdown, [socket.SHUT_RDWR])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        line.close()


def run(connection: Connection, sql: str, arguments: Sequence[object]) -> psycopg.Cursor[Row]:
    """Execute a statement with `%s` for its parameters.

    psycopg reads such a text in Python, and remembers short ones alone: one that writes 128 rows took 4 ms each time.

    Raises:
        psycopg.Error: whatever the server said.
    """
    return psycopg.RawCursor(connection).execute(_numbered(sql), arguments)


@functools.lru_cache(maxsize=1024)
def _numbered(sql: str) -> bytes:
    """The statement with the server's own placeholders, `$1` and so on."""
    numbers = itertools.count(1)
    return re.sub("%([%s])", lambda found: "%" if found[1] == "%" else f"${next(numbers)}", sql).encode()


def standby_notices(connection: Connection, *, expected: bool) -> list[str]:
    """What could be lost when a standby takes over, a line each, as far as the broker's user may see it.

    Users without `pg_monitor` see that there are standbys, and not which.

    Args:
        connection: To the primary.
        expected: There are to be standbys: the URL names several hosts.

    Raises:
        psycopg.Error: it can't be asked.
    """
    row = connection.execute("SHOW synchronous_standby_names").fetchone()
    wanted = str(row[0]) if row else ""
    standbys = connection.execute(_STANDBYS).fetchall()
    seen = [(str(name), state) for name, state in standbys if state is not None]
    if wanted:
        if (seen or not standbys) and not any(state in ("sync", "quorum") for _, state in seen):
            text = (
                f"no standby of synchronous_standby_names ({wanted}) is connected to {place(connection)}: every write"
                " waits until one is; start it, or take it out of synchronous_standby_names there"
            )
            return [text]
        return []
    if not standbys and not expected:
        return []
    names = ", ".join(f'"{name}"' for name, _ in seen) or "*"
    who = f"standbys that follow {place(connection)} asynchronously" if standbys else "a standby"
    text = (
        f"{who} may lack what was acknowledged last when one takes over; set synchronous_standby_names ="
        f" 'ANY 1 ({names})' there, so that a commit waits until one has it"
    )
    return [text]


def _log_notice(notice: errors.Diagnostic) -> None:
    """A warning of the server is for its operator, and may be ours: of a commit that no standby has, for one."""
    if notice.severity_nonlocalized == "WARNING":
        _log.warning("the database warns: %s", notice.message_primary)
