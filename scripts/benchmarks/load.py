"""Drives a gRPC server with ghz and reads what came of it.

ghz is written in Go and uses a quarter of what a Python client would, so that on two cores the server is what is
measured. scripts/bench builds it where there is Go; without it the section that needs it says so and is left out.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

METHOD = "certplane.v1.CertificateService.IssueCertificate"


@dataclass(frozen=True, slots=True)
class Target:
    """A server and the client files to call it with (`root.pem`, `client.pem`, `client.key` in `folder`)."""

    port: int
    folder: Path


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What one run saw: calls per second, mean and 99th percentile in milliseconds, and how many were not OK."""

    per_second: float
    mean_ms: float
    p99_ms: float
    calls: int
    failed: int


def find_ghz() -> Path | None:
    """The ghz binary, if there is one."""
    found = shutil.which("ghz")
    return Path(found) if found else None


def run(
    ghz: Path,
    target: Target,
    data: Path,
    protoset: Path,
    *,
    seconds: float,
    connections: int,
    streams: int,
    method: str = METHOD,
) -> LoadResult:
    """Call `method` with the requests in `data` (a JSON array, taken in turn) for `seconds`."""
    folder = target.folder
    argv = [
        str(ghz), "--protoset", str(protoset), "--call", method, "--data-file", str(data),
        "--cacert", str(folder / "root.pem"), "--cert", str(folder / "client.pem"), "--key", str(folder / "client.key"),
        "--connections", str(connections), "--concurrency", str(connections * streams),
        "--duration", f"{seconds}s", "--duration-stop", "wait", "--format", "json",
        "--skipFirst", str(connections * streams),
        f"localhost:{target.port}",
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=seconds * 4 + 60)
    if done.returncode != 0:
        raise RuntimeError(f"ghz ended with status {done.returncode}: {done.stderr.strip()[:500]}")
    report = json.loads(done.stdout)
    codes = report.get("statusCodeDistribution") or {}
    percentiles = {row["percentage"]: row["latency"] for row in report.get("latencyDistribution") or []}
    return LoadResult(
        per_second=report["rps"],
        mean_ms=report["average"] / 1e6,
        p99_ms=percentiles.get(99, 0) / 1e6,
        calls=report["count"],
        failed=sum(count for code, count in codes.items() if code != "OK"),
    )
