"""Migrations that are killed, and brokers that start in the same moment: the schema is made once, whole or not at all."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from certplane.broker.store.postgresql_schema import MIGRATING
from certplane.broker.store.schema import SCHEMA_REVISION
from tests.fakes.clock import ManualClock
from tests.support.old_data import make_postgresql, make_sqlite
from tests.support.stores import StoreHarness, StorePlace
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.integration

_REVISION = "SELECT version_num FROM alembic_version"
_WAITING = """
    SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'
    AND query_start < clock_timestamp() - interval '1500 ms'
"""
_TABLES = {
    "sqlite": "SELECT name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name",
    "postgresql": "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
    "ORDER BY table_name, column_name",
}


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePlace:
    """A database that 452d001 has left."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    place = StorePlace(request.param, tmp_path / "broker.db", url)
    if url:
        make_postgresql(url)
    else:
        make_sqlite(place.path)
    return place


def start_killed_at(place: StorePlace, number: int) -> int:
    """The end of a program that starts on the database and is killed at a statement of its migrations."""
    command = [sys.executable, "-m", "tests.support.killed_migration", place.kind, str(place.path), place.url]
    return subprocess.run([*command, str(number)], timeout=HANG, capture_output=True, check=False).returncode


@pytest.mark.parametrize("number", [1, 20, 45])
async def test_kill_9_in_a_migration(place: StorePlace, number: int) -> None:
    """At its begin, in its midst, or near its end: the schema and the rows are those of before; the next start migrates."""
    schema = place.query(_TABLES[place.kind])
    rows = place.query("SELECT order_id FROM orders ORDER BY order_id")
    assert rows
    assert start_killed_at(place, number) == -signal.SIGKILL
    assert place.query(_REVISION) == [("0005",)]
    assert place.query(_TABLES[place.kind]) == schema
    async with place.open(ManualClock()) as stores:
        assert stores.ready()
        await StoreHarness(place, ManualClock(), stores).open_order()
    assert place.query(_REVISION) == [(SCHEMA_REVISION,)]
    assert set(rows) < set(place.query("SELECT order_id FROM orders"))


async def test_brokers_that_start_in_one_moment(
    postgres_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On an empty database: one makes the schema, the others wait for it, and all serve."""
    caplog.set_level(logging.INFO)
    place = StorePlace("postgresql", tmp_path / "broker.db", postgres_url)
    start, stop = asyncio.Barrier(4), asyncio.Barrier(4)

    async def broker(number: int) -> str:
        await start.wait()
        async with place.open(ManualClock()) as stores:
            store = StoreHarness(place, ManualClock(), stores)
            order = await store.open_order(public_key_sha256=f"key-{number}", identity=f"host-{number}")
            await stop.wait()
            return order.order_id

    assert len(set(await asyncio.gather(*map(broker, range(4))))) == 4
    made = [record.getMessage() for record in caplog.records if "schema went from" in record.getMessage()]
    assert made == [f"the store's schema went from nothing to {SCHEMA_REVISION}"]
    assert place.query(_REVISION) == [(SCHEMA_REVISION,)]


async def test_a_broker_waits_for_the_whole_of_another_ones_migration(postgres_url: str, tmp_path: Path) -> None:
    """However long that takes: what limits the wait for a row's lock is no limit here."""
    place = StorePlace("postgresql", tmp_path / "broker.db", postgres_url)

    async def starts() -> None:
        async with place.open(ManualClock(), busy_timeout=timedelta(seconds=1)):
            pass

    with psycopg.connect(postgres_url, autocommit=True) as another:
        another.execute("SELECT pg_advisory_lock(%s)", (MIGRATING,))
        starting = asyncio.create_task(starts())
        await until(lambda: place.query(_WAITING), what="a wait that is longer than that limit", by=starting)
    await asyncio.wait_for(starting, HANG)
    assert place.query(_REVISION) == [(SCHEMA_REVISION,)]
