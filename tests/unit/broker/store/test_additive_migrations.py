"""Brokers of two releases share a database: migrations only add, and this holds them to it (ADR 0037)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory

from certplane.broker.store import migrate
from certplane.broker.store.schema import READABLE_FROM, SCHEMA_REVISION

REMOVALS: dict[str, str] = {}
"""Statements that take something away from older programs, and since which release none of them has used it."""

_NAME = r'"?(\w+)"?'
_CREATE_TABLE = re.compile(rf"CREATE TABLE {_NAME}")
_ADD_COLUMN = re.compile(rf"ALTER TABLE {_NAME} ADD COLUMN {_NAME} (.*)", re.DOTALL)
_CREATE_INDEX = re.compile(rf"CREATE (UNIQUE )?INDEX {_NAME} ON {_NAME} \((.*?)\)(?: WHERE (.*))?$", re.DOTALL)


def not_additive(statements: Iterable[str]) -> list[str]:
    """Those of the statements that a program which knows nothing of them could meet."""
    new_tables: set[str] = set()
    new_columns: set[tuple[str, str]] = set()
    found = []
    for statement in statements:
        if (made := _CREATE_TABLE.match(statement)) is not None:
            new_tables.add(made[1])
        elif (added := _ADD_COLUMN.match(statement)) is not None:
            table, column, rest = added.groups()
            new_columns.add((table, column))
            # An older program writes rows without it.
            required = "NOT NULL" in rest and "DEFAULT" not in rest
            bound = any(word in rest for word in ("UNIQUE", "REFERENCES", "CHECK", "PRIMARY"))
            if table not in new_tables and (required or bound):
                found.append(statement)
        elif (index := _CREATE_INDEX.match(statement)) is not None:
            unique, _, table, _, where = index.groups()
            # A rule that an older program may break, unless it is about rows that it doesn't write.
            own = any(f"{column} IS NOT NULL" == (where or "") for of, column in new_columns if of == table)
            if unique and table not in new_tables and not own:
                found.append(statement)
        elif statement not in REMOVALS:
            found.append(statement)
    return found


def statements_of(change: Callable[[], None]) -> list[str]:
    """What a migration says to PostgreSQL."""
    said = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": said, "literal_binds": True}
    )
    with Operations.context(context):
        change()
    return [statement.strip() for statement in said.getvalue().split(";") if statement.strip()]


def test_migrations_since_the_oldest_reader_only_add() -> None:
    """A program of `READABLE_FROM` works on, and starts, on what the newest one has made."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    for script in scripts.walk_revisions(READABLE_FROM, SCHEMA_REVISION):
        if script.revision != READABLE_FROM:
            assert not_additive(statements_of(script.module.upgrade)) == [], script.path


def test_revisions_sort_by_their_age() -> None:
    """So that an older program knows that one it has never heard of is newer."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert revisions == sorted(revisions, reverse=True)
    assert {len(revision) for revision in revisions} == {4}
    assert READABLE_FROM <= SCHEMA_REVISION


def _op(change: Callable[[Operations], object]) -> Callable[[], None]:
    def run() -> None:
        from alembic import op

        change(op)  # type: ignore[arg-type]  # a module of the same functions

    return run


def _new_column_in_order(op: Operations) -> None:
    op.add_column("orders", sa.Column("slot", sa.Text()))
    taken = sa.text("slot IS NOT NULL")
    op.create_index("uq_orders_slot", "orders", ["slot"], unique=True, postgresql_where=taken)


def _new_table(op: Operations) -> None:
    op.create_table("budgets", sa.Column("name", sa.Text(), primary_key=True), sa.Column("left", sa.Integer()))
    op.create_index("uq_budgets_left", "budgets", ["left"], unique=True)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_new_table, id="a table"),
        pytest.param(_new_column_in_order, id="a column, and an order among those that have it"),
        pytest.param(
            lambda op: op.add_column("orders", sa.Column("slot", sa.Text(), nullable=False, server_default="")),
            id="a column with a default",
        ),
        pytest.param(lambda op: op.create_index("ix_orders_csr", "orders", ["issuer"]), id="an index"),
    ],
)
def test_what_adds(change: Callable[[Operations], object]) -> None:
    """An older program doesn't notice it."""
    assert not_additive(statements_of(_op(change))) == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda op: op.drop_column("orders", "issuer"), id="a column less"),
        pytest.param(lambda op: op.drop_table("keys"), id="a table less"),
        pytest.param(lambda op: op.drop_index("ix_orders_end_time"), id="an index less"),
        pytest.param(
            lambda op: op.add_column("orders", sa.Column("slot", sa.Text(), nullable=False)), id="a required column"
        ),
        pytest.param(
            lambda op: op.add_column("orders", sa.Column("slot", sa.Text(), sa.ForeignKey("keys.identity"))),
            id="a column that refers",
        ),
        pytest.param(lambda op: op.create_index("uq_orders_csr", "orders", ["issuer"], unique=True), id="a rule"),
        pytest.param(lambda op: op.alter_column("orders", "issuer", new_column_name="ca"), id="another name"),
        pytest.param(lambda op: op.alter_column("orders", "epoch", type_=sa.Text()), id="another type"),
        pytest.param(lambda op: op.execute("UPDATE orders SET issuer = upper(issuer)"), id="other rows"),
    ],
)
def test_what_does_not_only_add(change: Callable[[Operations], object]) -> None:
    """An older program would fail on it, or write what the newer one doesn't expect."""
    assert not_additive(statements_of(_op(change))) != []
