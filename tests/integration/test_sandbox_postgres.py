"""The throw-away PostgreSQL."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psycopg
import pytest

from certplane.sandbox.pgbouncer import PgBouncer
from certplane.sandbox.postgres import PostgresCluster
from tests.support.database_servers import server_pair
from tests.support.parts import need_part
from tests.support.waiting import until

pytestmark = pytest.mark.integration


async def test_gives_databases_of_their_own(postgres: PostgresCluster, postgres_url: str) -> None:
    """A table of one database isn't in another."""
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        await connection.execute("CREATE TABLE mine (id integer)")
    async with await psycopg.AsyncConnection.connect(postgres.url()) as connection:
        cursor = await connection.execute("SELECT to_regclass('mine')")
        assert await cursor.fetchone() == (None,)


async def test_keeps_its_data_over_a_restart_and_leaves_nothing(tmp_path: Path) -> None:
    """Stopped and started again it has its data; after the end its folder is gone."""
    async with PostgresCluster(part=need_part("postgresql")) as cluster:
        folder = cluster.folder
        url = await cluster.create_database("kept")
        async with await psycopg.AsyncConnection.connect(url) as connection:
            await connection.execute("CREATE TABLE mine AS SELECT 7 AS id")
        await cluster.stop()
        with pytest.raises(psycopg.OperationalError):
            await psycopg.AsyncConnection.connect(url)
        await cluster.start()
        async with await psycopg.AsyncConnection.connect(url) as connection:
            cursor = await connection.execute("SELECT id FROM mine")
            assert await cursor.fetchone() == (7,)
    assert not folder.exists()


async def test_a_standby_follows_until_it_is_promoted(tmp_path: Path) -> None:
    """It has what the primary has and takes no writes; promoted, and without the primary, it does."""
    async with server_pair(tmp_path) as pair:
        await pair.primary.execute("CREATE TABLE mine (id integer)")

        async def arrived() -> bool:
            with contextlib.suppress(psycopg.errors.UndefinedTable):
                await pair.standby.execute("SELECT FROM mine")
                return True
            return False

        await until(arrived)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await pair.standby.execute("INSERT INTO mine VALUES (1)")
        pair.primary.crash()
        await pair.standby.promote()
        await pair.standby.execute("INSERT INTO mine VALUES (1)")


async def test_what_was_kept_is_restored(tmp_path: Path) -> None:
    """After a restore there is what there was when the copy was kept, and nothing of later."""
    async with PostgresCluster(part=need_part("postgresql")) as cluster:
        await cluster.execute("CREATE TABLE mine AS SELECT 7 AS id")
        await cluster.stop()
        await cluster.keep_copy()
        await cluster.start()
        await cluster.execute("INSERT INTO mine VALUES (8)")
        await cluster.stop()
        await cluster.restore_copy()
        await cluster.start()
        async with await psycopg.AsyncConnection.connect(cluster.url()) as connection:
            cursor = await connection.execute("SELECT id FROM mine")
            assert await cursor.fetchall() == [(7,)]


async def test_a_pooler_shares_the_server_s_sessions(postgres: PostgresCluster) -> None:
    """Two clients, one after the other and both connected, are served by one process of the server."""
    part = need_part("pgbouncer")
    async with PgBouncer(postgres, pool_mode="transaction", part=part) as pooler:
        clients = [await psycopg.AsyncConnection.connect(pooler.url(), autocommit=True) for _ in range(2)]
        processes = [await (await client.execute("SELECT pg_backend_pid()")).fetchone() for client in clients]
        assert processes[0] == processes[1]
        for client in clients:
            await client.close()
    with pytest.raises(psycopg.OperationalError):
        await psycopg.AsyncConnection.connect(pooler.url())
