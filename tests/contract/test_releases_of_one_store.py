"""A database that a newer release has migrated: who may still use it, and who is told to stay away."""

from __future__ import annotations

import contextlib
import sqlite3
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from certplane.broker.store import files, migrate, postgresql
from certplane.broker.store.schema import READABLE_FROM, SCHEMA_REVISION
from certplane.errors import ConfigurationError
from tests.fakes.clock import ManualClock
from tests.support.stores import StoreHarness, StorePlace

WAIT = timedelta(seconds=5)
NEXT = "0999"


def run(place: StorePlace, *statements: str) -> list[tuple[Any, ...]]:
    """Do what an operator or another release does; the rows of the last statement."""
    if place.kind == "sqlite":
        with contextlib.closing(sqlite3.connect(place.path, isolation_level=None)) as connection:
            return [connection.execute(statement).fetchall() for statement in statements][-1]
    with contextlib.closing(psycopg.connect(place.url, autocommit=True)) as server:
        found = [server.execute(statement.encode()) for statement in statements][-1]
        return found.fetchall() if found.description else []


def migrated_by_the_next(place: StorePlace, readable_from: str) -> None:
    """As a newer release leaves a database: more columns and tables, and who can read it."""
    run(
        place,
        "ALTER TABLE orders ADD COLUMN slot TEXT",
        "CREATE TABLE budgets (name TEXT PRIMARY KEY)",
        f"UPDATE alembic_version SET version_num = '{NEXT}'",  # noqa: S608 - of this file
        f"UPDATE shared_values SET value = '{readable_from}' WHERE name = 'schema_readable_from'",  # noqa: S608
    )


def look_at(place: StorePlace) -> list[str]:
    """What `check` says."""
    return files.look_at(place.path) if place.kind == "sqlite" else postgresql.look_at(place.url, WAIT)


@pytest.fixture
def place(store_place: StorePlace) -> StorePlace:
    if store_place.kind == "memory":
        pytest.skip("nothing stays of it")
    return store_place


async def test_the_database_says_who_can_read_it(place: StorePlace) -> None:
    """From the first start on."""
    async with place.open(ManualClock()):
        pass
    query = "SELECT value FROM shared_values WHERE name = 'schema_readable_from'"
    assert run(place, query) == [(READABLE_FROM,)]


async def test_an_older_broker_starts_on_what_a_newer_one_only_added_to(
    place: StorePlace, caplog: pytest.LogCaptureFixture
) -> None:
    """It reads and writes, says so in its log, leaves the schema alone, and commands beside it work too."""
    async with place.open(ManualClock()):
        pass
    migrated_by_the_next(place, SCHEMA_REVISION)
    assert [notice.partition(": ")[2] for notice in look_at(place) if "schema" in notice] == [
        f"the database has the schema {NEXT} of a newer certplane-broker, which this one can use"
    ]
    async with place.open(ManualClock()) as stores, place.open(ManualClock(), exclusive=False) as beside:
        store = StoreHarness(place, ManualClock(), stores)
        order = await store.open_order()
        assert await beside.orders.get_order(order.order_id) == order
    assert run(place, "SELECT version_num FROM alembic_version") == [(NEXT,)]
    assert run(place, "SELECT slot FROM orders") == [(None,)]
    assert any(NEXT in record.message and record.levelname == "WARNING" for record in caplog.records)


async def test_an_older_broker_is_refused_what_it_could_not_read(place: StorePlace) -> None:
    """With what the database needs and what to do; so are `check` and commands."""
    async with place.open(ManualClock()):
        pass
    migrated_by_the_next(place, "0998")
    said = f"newer certplane-broker (schema {NEXT}, which programs of schema 0998 and newer can use)"
    for exclusive in (True, False):
        with pytest.raises(ConfigurationError) as caught:
            async with place.open(ManualClock(), exclusive=exclusive):
                pass
        assert said in str(caught.value)
        assert "install that version" in str(caught.value)
    with pytest.raises(ConfigurationError, match="newer certplane-broker"):
        look_at(place)


async def test_a_newer_one_that_says_nothing_is_not_trusted(place: StorePlace) -> None:
    """As releases before this rule left a database."""
    async with place.open(ManualClock()):
        pass
    migrated_by_the_next(place, "")
    with pytest.raises(ConfigurationError, match="newer certplane-broker"):
        async with place.open(ManualClock()):
            pass


async def test_a_copy_is_made_by_the_newest_release_alone(place: StorePlace) -> None:
    """An older one would leave out what it doesn't know."""
    async with place.open(ManualClock()):
        pass
    migrated_by_the_next(place, SCHEMA_REVISION)
    said = "this one knows only a part; do it with the program of that release"
    alone: Any = (
        files.alone(place.path, WAIT, empty=False)
        if place.kind == "sqlite"
        else postgresql.alone(place.url, WAIT, "store.url", empty=False)
    )
    with pytest.raises(ConfigurationError, match=said), alone:
        pass


@pytest.mark.parametrize(
    ("revision", "readable", "shut_out"),
    [(None, "0020", False), ("0012", "0020", False), ("0019", "0020", True), ("0020", "0020", False)],
    ids=["an empty database", "of before brokers shared one", "older than that", "just so"],
)
def test_whom_a_migration_shuts_out(
    revision: str | None, readable: str, shut_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brokers that run beside it, on a schema from which on programs can't use the new one."""
    monkeypatch.setattr(migrate, "READABLE_FROM", readable)
    assert migrate.shuts_out_older(migrate.FoundSchema(revision)) is shut_out
