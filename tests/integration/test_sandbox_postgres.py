"""The throw-away PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from certplane.sandbox.postgres import PostgresCluster
from tests.support.parts import need_part

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
