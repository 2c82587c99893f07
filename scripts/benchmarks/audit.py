"""The audit log: durable events per second with many callers, and how long one of them waits.

A round measures, on one file system and in turn: the median fsync of a small append, events per second by one thread
that encodes each and commits it by itself (SQLite, WAL, synchronous=FULL), and the store's audit log with 64 asyncio
callers, each of which waits for its events to be durable before it goes on.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.result import Figure, figure
from certplane.broker.audit import SpillFallback
from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType
from certplane.broker.store import open_stores
from certplane.broker.store.rows import to_micros
from certplane.runtime.clock import SystemClock
from certplane.runtime.ids import TimeOrderedIds

CALLERS = 64
CALLS_PER_SECOND = 20_000
"""How many calls of one event are made for each second that a run is meant to last, roughly what the log manages."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Durable events per second, the 99th percentile of a caller's wait in milliseconds, and what an event took.

    `processor_us` are microseconds of a processor, which others' work on the machine changes little.
    """

    per_second: float
    p99_ms: float
    processor_us: float


@dataclass(frozen=True, slots=True)
class Round:
    """One round: median fsync in milliseconds, single commits per second, the audit log with 1 and 3 events a call."""

    fsync_ms: float
    single: float
    one: Waits
    three: Waits


def make_event(new_id: TimeOrderedIds) -> AuditEvent:
    """An event as a cached answer writes it: about 700 bytes of JSON."""
    return AuditEvent(
        event_id=new_id(),
        timestamp=datetime.now(UTC),
        event_type=AuditEventType.CERTIFICATE_CACHE_HIT,
        request_id="01a207ff-6a12-7c3e-9d1f-3f1c5f1f6a10",
        decision=AuditDecision.CACHE_HIT,
        identity="spiffe://example.org/host/web-1",
        profile_name="web-wildcard",
        profile_hash="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        policy_hash="60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
        source_ip="192.0.2.17",
        user_agent="certplane-agent/0.1.0 grpc-python-asyncio/1.85.1",
        csr_public_key_sha256="fd61a03af4f77d870fc21e05e7e80678095c92d808cfb3b5c279ee04c74aca13",
        csr_dns_names=("*.example.org", "example.org"),
        cache_result="hit",
    )


def _columns(event: AuditEvent) -> tuple[str, int, str]:
    return event.event_id, to_micros(event.timestamp), event.encode()


def fsync_ms(folder: Path, seconds: float) -> float:
    """Median milliseconds of an fsync after an append of 4 KB."""
    times = []
    descriptor = os.open(folder / "fsync", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        os.write(descriptor, b"x" * 4096)
        os.fsync(descriptor)
        times.append(time.perf_counter() - begun)
    os.close(descriptor)
    (folder / "fsync").unlink()
    return statistics.median(times) * 1000


def single_commits(folder: Path, seconds: float) -> float:
    """The plain way: events per second by one thread, each encoded and in a transaction of its own (WAL, FULL)."""
    path = folder / "single.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE audit_events"
        " (sequence INTEGER PRIMARY KEY, event_id TEXT UNIQUE, create_time INTEGER, record TEXT)"
    )
    new_id = TimeOrderedIds(SystemClock())
    events = [make_event(new_id) for _ in range(int(20_000 * seconds))]
    count = 0
    begun = time.perf_counter()
    for event in events:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO audit_events VALUES (NULL, ?, ?, ?)", _columns(event))
        connection.execute("COMMIT")
        count += 1
        if time.perf_counter() - begun > seconds:
            break
    rate = count / (time.perf_counter() - begun)
    connection.close()
    for name in ("single.db", "single.db-wal", "single.db-shm"):
        (folder / name).unlink(missing_ok=True)
    return rate


async def store_events(folder: Path, calls: int, events: int) -> Waits:
    """The audit log: `CALLERS` callers make `calls` calls in all, of `events` each; events per second, and the waits.

    Events are made beforehand, by the callers of the audit log: what is measured is the log. A tenth of the calls is
    made before the clock is started: statements are made then, and the write-ahead log gets its size.
    """
    path = folder / f"store-{events}.db"
    new_id = TimeOrderedIds(SystemClock())
    waits: list[float] = []
    batches = [[make_event(new_id) for _ in range(events)] for _ in range(calls)]
    warm_up = batches[: calls // 10]
    measured = batches[calls // 10 :]
    gc.collect()
    gc.freeze()  # the events themselves are no part of what is measured
    async with open_stores(path=path, audit=SpillFallback("fail_closed", folder / "spill")) as stores:

        async def caller(mine: list[list[AuditEvent]]) -> None:
            for batch in mine:
                begun = time.perf_counter()
                await stores.audit.append(batch)
                waits.append(time.perf_counter() - begun)

        await asyncio.gather(*(caller(warm_up[number::CALLERS]) for number in range(CALLERS)))
        waits.clear()
        begun, worked = time.perf_counter(), time.process_time()
        await asyncio.gather(*(caller(measured[number::CALLERS]) for number in range(CALLERS)))
        took, worked = time.perf_counter() - begun, time.process_time() - worked
    gc.unfreeze()
    for file in folder.glob(f"{path.name}*"):
        file.unlink()
    waits.sort()
    count = len(waits) * events
    return Waits(count / took, waits[len(waits) * 99 // 100] * 1000, worked / count * 1e6)


def measure(folder: Path, *, rounds: int, seconds: float) -> list[Round]:
    """Each round's figures; the bare disk and SQLite are measured before, between and after the audit log's runs."""
    calls = int(CALLS_PER_SECOND * seconds)
    results = []
    for _ in range(rounds):
        fsync, single = [fsync_ms(folder, seconds / 8)], [single_commits(folder, seconds / 6)]
        one = asyncio.run(store_events(folder, calls, 1))
        fsync.append(fsync_ms(folder, seconds / 8))
        single.append(single_commits(folder, seconds / 6))
        three = asyncio.run(store_events(folder, calls // 2, 3))
        fsync.append(fsync_ms(folder, seconds / 8))
        single.append(single_commits(folder, seconds / 6))
        results.append(Round(statistics.median(fsync), statistics.median(single), one, three))
    return results


def figures(rounds: list[Round]) -> list[Figure]:
    """The goals' figures."""
    return [
        figure(
            "audit events/s, 64 callers of 1, to single commits/s",
            [r.one.per_second / r.single for r in rounds],
            ">= 15",
        ),
        figure(
            "audit events/s, 64 callers of 3, to single commits/s",
            [r.three.per_second / r.single for r in rounds],
            ">= 15",
        ),
        figure("audit wait p99, 64 callers of 1, to fsync p50", [r.one.p99_ms / r.fsync_ms for r in rounds], "<= 15"),
    ]
