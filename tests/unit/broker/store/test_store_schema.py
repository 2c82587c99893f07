"""The schema, its migrations, and whether each query has its index."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from certplane.broker.store import migrate, schema
from certplane.broker.store.files import open_writer
from tests.fakes.clock import ManualClock
from tests.support.stores import StorePlace

MIGRATIONS = Path(migrate.__file__).parent / "migrations"


@pytest.fixture
def sqlite_place(tmp_path: Path) -> StorePlace:
    return StorePlace("sqlite", tmp_path / "broker.db")


def test_the_newest_migration_is_the_one_the_program_names() -> None:
    """Adding a migration without naming it, or the reverse, is found."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.SCHEMA_REVISION]


async def test_migrations_make_the_schema_on_sqlite(sqlite_place: StorePlace) -> None:
    """Tables, columns, indexes and their conditions are those of schema.py."""
    async with sqlite_place.open(ManualClock()):
        pass
    engine = create_engine(f"sqlite:///{sqlite_place.path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
        made = dict(connection.execute(text("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")).fetchall())
    engine.dispose()
    fresh = create_engine("sqlite://")
    schema.metadata.create_all(fresh)
    with fresh.connect() as connection:
        wanted = dict(connection.execute(text("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")).fetchall())
    fresh.dispose()
    del made["alembic_version"]
    assert {name: parts_of(sql) for name, sql in made.items()} == {name: parts_of(sql) for name, sql in wanted.items()}


def parts_of(sql: str) -> list[str]:
    """A definition's columns and constraints, sorted: a column that was added later stands behind the constraints."""
    return sorted("".join(part.split()) for part in re.split(r",(?![^(]*\)(?!$))|\((?=\n)|\n\)", sql))


@pytest.mark.integration
async def test_migrations_make_the_schema_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    """The same on the other database."""
    async with StorePlace("postgresql", tmp_path / "x", postgres_url).open(ManualClock()):
        pass
    engine = create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
        by_locale = connection.execute(
            text(
                "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
                "AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C'"
            )
        )
        assert by_locale.fetchall() == []
    engine.dispose()


def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDL is part of the transaction: half a schema never stands."""
    path = tmp_path / "broker.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE audit_events (in_the_way)")  # what the first migration makes last
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    with pytest.raises(Exception, match="audit_events"):
        open_writer(path, timedelta(seconds=1), exclusive=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("audit_events",)]


async def test_rows_of_before_orders_were_asked_again_are_taken_over(sqlite_place: StorePlace) -> None:
    """Which orders were finalised, and which keys a revocation has spent, follows from what stands there."""
    upgrade_to("0005", sqlite_place.path)
    with contextlib.closing(sqlite3.connect(sqlite_place.path)) as old, old:
        for number, state in enumerate(("ISSUED", "FAILED", "FINALIZING", "VALIDATING")):
            old.execute(
                "INSERT INTO orders VALUES (?, 'web1', 'a1', 'web', 'h', '[]', 'n', ?, X'30', 'ca', 'r', '', ?, 1, 7, ?, "
                "'', NULL, '', NULL, NULL)",
                (f"o{number}", f"k{number}", state, 7 if state in ("ISSUED", "FAILED") else None),
            )
            old.execute("INSERT INTO keys VALUES (?, 'web1', 1, NULL)", (f"k{number}",))
        old.execute(
            "INSERT INTO certificates VALUES ('c', 'o0', 'web1', 'web', 'h', 'ca', '[]', 'k0', '1', '', '', 1, 9, 5, 1, "
            "'', NULL, 8, 'superseded')"
        )
    async with sqlite_place.open(ManualClock()) as stores:
        found = [await stores.orders.get_order(f"o{number}") for number in range(4)]
        uses = [await stores.keys.key_use(f"k{number}") for number in range(4)]
        record = await stores.certificates.get_certificate("c")
    assert [order.finalize_time is not None for order in found] == [True, False, True, False]
    assert {(order.identity_issuer, order.identity_anchor, order.cause, order.retry_epoch) for order in found} == {
        ("", "", "ordinary", "")
    }
    assert [use.spent for use in uses] == [True, False, False, False]
    assert record.withdrawn is False


def upgrade_to(revision: str, path: Path) -> None:
    """A database as an older release left it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    path.chmod(0o600)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


async def test_the_database_is_private_and_syncs_every_commit(sqlite_place: StorePlace) -> None:
    """0600 for all its files, also where the umask would allow more; write-ahead log; FULL; foreign keys."""
    async with sqlite_place.open(ManualClock()) as stores:
        for file in sqlite_place.path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        connection = stores.writer._commit._session._connection
        settings = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "wal_autocheckpoint", "application_id")
        }
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "wal_autocheckpoint": 0,
        "application_id": schema.APPLICATION_ID,
    }
    assert sorted(file.name for file in sqlite_place.path.parent.iterdir()) == ["broker.db", "broker.db.lock"]


async def test_a_database_open_to_others_is_made_private(
    sqlite_place: StorePlace, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong mode is put right, and told."""
    async with sqlite_place.open(ManualClock()):
        pass
    sqlite_place.path.chmod(0o644)
    async with sqlite_place.open(ManualClock()):
        assert stat.S_IMODE(sqlite_place.path.stat().st_mode) == 0o600
    assert "other users had access to it (mode 644)" in caplog.text
