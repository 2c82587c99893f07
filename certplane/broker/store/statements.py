"""SQLAlchemy Core statements, each compiled to a string once and then executed through the driver's own cursor.

SQLAlchemy writes the SQL, so that one definition of schema and queries serves both databases; it isn't asked again at
run time. Its execution layer costs 12 us a statement where SQLite's own work is 2, with the interpreter's lock held,
and it is the event loop that does the reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import BindParameter, ClauseElement, Table, bindparam
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.compiler import SQLCompiler

Driver = Literal["sqlite", "postgresql"]
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with positional placeholders; `names` are the parameters in their order."""

    sql: str
    names: tuple[str, ...]
    constants: Mapping[str, object]
    """Values that SQLAlchemy made parameters of by itself (`LIMIT 1`)."""

    def arguments(self, values: Mapping[str, object]) -> tuple[object, ...]:
        """`values` in the order of the placeholders; names that the statement doesn't use are passed over."""
        constants = self.constants
        return tuple([constants[name] if name in constants else values[name] for name in self.names])


HOSTS: Final[Sequence[BindParameter[Any]]] = tuple(bindparam(f"host_{number}") for number in range(128))
"""For `IN`: one statement serves all numbers of hosts (`hosts_parameters`)."""


def hosts_parameters(hosts: Sequence[str]) -> list[dict[str, object]]:
    """The values of `HOSTS`, once for each 128 of the hosts; the last ones are filled up with one of their own."""
    size = len(HOSTS)
    parts = [[*hosts[start : start + size]] for start in range(0, len(hosts), size)]
    return [{f"host_{n}": (part[n] if n < len(part) else part[0]) for n in range(size)} for part in parts]


class Compiler:
    """Turns Core statements into `Statement`s of one database."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._dialect: Dialect
        if driver == "sqlite":
            self._dialect = sqlite.dialect(paramstyle="qmark")
        else:
            self._dialect = psycopg.dialect(paramstyle="format")  # type: ignore[no-untyped-call] # SQLAlchemy's own

    def __call__(self, statement: ClauseElement, columns: Sequence[str] | None = None) -> Statement:
        """The compiled form; `columns` are those that an INSERT or UPDATE sets from parameters of their names."""
        compiled = statement.compile(dialect=self._dialect, column_keys=None if columns is None else list(columns))
        assert isinstance(compiled, SQLCompiler)
        names = tuple(compiled.positiontup or ())
        constants = {name: compiled.params[name] for name in names if not compiled.binds[name].required}
        return Statement(str(compiled), names, constants)

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that knows ON CONFLICT, which the two dialects spell alike; generated keys are not asked for."""
        return sqlite.insert(table).inline() if self.driver == "sqlite" else postgresql.insert(table).inline()
