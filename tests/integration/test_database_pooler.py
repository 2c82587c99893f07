"""A broker behind a connection pooler: a real PgBouncer, in each of its modes."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from certplane.broker.model import DenyEntry
from certplane.broker.store.postgresql import alone, look_at
from certplane.broker.store.postgresql_reader import PostgresqlReader
from certplane.broker.store.session import Fault, SqlError
from certplane.errors import ConfigurationError, OperationError
from certplane.sandbox.pgbouncer import PgBouncer
from certplane.sandbox.postgres import PostgresCluster
from tests.fakes.clock import ManualClock
from tests.support.parts import need_part
from tests.support.stores import StoreHarness, StorePlace

pytestmark = pytest.mark.integration


def pooler(cluster: PostgresCluster, pool_mode: str, **settings: str) -> PgBouncer:
    return PgBouncer(cluster, pool_mode=pool_mode, settings=settings, part=need_part("pgbouncer"))


def database(url: str) -> str:
    return url.rpartition("/")[2]


@pytest.mark.parametrize(
    ("pool_mode", "settings"),
    [
        pytest.param("transaction", {}, id="transaction"),
        pytest.param("transaction", {"default_pool_size": "1"}, id="one session for all"),
        pytest.param("transaction", {"server_round_robin": "1", "min_pool_size": "5"}, id="the longest unused one"),
        pytest.param("statement", {}, id="statement"),
    ],
)
async def test_a_session_that_is_shared_is_refused(
    postgres: PostgresCluster, postgres_url: str, tmp_path: Path, pool_mode: str, settings: dict[str, str]
) -> None:
    """The start, a command and `check` name the pooler and the key to set; nothing was made or locked."""
    async with pooler(postgres, pool_mode, **settings) as before:
        url = before.url(database(postgres_url))
        place = StorePlace("postgresql", tmp_path / "broker.db", url)
        for exclusive in (True, False):
            with pytest.raises(ConfigurationError) as caught:
                async with place.open(ManualClock(), exclusive=exclusive):
                    pass
            (problem,) = caught.value.problems
            assert problem.key == "store.url"
            assert "pooler" in problem.message
            assert "store.direct_url" in problem.remedy
        with pytest.raises(ConfigurationError, match="pooler"):
            await asyncio.to_thread(look_at, url, timedelta(seconds=5))
        with psycopg.connect(postgres_url) as server:
            assert server.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,)
            assert server.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)


async def test_the_wrong_direct_url_is_named(postgres: PostgresCluster, postgres_url: str, tmp_path: Path) -> None:
    """A direct_url that leads to the pooler as well is refused by its own name."""
    async with pooler(postgres, "transaction") as before:
        url = before.url(database(postgres_url))
        with pytest.raises(ConfigurationError) as caught:
            async with StorePlace("postgresql", tmp_path / "b.db", url).open(ManualClock(), direct_url=url):
                pass
        assert caught.value.problems[0].key == "store.direct_url"


async def test_a_pooler_that_keeps_sessions_serves(
    postgres: PostgresCluster, postgres_url: str, tmp_path: Path
) -> None:
    """In session mode all works, the lock too."""
    async with pooler(postgres, "session") as before:
        place = StorePlace("postgresql", tmp_path / "broker.db", before.url(database(postgres_url)))
        async with place.open(ManualClock()) as stores:
            await stores.deny_list.deny(DenyEntry(name="host.example"), [])
            assert [entry.name for entry in await stores.deny_list.entries()] == ["host.example"]
            with (
                pytest.raises(OperationError, match="a broker uses this database"),
                alone(postgres_url, timedelta(seconds=5), "store.url", empty=False),
            ):
                pass


async def test_a_pooler_without_room_is_refused(postgres: PostgresCluster, postgres_url: str, tmp_path: Path) -> None:
    """A pooler with one session, which it keeps, can't serve a broker: said within seconds, not its own two minutes."""
    async with pooler(postgres, "session", default_pool_size="1") as before:
        place = StorePlace("postgresql", tmp_path / "broker.db", before.url(database(postgres_url)))
        with pytest.raises(ConfigurationError, match="doesn't show whether it keeps sessions"):
            async with place.open(ManualClock()):
                pass


async def test_what_only_reads_goes_over_the_pooler(
    postgres: PostgresCluster, postgres_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With `direct_url` the lock and the writes go past the pooler, reads go over it, as often as one likes."""
    caplog.set_level(logging.INFO)
    async with pooler(postgres, "transaction", default_pool_size="2") as before:
        place = StorePlace("postgresql", tmp_path / "broker.db", before.url(database(postgres_url)))
        async with place.open(ManualClock(), direct_url=postgres_url) as stores:
            store = StoreHarness(place, ManualClock(), stores)
            order = await store.open_order()
            for _ in range(4):  # a driver prepares a statement that it has seen five times
                found = await asyncio.gather(*(stores.orders.get_order(order.order_id) for _ in range(8)))
                assert found == [order] * 8
            with (
                pytest.raises(OperationError, match="a broker uses this database"),
                alone(postgres_url, timedelta(seconds=5), "store.url", empty=False),
            ):
                pass
            with psycopg.connect(postgres_url) as server:
                query = "SELECT count(*) FROM pg_prepared_xacts"
                assert server.execute(query).fetchone() == (0,)
        # Whoever gets a session of the pooler next finds it as the server made it.
        async with await psycopg.AsyncConnection.connect(place.url, prepare_threshold=None) as other:
            for name, value in (("default_transaction_read_only", "off"), ("statement_timeout", "0")):
                assert await (await other.execute(f"SHOW {name}".encode())).fetchone() == (value,)


async def test_a_read_that_fails_leaves_the_pooler_s_session_alone(
    postgres: PostgresCluster, postgres_url: str
) -> None:
    """A query that fails, or that would write, ends its transaction; the next one is answered."""
    async with pooler(postgres, "transaction", default_pool_size="1") as before:
        reader = PostgresqlReader(before.url(database(postgres_url)), timedelta(seconds=5), pooled=True)
        ask = reader.compiler
        with pytest.raises(SqlError) as caught:
            await reader.all(ask(text("SELECT 1 / 0")), {})
        assert caught.value.fault is Fault.OTHER
        with pytest.raises(SqlError, match="read-only"):
            await reader.all(ask(text("CREATE TABLE mine (id integer)")), {})
        for number in range(8):
            assert await reader.one(ask(text(f"SELECT {number}")), {}) == (number,)
        await reader.close()
