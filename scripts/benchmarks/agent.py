"""Memory and start of the agent, against a bare grpc.aio client in turn.

Both open one mTLS channel to the bare server and make a first call; both then idle with the channel open. The agent
is the real program with an enrolled identity and a certificate that it already holds, so that it reads its files,
makes its plan, tells the broker what runs here, and waits.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.result import Figure, figure
from certplane.sandbox.deployment import Deployment, DeploymentOptions

IDENTITY = "agent1.certplane.test"
POLICY = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": [IDENTITY], "acme": {"challenge": "dns-01"}}},
    "hosts": {"agent1": {"identity": IDENTITY, "profiles": ["web"]}},
}
SETTLE_SECONDS = 2.0
"""After the first call: long enough for whatever a start still does, before memory is read."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds from spawn to the first call at the server, resident bytes when idle."""

    seconds: float
    resident: int


async def measure(folder: Path, *, rounds: int) -> list[tuple[Start, Start]]:
    """Give a host its certificate, put the bare server in the broker's place, then start client and agent in turn."""
    async with Deployment(folder / "deployment", DeploymentOptions(POLICY)) as deployment:
        await deployment.start_broker()
        host = deployment.add_host(IDENTITY, [{"name": "web", "profile": "web", "dns_names": [IDENTITY]}])
        for command in (["enroll"], ["run", "--once"]):
            done = await host.run(*command)
            if done.status != 0:
                raise RuntimeError(f"certplane-agent {' '.join(command)}: {done.stderr}")
        await deployment.stop_broker()
        echo = folder / "echo"
        echo.mkdir()
        _write_files(echo, deployment, host.identity)
        port = deployment.broker_port
        client = [
            sys.executable, "-m", "benchmarks.reference", "client", "--folder", str(echo), "--port", str(port),
        ]  # fmt: skip
        return [
            (_start(client, echo, port), _start(host.command("run"), echo, port))
            for _ in range(rounds)
        ]  # fmt: skip


def figures(rounds: list[tuple[Start, Start]]) -> list[Figure]:
    """The goals' figures."""
    return [
        figure(
            "agent idle, resident memory to a bare client's", [a.resident / c.resident for c, a in rounds], "<= 1.30"
        ),
        figure("agent, start to first call to a bare client's", [a.seconds / c.seconds for c, a in rounds], "<= 1.50"),
    ]


def _write_files(echo: Path, deployment: Deployment, identity: tuple[Path, Path]) -> None:
    """The bare server takes the broker's certificate; the bare client has the agent's identity."""
    broker = deployment.broker_folder
    (echo / "server.pem").write_bytes((broker / "server.crt").read_bytes())
    (echo / "server.key").write_bytes((broker / "server.key").read_bytes())
    (echo / "root.pem").write_bytes((broker / "root.crt").read_bytes() + deployment.identity_ca.roots_file.read_bytes())
    (echo / "client.pem").write_bytes(identity[0].read_bytes())
    (echo / "client.key").write_bytes(identity[1].read_bytes())


def _start(command: Sequence[str], echo: Path, port: int) -> Start:
    """Start `command`, wait for its first call at a bare server of its own, and let it idle."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.reference", "server", "--folder", str(echo), "--port", str(port)],
        stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            server.stdout.readline()  # it listens
            began = time.monotonic()
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                try:
                    moment = float(server.stdout.readline().removeprefix("call "))
                    time.sleep(SETTLE_SECONDS)
                    return Start(moment - began, psutil.Process(process.pid).memory_info().rss)
                finally:
                    process.kill()
        finally:
            server.kill()
