"""What both databases' sessions share: transactions, and marks in them, are spelled alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from certplane.broker.store.session import Session, SqlError
from certplane.broker.store.statements import Row, Statement


class SqlSession(Session):
    """`Session` over `_run`."""

    @abstractmethod
    def _run(self, sql: str, arguments: Sequence[object] | None = None) -> Any:
        """Run one statement, and return a cursor of it.

        Raises:
            SqlError: whatever the driver said.
        """

    @override
    def commit(self) -> None:
        try:
            self._run("COMMIT")
        except SqlError:
            self.rollback()
            raise

    @override
    def savepoint(self) -> None:
        self._run("SAVEPOINT job")

    @override
    def release(self) -> None:
        self._run("RELEASE SAVEPOINT job")

    @override
    def rollback_to_savepoint(self) -> None:
        self._run("ROLLBACK TO SAVEPOINT job")
        self._run("RELEASE SAVEPOINT job")

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
