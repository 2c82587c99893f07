"""A database that a newer release has migrated: who may still use it, and who is told to stay away."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.members.model import Member
from certplane.broker.model import DenyEntry
from certplane.broker.store import files, postgresql, postgresql_schema
from certplane.broker.store.schema import READABLE_FROM, SCHEMA_REVISION
from certplane.errors import ConfigurationError
from tests.fakes.clock import ManualClock
from tests.support.stores import StoreHarness, StorePlace

WAIT = timedelta(seconds=5)
NEXT = "0999"


def migrated_by_the_next(place: StorePlace, readable_from: str) -> None:
    """As a newer release leaves a database: more columns and tables, and who can read it."""
    place.execute("ALTER TABLE orders ADD COLUMN slot TEXT; CREATE TABLE budgets (name TEXT PRIMARY KEY)")
    place.execute(f"UPDATE alembic_version SET version_num = '{NEXT}'")  # noqa: S608 - of this file
    place.execute(f"UPDATE shared_values SET value = '{readable_from}' WHERE name = 'schema_readable_from'")  # noqa: S608 - a revision of the test


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
    assert place.query(query) == [(READABLE_FROM,)]


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
    assert place.query("SELECT version_num FROM alembic_version") == [(NEXT,)]
    assert place.query("SELECT slot FROM orders") == [(None,)]
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


async def test_a_migration_shuts_out_nobody_who_runs(
    store_place: StorePlace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused, and names the brokers; once they have gone, or know a schema that is new enough, it runs."""
    if store_place.kind != "postgresql":
        pytest.skip("one broker has no others")
    monkeypatch.setattr(postgresql_schema, "READABLE_FROM", NEXT)
    async with store_place.open(ManualClock()) as stores:
        member = Member("", "machine1", "[::]:8443", "1.0", stores.members._clock.now(), "p", "t", "c")
        await stores.members.renew(member, timedelta(minutes=1))
        store_place.execute("UPDATE alembic_version SET version_num = '0012'")
        monkeypatch.setattr(postgresql_schema, "_SHARED_SINCE", "0012")
        monkeypatch.setattr(postgresql_schema, "migrate", lambda *_: logging.getLogger().warning("migrated"))
        with pytest.raises(ConfigurationError) as caught:
            async with store_place.open(ManualClock()):
                pass
        said = "brokers of an older release run that can't use the new schema: machine1 [::]:8443 (version 1.0)"
        assert said in str(caught.value)
        assert "migrated" not in caplog.text
        store_place.execute(f"UPDATE brokers SET schema_revision = '{NEXT}'")  # noqa: S608 - of this file
        async with store_place.open(ManualClock()):
            assert "migrated" in caplog.text


async def test_what_a_newer_release_tells_of_is_passed_over(place: StorePlace) -> None:
    """A kind of change that this program doesn't know is nobody's; what follows it is heard."""
    clock = ManualClock()
    async with place.open(clock) as stores, place.open(clock, exclusive=False) as beside:
        await stores.changes.look()
        place.execute("INSERT INTO changes (writer, number, kind, key, time) VALUES ('newer', 1, 'budget', 'web', 1)")
        await beside.deny_list.deny(DenyEntry(name="web1"), [])
        await stores.changes.look()
        assert stores.ready()
        assert stores.deny_list.denied("web1", "", "") is not None
