"""`IssueCertificate` answered from the cache by the real broker, against the bare server in turn.

The broker runs as its operator would run it: SQLite with synchronous=FULL, `fail_closed`, its own process, a
certificate in its cache that Pebble issued over dns-01. The hand-out's audit event, or its count, is durable before the
answer. For "CSR verified" each call of a run has a CSR that the broker never saw, signed anew by the one key (ECDSA
signatures differ), so that no cache of verified CSRs can answer; for "seen before" all calls send one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import load
from benchmarks.processes import processor_seconds
from benchmarks.result import Figure, figure
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, PrivateKey, generate_private_key
from certplane.sandbox.deployment import Deployment, DeploymentOptions

IDENTITY = "bench1.certplane.test"
NAMES = ["bench.certplane.test", "www.bench.certplane.test"]
CSRS_OF_A_RUN = 6_000
"""New for each run. ghz takes them in turn, and begins again in a run that makes more calls: each is forgotten by then,
since these are more than the broker's cache of verified CSRs holds (4,096)."""

POLICY = {
    "version": 1,
    "profiles": {"bench": {"type": "multi_san", "dns_names": NAMES, "acme": {"challenge": "dns-01"}}},
    "hosts": {"bench1": {"identity": IDENTITY, "profiles": ["bench"]}},
}
BROKER = {
    "server": {"calls_per_identity_per_second": 1_000_000, "calls_burst": 1_000_000},
    "audit": {"failure_mode": "fail_closed"},
    "logging": {"level": "warning"},
}


@dataclass(frozen=True, slots=True)
class Run(load.LoadResult):
    """What one run saw, and the processor time that a call cost its server, in microseconds."""

    cpu_us: float


@dataclass(frozen=True, slots=True)
class Round:
    """One round's rates and latencies: bare server, CSRs not seen before, one CSR."""

    echo: Run
    fresh: Run
    seen: Run
    echo_alone: Run
    fresh_alone: Run


async def measure(folder: Path, ghz: Path, protoset: Path, *, rounds: int, seconds: float) -> list[Round]:
    """Run the rounds; the bare server and the broker take turns."""
    async with Deployment(folder / "deployment", DeploymentOptions(POLICY, broker=BROKER)) as deployment:
        await deployment.start_broker()
        files = folder / "client"
        files.mkdir()
        identity = await deployment.identity_ca.issue(IDENTITY)
        (files / "client.pem").write_bytes(identity.chain_pem)
        (files / "client.key").write_bytes(identity.key_pem)
        (files / "root.pem").write_bytes((deployment.broker_folder / "root.crt").read_bytes())
        key = generate_private_key(KeyType.EC_P256)
        fresh, seen = files / "fresh.json", files / "seen.json"
        _write_requests(seen, key, 1)
        broker = load.Target(deployment.broker_port, files)
        load.run(ghz, broker, seen, protoset, seconds=10, connections=1, streams=1)  # has the certificate issued
        (files / "server.pem").write_bytes((deployment.broker_folder / "server.crt").read_bytes())
        (files / "server.key").write_bytes((deployment.broker_folder / "server.key").read_bytes())
        echo_files = folder / "echo"
        echo_files.mkdir()
        for name in ("client.pem", "client.key", "server.pem", "server.key"):
            (echo_files / name).write_bytes((files / name).read_bytes())
        roots = (files / "root.pem").read_bytes() + deployment.identity_ca.roots_file.read_bytes()
        (echo_files / "root.pem").write_bytes(roots)
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.reference", "server", "--folder", str(echo_files)],
            stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                assert process.stdout is not None
                echo = load.Target(int(process.stdout.readline().split()[1]), echo_files)
                pids = {echo: process.pid, broker: deployment.broker_process.pid}

                def run(target: load.Target, data: Path, connections: int, streams: int) -> Run:
                    if data == fresh:
                        _write_requests(fresh, key, CSRS_OF_A_RUN)
                    before = processor_seconds(pids[target])
                    result = load.run(
                        ghz, target, data, protoset, seconds=seconds, connections=connections, streams=streams
                    )
                    calls = result.calls + connections * streams  # those that ghz leaves out of its report
                    return Run(**asdict(result), cpu_us=(processor_seconds(pids[target]) - before) / calls * 1e6)

                run(echo, seen, 8, 8)
                run(broker, seen, 8, 8)
                return [
                    Round(
                        echo=run(echo, seen, 8, 8),
                        fresh=run(broker, fresh, 8, 8),
                        seen=run(broker, seen, 8, 8),
                        echo_alone=run(echo, seen, 1, 1),
                        fresh_alone=run(broker, fresh, 1, 1),
                    )
                    for _ in range(rounds)
                ]
            finally:
                process.kill()


def _write_requests(path: Path, key: PrivateKey, count: int) -> None:
    csrs = [build_csr(key, sans=NAMES) for _ in range(count)]
    path.write_text(json.dumps([{"profile": "bench", "csrPem": csr} for csr in csrs]))


def figures(rounds: list[Round]) -> list[Figure]:
    """The goals' figures: median, least and most of the rounds' ratios."""
    failed = sum(one.failed for entry in rounds for one in (entry.echo, entry.fresh, entry.seen, entry.fresh_alone))
    if failed:
        raise RuntimeError(f"{failed} calls did not answer OK; the figures mean nothing")
    return [
        figure(
            "cached issue, CSR verified, req/s to echo",
            [r.fresh.per_second / r.echo.per_second for r in rounds],
            ">= 0.45",
        ),
        figure(
            "cached issue, CSR seen before, req/s to echo",
            [r.seen.per_second / r.echo.per_second for r in rounds],
            ">= 0.72",
        ),
        figure(
            "cached issue alone, mean latency to echo's",
            [r.fresh_alone.mean_ms / r.echo_alone.mean_ms for r in rounds],
            "<= 2.9",
        ),
        figure(
            "cached issue, CSR verified, processor time a call to echo's",
            [r.fresh.cpu_us / r.echo.cpu_us for r in rounds],
            "",
        ),
        figure(
            "cached issue, CSR seen before, processor time a call to echo's",
            [r.seen.cpu_us / r.echo.cpu_us for r in rounds],
            "",
        ),
        figure("echo, processor time a call, us", [r.echo.cpu_us for r in rounds], ""),
        figure("cached issue, CSR verified, processor time a call, us", [r.fresh.cpu_us for r in rounds], ""),
        figure("cached issue, CSR seen before, processor time a call, us", [r.seen.cpu_us for r in rounds], ""),
    ]
