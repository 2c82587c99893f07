"""The broker's start with a database that is there: seconds and processor time until it accepts, and memory when idle.

The broker is the program as an operator runs it, in a deployment that has issued one certificate. `connect` is tried
every few milliseconds from the moment of the start; what the broker still does after that (loads a DNS provider's
package, asks for directories) is in the processor time of the settled broker.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.agent import POLICY, certified_host
from benchmarks.processes import Memory, memory, processor_seconds
from benchmarks.result import Figure, figure
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.loopback import LOOPBACK

_POLL = 0.003
SETTLE_SECONDS = 5.0
WAIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Start:
    """One start.

    Attributes:
        seconds: from spawn to the first connection that is accepted.
        accepted: processor seconds until then, all processes.
        settled: processor seconds some seconds later.
        main: memory of the broker's own process then.
        all: of all its processes.
    """

    seconds: float
    accepted: float
    settled: float
    main: Memory
    all: Memory


async def measure(folder: Path, *, rounds: int) -> list[Start]:
    """Have a certificate issued, then start the broker again and again."""
    async with Deployment(folder / "deployment", DeploymentOptions(POLICY)) as deployment:
        await certified_host(deployment)
        await deployment.stop_broker()
        command = [deployment.python, "-P", "-m", "certplane.broker", "-c", str(deployment.broker_config), "serve"]
        _start(command, deployment)  # what a first start does once: Python's compiled files
        return [await asyncio.to_thread(_start, command, deployment) for _ in range(rounds)]


def figures(starts: list[Start]) -> list[Figure]:
    """The goals' figures."""
    return [
        figure("broker, start with an existing database to first accept, s", [s.seconds for s in starts], "<= 0.8"),
        figure("the same, processor time, s", [s.accepted for s in starts], ""),
        figure("the same, processor time when settled, s", [s.settled for s in starts], ""),
        figure("broker idle, resident memory, MB", [s.main.resident / 1e6 for s in starts], "<= 85"),
        figure("broker idle, private memory, MB", [s.main.private / 1e6 for s in starts], ""),
        figure("the same with its child processes, resident, MB", [s.all.resident / 1e6 for s in starts], ""),
        figure("the same with its child processes, private, MB", [s.all.private / 1e6 for s in starts], ""),
    ]


def _start(command: list[str], deployment: Deployment) -> Start:
    # Only what a service has, and no variable that keeps Python from its compiled files.
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **deployment.broker_environment}
    begun = time.monotonic()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                try:
                    socket.create_connection((LOOPBACK, deployment.broker_port), 1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > begun + WAIT_SECONDS:
                        raise RuntimeError(f"the broker does not start (status {process.poll()})") from None
                    time.sleep(_POLL)
            seconds = time.monotonic() - begun
            accepted = processor_seconds(process.pid)
            time.sleep(SETTLE_SECONDS)
            settled = processor_seconds(process.pid)
            return Start(seconds, accepted, settled, memory(process.pid, children=False), memory(process.pid))
        finally:
            process.terminate()
            process.wait(WAIT_SECONDS)
