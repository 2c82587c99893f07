"""Whether every statement of the store is an index search, by the plan that each database makes for it.

Statements are collected where they are compiled: each is made by `Compiler`, most when the stores are put together,
some when they are first needed. So a new statement is looked at without being listed anywhere.

What counts as a scan:

- SQLite: a step `SCAN`, of a table or of a whole index. Plans don't depend on the rows, since nothing is analysed.
- PostgreSQL: with sequential scans and joins of whole tables switched off, on filled and analysed tables, and for a
  generic plan: a sequential scan all the same, or an index that is read without a condition on it. (Small tables are
  scanned whatever indexes there are; without the second rule an index read from end to end would pass.)
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from sqlalchemy import Integer, LargeBinary, Text

from certplane.broker.store import schema
from certplane.broker.store.copying import WholeTables
from certplane.broker.store.statements import Compiler, Driver, Statement
from tests.support.memory_store import migrated

compiled: Final[dict[tuple[Driver, str], Statement]] = {}
"""Every statement that was compiled in this process, by its database and its SQL."""
_explained: Final[set[tuple[Driver, str]]] = set()

_ROWS: Final = 2_000
"""In each table: enough that an index pays."""


@dataclass(frozen=True)
class Allowed:
    """A scan that is meant: of which table or partial index, by statements that contain `sql`, why, and in what."""

    of: str
    sql: str
    reason: str
    drivers: tuple[Driver, ...] = ("sqlite", "postgresql")


ALLOWED: Final = (
    Allowed("deny_entries", "ORDER BY deny_entries.entry_id", "read whole into memory; as long as operators make it"),
    Allowed("identities", "ORDER BY identities.name", "read whole into memory, on the read thread: a start, a gap"),
    Allowed("audit_repeats", "audit_repeats", "what is being counted: bounded; looked at by a start, and each minute"),
    Allowed("audit_events", "ORDER BY audit_events.sequence DESC", "the newest: the end of the table, up to a limit"),
    Allowed(
        "ix_audit_chains_open", "audit_chains.end_time IS NULL", "partial: of programs that run, or ended just now"
    ),
    Allowed("certificates", "ORDER BY certificates.create_time DESC", "the newest: the end of an index, up to a limit"),
    Allowed("acme_accounts", "ORDER BY acme_accounts.issuer", "a row an issuer: read by a command that seals all anew"),
    Allowed("leases", "leases.holder", "a row a role: a handful, read for people"),
    Allowed("brokers", "brokers", "a row a broker: as many as are started within some seconds"),
    Allowed("leases", "ORDER BY leases.role", "a row for each kind of work: some; read when an operator asks"),
    Allowed("issuer_holds", "ORDER BY issuer_holds.issuer", "read whole into memory: a start, a gap; they are few"),
    Allowed("notification_troubles", "ORDER BY notification_troubles", "read whole by one broker: a start, a change"),
    Allowed("notification_outbox", "GROUP BY notification_outbox", "counted likewise; a hundred rows a notifier"),
    Allowed("ix_notification_outbox_notifier", "GROUP BY notification_outbox", "the same by its index"),
    Allowed(
        "ix_orders_unfinished", "end_time IS NULL", "partial: orders under way, for a start and for who is shut out"
    ),
    Allowed("ix_rollouts_open", "end_time IS NULL ORDER BY", "partial: those under way, that operators have begun"),
    Allowed("uq_incidents_open", "close_time IS NULL ORDER BY", "partial: one an issuer at most"),
    Allowed("ix_certificates_revoke_time", "revoke_time IS NOT NULL", "partial: the revoked ones", ("postgresql",)),
)


def record_statements() -> None:
    """Collect what is compiled from now on."""
    compile_one = Compiler.__call__

    def compile_and_note(self: Compiler, *arguments: Any) -> Statement:
        statement = compile_one(self, *arguments)
        if isinstance(self, WholeTables):
            return statement
        compiled.setdefault((self.driver, statement.sql), statement)
        return statement

    Compiler.__call__ = compile_and_note  # type: ignore[method-assign]


@contextmanager
def collecting(driver: Driver) -> Iterator[list[Statement]]:
    """What is compiled for a database during the block, though it may have been before."""
    before = dict(compiled)
    compiled.clear()
    statements: list[Statement] = []
    try:
        yield statements
    finally:
        statements += [one for (kind, _), one in compiled.items() if kind == driver]
        compiled.update(before)


def pop_new(driver: Driver) -> list[Statement]:
    """What was compiled for a database since this was asked."""
    new = [key for key in compiled if key[0] == driver and key not in _explained]
    _explained.update(new)
    return [compiled[key] for key in new]


def _sql(statement: Statement) -> str:
    return statement.at_most(64).skipping(5).sql


def _is_planned(statement: Statement) -> bool:
    """Whether tables are read for it: rows are put where they belong, and a conflict is found by the key it names.

    Not PostgreSQL's catalogue, which is as long as the schema.
    """
    if "FROM pg_" in statement.sql:
        return False
    return "SELECT" in statement.sql[1:] or statement.sql.startswith(("UPDATE", "DELETE")) or "FROM" in statement.sql


def _is_allowed(of: Iterable[str], statement: Statement) -> bool:
    return any(allowed.of in of and allowed.sql in statement.sql for allowed in ALLOWED)


@dataclass(frozen=True)
class Step:
    """A table, or an index of one, that a plan reads: `whole`, or where something is looked for."""

    of: frozenset[str]
    whole: bool
    text: str


def scans(database: sqlite3.Connection | psycopg.Connection[Any], statements: Iterable[Statement]) -> list[str]:
    """The scans that are not allowed, each with its statement."""
    return [
        f"{step.text}\n{statement.sql}"
        for statement in statements
        for step in steps(database, statement)
        if step.whole and not _is_allowed(step.of, statement)
    ]


def steps(database: sqlite3.Connection | psycopg.Connection[Any], statement: Statement) -> list[Step]:
    """What the database would read to answer a statement."""
    if not _is_planned(statement):
        return []
    if isinstance(database, sqlite3.Connection):
        return list(_sqlite_steps(database, statement))
    return list(_postgresql_steps(database, statement))


_SQLITE_STEP: Final = re.compile(r"(SCAN|SEARCH) (\w+)(?: USING (?:COVERING )?INDEX (\w+))?")
_MADE_UP: Final = re.compile(r"SCAN (CONSTANT ROW|\d+ CONSTANT ROWS|writers|\d+-ROW)")
"""Rows that the query itself makes: of VALUES, and of the recursion that hops from writer to writer."""


def _sqlite_steps(database: sqlite3.Connection, statement: Statement) -> Iterator[Step]:
    plan = database.execute(f"EXPLAIN QUERY PLAN {_sql(statement)}", [1] * len(statement.names)).fetchall()
    for *_, text in plan:
        found = _SQLITE_STEP.match(text)
        if found is not None and not _MADE_UP.match(text):
            kind, table, index = found.groups()
            yield Step(frozenset({table, index or table}), kind == "SCAN", text)


_TEXTS_OF_POSTGRESQL: Final = ("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Index Scan")


def _postgresql_steps(server: psycopg.Connection[Any], statement: Statement) -> Iterator[Step]:
    places = iter(range(1, len(statement.names) + 1))
    sql = re.sub("%s|%%", lambda found: "%" if found[0] == "%%" else f"${next(places)}", _sql(statement))
    server.execute(f"PREPARE looked_at AS {sql}".encode())
    try:
        values = f"({', '.join(['NULL'] * len(statement.names))})" if statement.names else ""
        ((plan,),) = server.execute(f"EXPLAIN (FORMAT JSON) EXECUTE looked_at{values}".encode()).fetchall()
    finally:
        server.execute("DEALLOCATE looked_at")
    waiting = [(plan[0]["Plan"], "")]
    while waiting:
        node, table = waiting.pop()
        table = node.get("Relation Name", table)
        waiting += [(inner, table) for inner in node.get("Plans", ())]
        if node["Node Type"] in _TEXTS_OF_POSTGRESQL:
            whole = node["Node Type"] == "Seq Scan" or not node.get("Index Cond")
            facts = {key: node[key] for key in ("Node Type", "Relation Name", "Index Name", "Filter") if key in node}
            yield Step(frozenset({table, node.get("Index Name", table)}), whole, json.dumps(facts))


def prepare_to_explain(server: psycopg.Connection[Any]) -> None:
    """Fill and analyse the tables of a PostgreSQL database, and have it plan as described above."""
    for table in schema.metadata.sorted_tables:
        values = ", ".join(map(_value, table.c))
        names = ", ".join(table.c.keys())
        server.execute(
            f"INSERT INTO {table.name} ({names}) SELECT {values} FROM generate_series(1, {_ROWS}) AS n "  # noqa: S608 - ours
            "ON CONFLICT DO NOTHING".encode()
        )
    for way in ("seqscan", "hashjoin", "mergejoin"):
        server.execute(f"SET enable_{way} = off".encode())
    server.execute("SET plan_cache_mode = force_generic_plan")
    server.execute("ANALYZE")


def _value(column: Any) -> str:
    """A column's value in the n-th row: each another one, the same for all that refer to each other."""
    kinds = {Text: "'filled-' || n", LargeBinary: "'x'::bytea"}
    value = next((sql for kind, sql in kinds.items() if isinstance(column.type, kind)), "n")
    if column.name == "state":
        value = "CASE WHEN n % 9 = 0 THEN 'FAILED' ELSE 'ISSUED' END"
    if isinstance(column.type, Integer) and column.primary_key:
        value = "n + 1000000"
    return f"CASE WHEN n % 10 = 0 THEN {value} END" if column.nullable else value


@contextmanager
def sqlite_to_explain() -> Iterator[sqlite3.Connection]:
    """An empty database of the schema."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        migrated().backup(connection)
        yield connection


@contextmanager
def postgresql_to_explain(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A database of the schema, filled."""
    with psycopg.connect(url, autocommit=True) as server:
        prepare_to_explain(server)
        yield server


def check_new(kind: str, url: str) -> None:
    """Fail if a statement that was compiled lately, for a kind of store, makes the database scan."""
    new = pop_new("postgresql" if kind == "postgresql" else "sqlite")
    if any(map(_is_planned, new)):
        with postgresql_to_explain(url) if kind == "postgresql" else sqlite_to_explain() as database:
            assert scans(database, new) == []
