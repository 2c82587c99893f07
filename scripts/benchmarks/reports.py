"""Reports of hosts made durable, against audit events of as many callers: the store alone, in this process.

What the loop and gRPC cost is left out on both sides, and what is made by the callers (reports, events) is made
beforehand: what is measured is how the store gathers a thousand callers into few transactions.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.audit import make_event
from certplane.broker.audit import SpillFallback
from certplane.broker.events import AuditEvent, AuditTrail
from certplane.broker.fleet.events import report_events
from certplane.broker.fleet.model import HostStream
from certplane.broker.model import Caller, IdentityKind
from certplane.broker.store import Stores, open_stores
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate, HostFacts, Report
from certplane.runtime.clock import SystemClock
from certplane.runtime.ids import TimeOrderedIds

CALLS = 21
"""Of each caller: three renewals."""
RENEWAL = (
    CertificateState.DUE,
    CertificateState.REQUESTING,
    CertificateState.ISSUED,
    CertificateState.INSTALLING,
    CertificateState.RELOADING,
    CertificateState.VERIFYING,
    CertificateState.SERVING,
)
"""What a renewal reports; the last one has an audit event."""


@dataclass(frozen=True, slots=True)
class Reports:
    """Durable a second, of many callers at once: audit events; renewals' reports; reports with an event each."""

    events: float
    steps: float
    outcomes: float


async def measure(folder: Path, callers: int) -> Reports:
    """One round of the three."""
    new_id = TimeOrderedIds(SystemClock())
    trail = AuditTrail(SystemClock(), new_id)
    events = [[[make_event(new_id)] for _ in range(2 * CALLS)] for _ in range(callers)]
    steps = [_reports(number, RENEWAL, trail) for number in range(callers)]
    outcomes = [_reports(number, (CertificateState.SERVING,), trail) for number in range(callers)]
    gc.collect()
    gc.freeze()  # what was made beforehand is no part of what is measured
    path = folder / "reports.db"
    async with open_stores(path=path, audit=SpillFallback("fail_closed", folder / "spill")) as stores:
        for number in range(callers):
            await stores.fleet.record_stream(_stream(number))

        async def append(number: int, call: int) -> None:
            await stores.audit.append(events[number][call])

        found = Reports(
            await _rate(append, callers),
            await _rate(_recording(stores, "steps", steps), callers),
            await _rate(_recording(stores, "outcomes", outcomes), callers),
        )
    gc.unfreeze()
    for file in folder.glob(f"{path.name}*"):
        file.unlink()
    return found


def _recording(
    stores: Stores, epoch: str, reports: Sequence[Sequence[tuple[Report, Mapping[int, AuditEvent]]]]
) -> Callable[[int, int], Awaitable[object]]:
    async def record(number: int, call: int) -> None:
        report, told = reports[number][call]
        done = await stores.fleet.record_reports(_host(number), epoch, [report], told, stream_epoch=1)
        if done.acknowledged_sequence != report.sequence or done.new != (report,):
            raise RuntimeError("a report was lost or doubled")

    return record


async def _rate(work: Callable[[int, int], Awaitable[object]], callers: int) -> float:
    """Calls a second; as many are made before the clock starts, in which statements are made and files grow."""

    async def caller(number: int, calls: range) -> None:
        for call in calls:
            await work(number, call)

    await asyncio.gather(*(caller(number, range(CALLS)) for number in range(callers)))
    begun = time.perf_counter()
    await asyncio.gather(*(caller(number, range(CALLS, 2 * CALLS)) for number in range(callers)))
    return callers * CALLS / (time.perf_counter() - begun)


def _stream(number: int) -> HostStream:
    now = datetime.now(UTC)
    return HostStream(_host(number), HostFacts("1"), "1", now, "192.0.2.1", now, now)


def _host(number: int) -> str:
    return f"host{number}.certplane.test"


def _reports(
    number: int, states: Sequence[CertificateState], trail: AuditTrail
) -> list[tuple[Report, Mapping[int, AuditEvent]]]:
    """What a host says, with the events that the broker makes of it."""
    now = datetime.now(UTC)
    name = _host(number)
    caller = Caller(name, IdentityKind.HOST, f"host{number}", ("web",), (), "1", "CN=bench", "JWK", now)
    made: list[tuple[Report, Mapping[int, AuditEvent]]] = []
    for call in range(2 * CALLS):
        held = HeldCertificate(f"{call // len(states) + 1:x}", now, now, version=1, observe_time=now)
        status = CertificateStatus(
            "web", states[call % len(states)], "web", ("example.org", "www.example.org"), issued=held, installed=held,
            served=held, renew_time=now, renew_reason="a third of its life is left", update_time=now,
        )  # fmt: skip
        report = Report(call + 1, status)
        told = report_events(caller, "01a207ff-6a12-7c3e-9d1f-3f1c5f1f6a10", [report], trail)
        made.append((report, {sequence: one.event for sequence, one in told.items()}))
    return made
