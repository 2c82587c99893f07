"""Status streams: how many one broker holds, what each costs, and how fast a fleet is told, comes back and reports.

Each host has an identity, a connection and a stream of its own (`hosts`). What is compared with what:

- Memory and a directive to all: with the bare `grpc.aio` server of `reference`, which answers the same call.
- Connects: with OpenSSL's own handshakes, client certificates included, by two pairs of s_server and s_time. A connect
  is a handshake, hello and welcome: the broker has verified the identity and made the stream durable.
- Unary calls beside idle streams: with the same calls without them.
- The return after a kill: with what the connects alone take. Hosts wait as agents do.
- Reports: with audit events of as many callers. A renewal is seven reports, one of which has an audit event.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load, reports
from benchmarks.fleet import Fleet, HostProcesses, Process, push
from benchmarks.processes import processor_seconds
from benchmarks.result import Figure, figure
from certplane.broker.store.audit_records import record_of
from certplane.sandbox.loopback import LOOPBACK, free_port

HELD, IDLE, RETURNING, REPORTING = 10_000, 5_000, 2_000, 1_000
PUSHES = 3
HANDSHAKE_SECONDS = 5
SETTLE_SECONDS = 3.0
"""After the last welcome: until what was to be done beside it has been done."""
REPORTS = 21
"""Of each host in a storm: three renewals."""
METHOD = "certplane.v1.EnrollmentService.GetIdentity"


@dataclass(frozen=True, slots=True)
class Handshakes:
    """Of OpenSSL: a second, and the servers' processor seconds for each."""

    per_second: float
    processor: float


@dataclass(frozen=True, slots=True)
class Side:
    """A server with its hosts: streams opened a second, processor seconds and bytes of each, seconds of a directive."""

    connects: float
    processor: float
    bytes_each: float
    push: float


@dataclass(frozen=True, slots=True)
class Round:
    """One round; `unary` is a second, without and beside idle streams."""

    openssl: Handshakes
    bare: Side
    ours: Side
    unary: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Return:
    """One kill: hosts by the connect rate before it, seconds until 95 % are back, resident bytes before and after."""

    expected: float
    back: float
    resident: tuple[int, int]


def measure(
    folder: Path, ghz: Path | None, protoset: Path, *, rounds: int, seconds: float, share: float
) -> list[Round]:
    """Idle streams; `share` makes it smaller, for the one who works on it."""
    count = _count(IDLE, share)
    fleet = Fleet(folder / "fleet", count)
    return [_round(fleet, ghz, protoset, count, seconds) for _ in range(rounds)]


def held_figures(folder: Path, *, share: float) -> list[Figure]:
    """Many streams at once, none of them with an error."""
    count = _count(HELD, share)
    resident = _held(Fleet(folder / "fleet", count), count)
    return [figure(f"{count} status streams on one broker, GB", [resident / 1e9], "")]


def return_figures(folder: Path, *, rounds: int, share: float) -> list[Figure]:
    """Hosts that come back after a kill."""
    count = _count(RETURNING, share)
    fleet = Fleet(folder / "fleet", count)
    returns = [_return(fleet, count) for _ in range(rounds)]
    return [
        figure("95 % back after a kill, to the connects alone", [r.back / r.expected for r in returns], "<= 1.3"),
        figure("memory after a return to before the kill", [r.resident[1] / r.resident[0] for r in returns], ""),
    ]


def report_figures(folder: Path, *, rounds: int, share: float) -> list[Figure]:
    """Reports in the store alone, and over gRPC with the broker killed in the midst of them."""
    count = _count(REPORTING, share)
    stored = [asyncio.run(reports.measure(folder, count)) for _ in range(rounds)]
    end_to_end = _storm(Fleet(folder / "fleet", count), count)
    return [
        figure("a renewal's reports/s to audit events/s", [r.steps / r.events for r in stored], ">= 0.88"),
        figure("reports with an event each/s to audit events/s", [r.outcomes / r.events for r in stored], ">= 0.48"),
        figure("reports acknowledged/s over gRPC, absolute", [end_to_end], ""),
    ]


def _count(full: int, share: float) -> int:
    return max(4, int(full * share))


def figures(rounds: list[Round]) -> list[Figure]:
    """The goals' figures."""
    found = [
        figure(
            "memory of an idle stream above a bare one, KB",
            [(r.ours.bytes_each - r.bare.bytes_each) / 1024 for r in rounds],
            "<= 8",
        ),
        figure("memory of an idle stream to bare", [r.ours.bytes_each / r.bare.bytes_each for r in rounds], ""),
        figure(
            "streams opened/s to OpenSSL's handshakes/s",
            [r.ours.connects / r.openssl.per_second for r in rounds],
            ">= 0.52",
        ),
        figure(
            "the bare server's streams opened/s to them",
            [r.bare.connects / r.openssl.per_second for r in rounds],
            "",
        ),
        figure(
            "s_server's processor time to the broker's a stream",
            [r.openssl.processor / r.ours.processor for r in rounds],
            "",
        ),
        figure("processor time a stream opened, the broker's, ms", [r.ours.processor * 1e3 for r in rounds], ""),
        figure("the same of the bare server, ms", [r.bare.processor * 1e3 for r in rounds], ""),
        figure("a directive to all, last receipt to bare", [r.ours.push / r.bare.push for r in rounds], "<= 1.3"),
    ]
    unary = [r.unary[1] / r.unary[0] for r in rounds if r.unary is not None]
    if unary:
        found.append(figure("unary req/s beside idle streams to without", unary, ">= 0.97"))
    return found


def _held(fleet: Fleet, count: int) -> int:
    """All hosts at once, each told something; resident bytes."""
    with fleet.serving() as broker, fleet.hosts(count, processes=4) as hosts:
        _say(f"first connects: {hosts.connect():.0f}/s")
        time.sleep(SETTLE_SECONDS)
        resident = broker.resident
        _told(broker, hosts)
        return resident


def _told(server: Process, hosts: HostProcesses) -> float:
    """Tell all hosts something; seconds until the last has it."""
    begun = push(server)
    answers = hosts.ask("directives 1")
    if sum(answer["count"] for answer in answers) != hosts.count:
        raise RuntimeError("not every host got its directive once")
    return float(max(answer["last"] for answer in answers) - begun)


def _round(fleet: Fleet, ghz: Path | None, protoset: Path, count: int, seconds: float) -> Round:
    openssl = openssl_handshakes(fleet.folder, HANDSHAKE_SECONDS)
    bare, _ = _side(fleet, count, bare=True)
    ours, unary = _side(fleet, count, bare=False, unary=(ghz, protoset, seconds) if ghz is not None else None)
    _say(f"{openssl}\n  bare {bare}\n  ours {ours}\n  unary {unary}")
    return Round(openssl, bare, ours, unary)


def _side(
    fleet: Fleet, count: int, *, bare: bool, unary: tuple[Path, Path, float] | None = None
) -> tuple[Side, tuple[float, float] | None]:
    with fleet.serving(bare=bare) as server, fleet.hosts(count) as hosts:
        without = _unary(fleet, *unary) if unary is not None else 0.0
        resident, processor = server.resident, server.processor
        rate = hosts.connect()
        processor = (server.processor - processor) / count
        time.sleep(SETTLE_SECONDS)
        each = (server.resident - resident) / count
        both = (without, _unary(fleet, *unary)) if unary is not None else None
        told = statistics.median(_told(server, hosts) for _ in range(PUSHES))
        return Side(rate, processor, each, told), both


def _unary(fleet: Fleet, ghz: Path, protoset: Path, seconds: float) -> float:
    data = fleet.folder / "unary.json"
    data.write_text(json.dumps([{}]))
    target = load.Target(fleet.port, fleet.folder)
    result = load.run(ghz, target, data, protoset, seconds=seconds, connections=8, streams=8, method=METHOD)
    if result.failed:
        raise RuntimeError(f"{result.failed} calls did not answer OK; the figures mean nothing")
    return result.per_second


def openssl_handshakes(folder: Path, seconds: int, pairs: int = 2) -> Handshakes:
    """Handshakes by `pairs` of s_server and s_time, TLS 1.3, both sides verifying the other's chain."""
    with ExitStack() as stack:
        ports = [free_port() for _ in range(pairs)]
        servers = []
        for port in ports:
            argv = [
                "openssl", "s_server", "-accept", str(port), "-cert", str(folder / "server.crt"),
                "-key", str(folder / "server.key"), "-CAfile", str(folder / "agents.pem"), "-Verify", "4",
                "-verify_return_error", "-tls1_3", "-quiet",
            ]  # fmt: skip
            server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            servers.append(server)
            stack.callback(server.wait)
            stack.callback(server.kill)
        time.sleep(0.5)
        clients = []
        for port in ports:
            argv = [
                "openssl", "s_time", "-connect", f"{LOOPBACK}:{port}", "-cert", str(folder / "client.pem"),
                "-key", str(folder / "client.key"), "-CAfile", str(folder / "root.pem"), "-verify", "4", "-new",
                "-tls1_3", "-time", str(seconds),
            ]  # fmt: skip
            begun = time.monotonic()
            clients.append(
                (begun, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
            )
        rate, count = 0.0, 0
        for begun, client in clients:
            output, _ = client.communicate()
            took = time.monotonic() - begun
            found = re.search(r"(\d+) connections in .* real seconds", output)
            if found is None or int(found[1]) == 0:
                raise RuntimeError(f"s_time made no connection: {output[-300:]}")
            count += int(found[1])
            rate += int(found[1]) / took
        processor = sum(processor_seconds(server.pid) for server in servers)
        return Handshakes(rate, processor / count)


def _return(fleet: Fleet, count: int) -> Return:
    """Kill the broker under its hosts and start it again."""
    broker = fleet.broker()
    try:
        with fleet.hosts(count) as hosts:
            rate = hosts.connect()
            hosts.ask("report 7")
            time.sleep(SETTLE_SECONDS)
            before = broker.resident
            hosts.ask("stay")
            hosts.tell("away")
            broker.end()
            hosts.answers()
            broker = fleet.broker()
            up = time.monotonic()
            answers = hosts.ask("back")
            if not all(answer["acknowledged"] for answer in answers):
                raise RuntimeError("a report was not acknowledged")
            times = sorted(moment for answer in answers for moment in answer["times"])
            back = times[len(times) * 95 // 100 - 1] - up
            time.sleep(SETTLE_SECONDS)
            _say(
                f"{count} hosts, {rate:.0f} connects/s: 95 % back after {back:.1f} s, all after {times[-1] - up:.1f} s;"
                f" {before / 1e6:.0f} MB before, {broker.resident / 1e6:.0f} MB after"
            )
            return Return(count / rate, back, (before, broker.resident))
    finally:
        broker.end(signal.SIGTERM)


def _storm(fleet: Fleet, count: int) -> float:
    """All hosts report at once, then again with the broker killed in the midst of it; reports acknowledged a second.

    Raises:
        RuntimeError: the store doesn't have each report once.
    """
    _forget_reports(fleet)
    broker = fleet.broker()
    try:
        with fleet.hosts(count) as hosts:
            hosts.connect()
            answers = hosts.ask(f"report {REPORTS}")
            took = max(answer["ended"] for answer in answers) - min(answer["begun"] for answer in answers)
            waits = sorted(wait for answer in answers for wait in answer["waits"])
            _say(f"{len(waits) / took:.0f} reports/s, p50 {waits[len(waits) // 2] * 1e3:.0f} ms")
            hosts.ask("stay")
            for kill in range(3):
                hosts.tell(f"report {REPORTS}")
                time.sleep(min(0.5, took / 3))
                broker.end()
                broker = fleet.broker()
                hosts.answers()
                _say(f"killed {kill + 1} times: all acknowledged, {broker.resident / 1e6:.0f} MB")
    finally:
        broker.end(signal.SIGTERM)
    _check_once(fleet, count, 4 * REPORTS)
    return len(waits) / took


def _forget_reports(fleet: Fleet) -> None:
    """So that those of the storm can be counted."""
    if not (fleet.folder / "broker.db").exists():
        return
    with closing(sqlite3.connect(fleet.folder / "broker.db")) as database:
        for table in ("report_sequences", "certificate_statuses"):
            database.execute(f"DELETE FROM {table}")  # noqa: S608 - names from here
        database.execute("DELETE FROM audit_events")
        database.commit()


def _check_once(fleet: Fleet, count: int, said: int) -> None:
    with closing(sqlite3.connect(fleet.folder / "broker.db")) as database:
        sequences = Counter(
            sequence for (sequence,) in database.execute("SELECT acknowledged_sequence FROM report_sequences")
        )
        rows = database.execute("SELECT event_id, create_time, record, body FROM audit_events")
        records = (json.loads(record_of(*row)) for row in rows)
        told = Counter(
            (record["identity"], record["cert_serial_number"])
            for record in records
            if record["event_type"] == "renewal_reported"
        )
    if sequences != {said: count} or len(told) != count * said // 7 or set(told.values()) != {1}:
        raise RuntimeError(f"reports were lost or doubled: {sequences}, {len(told)} events")


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr)
