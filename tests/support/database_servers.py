"""PostgreSQL servers of a test's own: a primary with a streaming standby, and URLs of several."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.postgres import SUPERUSER, PostgresCluster
from tests.support.parts import need_part
from tests.support.stores import StorePlace
from tests.support.waiting import until

DATABASE = "certplane"
SYNCHRONOUS: Mapping[str, str] = {"synchronous_standby_names": "standby"}
"""Settings of a primary: a commit waits until the standby has it."""


@dataclass(frozen=True)
class ServerPair:
    """A primary, its standby, and a store at both."""

    primary: PostgresCluster
    standby: PostgresCluster
    place: StorePlace


def url_of(*clusters: PostgresCluster, parameters: str = "") -> str:
    """A URL of the broker's database that names each of the clusters."""
    hosts = ",".join(f"{LOOPBACK}:{cluster.port}" for cluster in clusters)
    return f"postgresql://{SUPERUSER}@{hosts}/{DATABASE}{parameters}"


@asynccontextmanager
async def server_pair(folder: Path, settings: Mapping[str, str] = SYNCHRONOUS) -> AsyncIterator[ServerPair]:
    """A primary with an empty database, and a standby that follows it; `settings` are the primary's."""
    part = need_part("postgresql")
    async with PostgresCluster(part=part, settings=settings) as primary:
        await primary.create_database(DATABASE)
        async with PostgresCluster(part=part, standby_of=primary) as standby:
            await until(lambda: _follows(primary), what="a standby that has all there is")
            place = StorePlace("postgresql", folder / "broker.db", url_of(primary, standby))
            yield ServerPair(primary, standby, place)


async def _follows(primary: PostgresCluster) -> bool:
    async with await psycopg.AsyncConnection.connect(primary.url()) as connection:
        query = "SELECT FROM pg_stat_replication WHERE state = 'streaming' AND flush_lsn = pg_current_wal_lsn()"
        return await (await connection.execute(query)).fetchone() is not None
