"""Reads of PostgreSQL: a bounded pool of connections, which follow the one that writes to wherever it goes.

Connections of before a failover are behind, perhaps: to a server that is no primary any more, or of a database that was
restored. So all are made anew when one was lost, and whoever has read through them is told (`Database.standing`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import psycopg
from psycopg import pq
from typing_extensions import override

from certplane.broker.store.servers import Connection, connect, fault_of, own_session, place, run
from certplane.broker.store.session import Database, Fault, SqlError
from certplane.broker.store.statements import Compiler, Row, Statement
from certplane.runtime.pool import BlockingPool

_log = logging.getLogger("certplane.store")

_READERS: Final = 4


class Standing:
    """How often the connections to a database had to be made anew: those of before may be to what is no more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.number = 0

    def changed(self) -> None:
        """One was made anew, and the others are to follow. For any thread."""
        with self._lock:
            self.number += 1

    def lost(self, number: int) -> None:
        """One of the standing `number` was lost: of all that were lost with it, the first counts. For any thread."""
        with self._lock:
            if self.number == number:
                self.number += 1


class PostgresqlReader(Database):
    """`Database` over a pool of connections, one a thread, each made when it is first wanted."""

    def __init__(self, url: str, wait: timedelta, *, standing: Standing | None = None, pooled: bool = False) -> None:
        """Read at `url`; `pooled`: through a pooler perhaps, which keeps nothing from one transaction to the next."""
        self.compiler = Compiler("postgresql")
        self._url = url
        self._wait = wait
        self._standing = standing or Standing()
        self._pooled = pooled
        self._pool = BlockingPool("store-read", _READERS)
        self._mine = threading.local()
        self._open: set[Connection] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    @override
    def standing(self) -> int:
        return self._standing.number

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
            connection, number = self._connection()
            try:
                if self._pooled:
                    return self._fetch_pooled(connection, statement, arguments)
                return run(connection, statement.sql, arguments).fetchall()
            except psycopg.Error as error:
                if connection.closed:
                    self._standing.lost(number)
                # A connection that the server or the network closed while it was idle: a query may be asked again.
                if last or not connection.closed:
                    raise fault_of(error, lost=connection.closed) from error
        raise AssertionError("unreachable")

    def _fetch_pooled(self, connection: Connection, statement: Statement, arguments: Sequence[object]) -> list[Row]:
        """A query in a transaction that takes its settings along.

        Three ways there and back. One, by pipelining, isn't for poolers: PgBouncer 1.18 hangs at an error in it.
        """
        timeout = 4 * (self._wait // timedelta(milliseconds=1))
        try:
            connection.execute(f"BEGIN READ ONLY; SET LOCAL statement_timeout = {timeout}".encode())
            rows = run(connection, statement.sql, arguments).fetchall()
            connection.execute("COMMIT")
            return rows
        finally:
            if not connection.closed and connection.info.transaction_status is not pq.TransactionStatus.IDLE:
                connection.rollback()

    def _connection(self) -> tuple[Connection, int]:
        """The thread's connection, and the standing that it was made in."""
        old: Connection | None = getattr(self._mine, "connection", None)
        number = self._standing.number
        if old is not None and not old.closed and self._mine.number == number:
            return old, number
        if old is not None:
            old.close()
        new = connect(self._url, self._wait, reads=True, pooled=self._pooled)
        try:
            if not self._pooled:
                own_session(new, self._wait, read_only=True)
        except SqlError:
            new.close()
            raise
        with self._lock:
            if self._closed:  # meanwhile
                new.close()
                raise SqlError(Fault.UNREACHABLE, "the store is closed")
            if old is not None:
                self._open.discard(old)
            self._open.add(new)
        if old is not None:
            _log.info("a connection to the database was made anew; it reads at %s", place(new))
        self._mine.connection, self._mine.number = new, number
        return new, number
