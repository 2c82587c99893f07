"""How long a broker's store takes to open on PostgreSQL, with many ended orders and audit events and with few.

The same thousand hosts with a certificate in force each: what a start reads is of them, and nothing of what has ended.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.growth_fill import Size, fill_postgresql
from benchmarks.result import Figure, figure
from certplane.broker.audit import SpillFallback
from certplane.broker.store import open_stores
from certplane.sandbox.postgres import PostgresCluster

_HOSTS: Final = 1_000
_TIMES: Final = 5


def measure(folder: Path, *, share: float) -> list[Figure]:
    """Fill both, and open them in turn; `share` is of the million orders and the two million events."""
    return asyncio.run(_measure(folder, share))


async def _measure(folder: Path, share: float) -> list[Figure]:
    many = Size(_HOSTS, _HOSTS, max(_HOSTS, int(1_000_000 * share)), max(_HOSTS, int(2_000_000 * share)))
    few = Size(_HOSTS, _HOSTS, _HOSTS, _HOSTS)
    async with PostgresCluster(settings={"fsync": "on"}) as cluster:
        urls = {}
        for size in (few, many):
            urls[size] = await cluster.create_database(f"open_{size.orders}")
            print(f"  filling {size} ...", file=sys.stderr)
            await asyncio.to_thread(fill_postgresql, urls[size], size)
        times: dict[Size, list[float]] = {few: [], many: []}
        for _ in range(_TIMES):
            for size, url in urls.items():
                times[size].append(await _open(folder, url))
    ratios = [a / b for a, b in zip(times[many], times[few], strict=True)]
    return [
        figure(f"store open with {few.orders} orders, ms", [1e3 * took for took in times[few]], ""),
        figure(f"store open with {many.orders} orders, {many.events} events, to that", ratios, "<= 1.2"),
    ]


async def _open(folder: Path, url: str) -> float:
    audit = SpillFallback("fail_closed", folder / "spill.jsonl")
    begun = time.perf_counter()
    async with open_stores(driver="postgresql", url=url, audit=audit) as stores:
        took = time.perf_counter() - begun
        assert stores.ready()
    return took
