"""What both databases' sessions share: transactions, and marks in them, are spelled alike."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from typing_extensions import override

from certplane.broker.store.session import Session, SqlError, T
from certplane.broker.store.statements import Row, Statement

_Write = Callable[[Session, Sequence[Any]], None]


class SqlSession(Session):
    """`Session` over `_run`."""

    BEGIN: ClassVar = "BEGIN"

    def __init__(self) -> None:
        self._deferred: dict[tuple[_Write, object], None] = {}
        self._marked = 0
        """How many were deferred before the savepoint."""

    @abstractmethod
    def _run(self, sql: str, arguments: Sequence[object] | None = None) -> Any:
        """Run one statement, and return a cursor of it.

        Raises:
            SqlError: whatever the driver said.
        """

    @override
    def begin(self) -> None:
        self._deferred.clear()
        self._run(self.BEGIN)

    @override
    def commit(self) -> None:
        try:
            deferred: defaultdict[_Write, list[object]] = defaultdict(list)
            for write, what in self._deferred:
                deferred[write].append(what)
            for write, things in deferred.items():
                write(self, things)
            self._run("COMMIT")
        except SqlError:
            self.rollback()
            raise

    @override
    def savepoint(self) -> None:
        self._run("SAVEPOINT job")
        self._marked = len(self._deferred)

    @override
    def release(self) -> None:
        self._run("RELEASE SAVEPOINT job")

    @override
    def rollback_to_savepoint(self) -> None:
        self._run("ROLLBACK TO SAVEPOINT job")
        self._run("RELEASE SAVEPOINT job")
        while len(self._deferred) > self._marked:
            self._deferred.popitem()  # the one that came last

    @override
    def defer(self, write: Callable[[Session, Sequence[T]], None], what: T) -> None:
        if not self.in_transaction:
            raise RuntimeError("there is no transaction that it could be written with")
        self._deferred[write, what] = None

    @override
    def execute(self, statement: Statement, arguments: Sequence[object]) -> int:
        return int(self._run(statement.sql, arguments).rowcount)

    @override
    def one(self, statement: Statement, values: Mapping[str, object]) -> Row | None:
        rows = self.all(statement, values)
        return rows[0] if rows else None

    @override
    def all(self, statement: Statement, values: Mapping[str, object]) -> list[Row]:
        rows: list[Row] = self._run(statement.sql, statement.arguments(values)).fetchall()
        return rows
