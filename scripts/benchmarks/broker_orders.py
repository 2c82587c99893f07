"""Orders at several brokers of one database: what one takes of their processors, and how long a lost broker's wait.

The brokers ask a real Pebble, and prove names through the sandbox's Cloudflare API and BIND. Each host asks one of the
brokers, in turn. Processor time is of all brokers with their issuing processes, of all orders until nothing is under
way any more, without what they take at rest. For the take-over DNS takes so long that every order of the lost broker is
under way; what is looked at is the column that names an order's holder.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
from typing_extensions import override

from benchmarks.processes import processor_seconds
from certplane.sandbox.certificates import Credential
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.loopback import free_port
from tests.support.deployed_broker import DeployedBroker
from tests.support.limits import UNLIMITED
from tests.support.several_brokers import Broker
from tests.support.storm import Storm
from tests.support.waiting import until

_SETTINGS: Final[Mapping[str, Any]] = {
    "rate_limits": UNLIMITED,
    "server": {"calls_per_identity_per_second": 1_000_000, "calls_burst": 1_000_000, "drain_timeout": "1s"},
    "issuer": {"acme": {"propagation": {"interval": "2s", "timeout": "120s"}}},
}
_BUSY = "SELECT count(*) FROM orders WHERE end_time IS NULL OR txt_records IS NOT NULL"
_HELD = "SELECT holder, count(*) FROM orders WHERE end_time IS NULL GROUP BY holder"
_LOOK = 0.02
_REST = 10.0
_SLOW = timedelta(minutes=2)


class _Spread(DeployedBroker):
    """Each channel leads to the next broker."""

    def __init__(self, deployment: Deployment, brokers: list[Broker]) -> None:
        super().__init__(deployment)
        self._ports = itertools.cycle(broker.port for broker in brokers)

    @override
    def channel(self, identity: str | Credential, port: int = 0) -> AbstractAsyncContextManager[grpc.aio.Channel]:
        return super().channel(identity, port or next(self._ports))


@asynccontextmanager
async def _brokers(folder: Path, storm: Storm, url: str, count: int) -> AsyncIterator[tuple[_Spread, list[Broker]]]:
    async with Deployment(folder, DeploymentOptions(storm.policy, broker=_SETTINGS)) as deployment:
        brokers = [
            Broker(deployment, number, port=free_port() if number > 1 else 0, store_url=url)
            for number in range(1, count + 1)
        ]
        try:
            for broker in brokers:
                await broker.start()
            yield _Spread(deployment, brokers), brokers
        finally:
            await asyncio.gather(*(broker.process.stop() for broker in brokers))


async def processor_time(folder: Path, url: str, brokers: int, orders: int) -> float:
    """Processor seconds of all brokers for an order; `url` is of the database, empty for a file."""
    storm = Storm(orders + brokers)
    profiles = [f"p{number}" for number in range(orders + brokers)]
    async with _brokers(folder, storm, url, brokers) as (spread, running):
        await _issue(storm, spread, profiles[:brokers])  # the account, statements, connections
        await _settled(url, running[0])
        rest, took = await _used(running, asyncio.sleep(_REST))
        rest /= took

        async def work() -> None:
            await _issue(storm, spread, profiles[brokers:])
            await _settled(url, running[0])

        used, took = await _used(running, work())
        return (used - rest * took) / orders


async def _used(brokers: list[Broker], work: Awaitable[None]) -> tuple[float, float]:
    """Processor seconds of all brokers while it works, and how long that is."""
    begun, before = time.monotonic(), sum(processor_seconds(broker.process.pid) for broker in brokers)
    await work
    used = sum(processor_seconds(broker.process.pid) for broker in brokers) - before
    return used, time.monotonic() - begun


async def take_over(folder: Path, url: str, orders: int, *, orderly: bool) -> float:
    """Seconds from a broker's kill, or from when it gives its orders back, until another one has them all."""
    storm = Storm(orders)
    async with _brokers(folder, storm, url, 2) as (spread, (lost, _)):
        spread.deployment.cloudflare.spread_time = _SLOW
        asking = asyncio.create_task(storm.issue(spread))
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:

            async def held() -> dict[str, int]:
                return dict(await (await connection.execute(_HELD)).fetchall())

            async def all_open() -> bool:
                return sum((await held()).values()) == orders

            async def given_back() -> bool:
                return holder not in await held()

            async def taken() -> bool:
                return not {"", holder} & set(await held())

            await until(all_open, poll=_LOOK)
            rows = await (await connection.execute("SELECT broker_id, address FROM brokers")).fetchall()
            (holder,) = [broker_id for broker_id, address in rows if address.endswith(f":{lost.port}")]
            if await given_back():
                raise RuntimeError("the broker that is lost has no order")
            if orderly:
                os.kill(lost.process.pid, signal.SIGTERM)
                await until(given_back, poll=_LOOK / 10)
            else:
                lost.process.kill()
            begun = time.monotonic()
            await until(taken, poll=_LOOK)
            took = time.monotonic() - begun
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await asking
    return took


async def _issue(storm: Storm, spread: _Spread, profiles: list[str]) -> None:
    ended = await storm.issue(spread, profiles)
    if failed := [one for one in ended if one.state != "ISSUED"]:
        raise RuntimeError(f"{len(failed)} of {len(profiles)} orders failed: {failed[0].message}")


async def _settled(url: str, first: Broker) -> None:
    async def nothing_is_left() -> bool:
        if url:
            async with await psycopg.AsyncConnection.connect(url) as connection:
                return await (await connection.execute(_BUSY)).fetchone() == (0,)
        with contextlib.closing(sqlite3.connect(f"file:{first.folder / 'broker.db'}?mode=ro", uri=True)) as file:
            return bool(file.execute(_BUSY).fetchone() == (0,))

    await until(nothing_is_left, poll=0.1, what="the end of all orders")
