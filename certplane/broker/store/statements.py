"""SQLAlchemy Core statements, each compiled to a string once and then executed through the driver's own cursor.

SQLAlchemy writes the SQL, so that one definition of schema and queries serves both databases; it isn't asked again at
run time. Its execution layer costs 12 us a statement where SQLite's own work is 2, with the interpreter's lock held,
and it is the event loop that does the reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

from sqlalchemy import BindParameter, ClauseElement, Table, bindparam
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.compiler import SQLCompiler

Driver = Literal["sqlite", "postgresql"]
Row = tuple[Any, ...]
T = TypeVar("T")

_MOST: Final = "most_rows"
_SKIPPED: Final = "skipped_rows"


def limited_to(count: int | str = _MOST, *, skip: bool = False) -> str:
    """The suffix of a query that wants its first `count` rows; without a count as many as `Statement.at_most` says.

    The number stands in the SQL. As a parameter it makes SQLite (3.49 and newer) prepare the statement again whenever
    it is bound, which costs more than most of our queries do; and PostgreSQL plans for a tenth of all rows.

    Args:
        count: How many.
        skip: After as many as `Statement.skipping` says.
    """
    return f"LIMIT {count} OFFSET {_SKIPPED}" if skip else f"LIMIT {count}"


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with positional placeholders; `names` are the parameters in their order."""

    sql: str
    names: tuple[str, ...]
    constants: Mapping[str, object]
    """Values that SQLAlchemy made parameters of by itself."""

    def arguments(self, values: Mapping[str, object]) -> tuple[object, ...]:
        """`values` in the order of the placeholders; names that the statement doesn't use are passed over."""
        constants = self.constants
        return tuple([constants[name] if name in constants else values[name] for name in self.names])

    def at_most(self, count: int) -> Statement:
        """A query that ends with `limited_to()`, for `count` rows and at most twice as many: so there are few texts."""
        most = 1 << (count - 1).bit_length() if count > 0 else 0
        return replace(self, sql=self.sql.replace(f"LIMIT {_MOST}", f"LIMIT {most}"))

    def skipping(self, count: int) -> Statement:
        """A query that ends with `limited_to(..., skip=True)`, without its first `count` rows."""
        return replace(self, sql=self.sql.replace(f"OFFSET {_SKIPPED}", f"OFFSET {count}"))


HOSTS: Final[Sequence[BindParameter[Any]]] = tuple(bindparam(f"host_{number}") for number in range(128))
"""For `IN`: one statement serves all numbers of hosts (`hosts_parameters`)."""


def hosts_parameters(hosts: Sequence[str]) -> list[dict[str, object]]:
    """The values of `HOSTS`, once for each 128 of the hosts; the last ones are filled up with one of their own."""
    size = len(HOSTS)
    parts = [[*hosts[start : start + size]] for start in range(0, len(hosts), size)]
    return [{f"host_{n}": (part[n] if n < len(part) else part[0]) for n in range(size)} for part in parts]


_CHUNKS: Final = (128, 32, 8, 4, 2, 1)
"""Rows of one statement: few sizes, since each is compiled once. At most 1,536 parameters; SQLite takes 32,766."""


def chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """`rows` in pieces of the sizes that statements for many are made for."""
    start = 0
    for size in _CHUNKS:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size


def numbered(columns: Sequence[str], count: int) -> list[dict[str, BindParameter[Any]]]:
    """The parameters of `count` rows: those of the first one end in `_0`."""
    return [{name: bindparam(f"{name}_{n}") for name in columns} for n in range(count)]


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
