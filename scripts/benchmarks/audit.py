"""The audit log: durable events per second with many callers, and how long one of them waits.

A round measures, on one file system and in turn: the median fsync of a small append, commits per second of
transactions of one event each (SQLite, WAL, synchronous=FULL, one thread), and the store's audit log with 64 asyncio
callers, each of which waits for its events to be durable before it goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.result import Figure, figure
from certplane.broker.audit import SpillFallback
from certplane.broker.model import AuditDecision, AuditEvent, AuditEventType
from certplane.broker.store import open_stores
from certplane.runtime.clock import SystemClock
from certplane.runtime.ids import TimeOrderedIds

CALLERS = 64


@dataclass(frozen=True, slots=True)
class Waits:
    """Durable events per second, and the 99th percentile of a caller's wait in milliseconds."""

    per_second: float
    p99_ms: float


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
    """Transactions of one event each per second, by SQLite at its defaults but for WAL and FULL."""
    path = folder / "single.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE audit_events (sequence INTEGER PRIMARY KEY, event_id TEXT UNIQUE, create_time INTEGER, record TEXT)"
    )
    new_id = TimeOrderedIds(SystemClock())
    record = json.dumps(make_event(new_id).record())
    count = 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO audit_events VALUES (NULL, ?, ?, ?)", (new_id(), count, record))
        connection.execute("COMMIT")
        count += 1
    rate = count / (time.perf_counter() - begun)
    connection.close()
    for name in ("single.db", "single.db-wal", "single.db-shm"):
        (folder / name).unlink(missing_ok=True)
    return rate


async def store_events(folder: Path, seconds: float, events: int) -> Waits:
    """The audit log with `CALLERS` callers of `events` each: events per second, and what a caller waited."""
    path = folder / f"store-{events}.db"
    new_id = TimeOrderedIds(SystemClock())
    waits: list[float] = []
    async with open_stores(path=path, audit=SpillFallback("fail_closed", folder / "spill")) as stores:
        warm = time.perf_counter() + min(1.0, seconds / 4)  # statements are made, the log's file has its size
        until = warm + seconds

        async def caller() -> None:
            while (begun := time.perf_counter()) < until:
                await stores.audit.append([make_event(new_id) for _ in range(events)])
                if begun > warm:
                    waits.append(time.perf_counter() - begun)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        took = time.perf_counter() - warm
    for file in folder.glob(f"{path.name}*"):
        file.unlink()
    waits.sort()
    return Waits(len(waits) * events / took, waits[len(waits) * 99 // 100] * 1000)


def measure(folder: Path, *, rounds: int, seconds: float) -> list[Round]:
    """Each round's figures; the bare disk and SQLite are measured before and after the audit log."""
    results = []
    for _ in range(rounds):
        fsync = fsync_ms(folder, seconds / 4)
        single = single_commits(folder, seconds / 2)
        one = asyncio.run(store_events(folder, seconds, 1))
        single = statistics.mean((single, single_commits(folder, seconds / 2)))
        three = asyncio.run(store_events(folder, seconds, 3))
        fsync = statistics.mean((fsync, fsync_ms(folder, seconds / 4)))
        results.append(Round(fsync, single, one, three))
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
