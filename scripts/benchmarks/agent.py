"""Memory and start of the agent, against a bare grpc.aio client in turn; and `run --once` with nothing due.

Both open one mTLS channel to the bare server and make a first call; both then idle with the channel open. The agent
is the real program with an enrolled identity and a certificate that it already holds, so that it reads its files,
makes its plan, tells the broker what runs here, and waits.

`run --once` is what a timer starts on each host: the broker runs, the certificate is not due. Its processor time is
what the kernel says at its end (wait4(2)), user and system; beside it a Python that imports asyncio and grpc.aio.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Memory, memory
from benchmarks.result import Figure, figure
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host

IDENTITY = "agent1.certplane.test"
POLICY = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": [IDENTITY], "acme": {"challenge": "dns-01"}}},
    "hosts": {"agent1": {"identity": IDENTITY, "profiles": ["web"]}},
}
SETTLE_SECONDS = 2.0
"""After the first call: long enough for whatever a start still does, before memory is read."""


IMPORTS = "import asyncio, grpc.aio"


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds from spawn to the first call at the server, and memory when idle."""

    seconds: float
    memory: Memory


@dataclass(frozen=True, slots=True)
class Run:
    """A command from start to end: its processor seconds, and its most resident bytes."""

    processor: float
    resident: int


@dataclass(frozen=True, slots=True)
class Round:
    """Of a bare client and of the agent; `imports` is a Python that does nothing else."""

    client: Start
    agent: Start
    imports: Run
    once: Run
    help: Run


async def measure(folder: Path, *, rounds: int) -> list[Round]:
    """Give a host its certificate, run its agent, put the bare server in the broker's place, start client and agent."""
    async with Deployment(folder / "deployment", DeploymentOptions(POLICY)) as deployment:
        host = await certified_host(deployment)
        once = [
            (
                _run([deployment.python, "-c", IMPORTS]),
                _run(host.command("run", "--once")),
                _run(host.command("--help")),
            )
            for _ in range(rounds)
        ]
        await deployment.stop_broker()
        echo = folder / "echo"
        echo.mkdir()
        _write_files(echo, deployment, host.identity)
        port = deployment.broker_port
        client = [
            sys.executable, "-m", "benchmarks.reference", "client", "--folder", str(echo), "--port", str(port),
        ]  # fmt: skip
        return [
            Round(_start(client, echo, port), _start(host.command("run"), echo, port), *runs)
            for runs in once
        ]  # fmt: skip


async def certified_host(deployment: Deployment) -> Host:
    """Start the broker, and have a host enrolled that gets its certificate; needs `POLICY`."""
    await deployment.start_broker()
    host = deployment.add_host(IDENTITY, [{"name": "web", "profile": "web", "dns_names": [IDENTITY]}])
    for command in (["enroll"], ["run", "--once"]):
        done = await host.run(*command)
        if done.status != 0:
            raise RuntimeError(f"certplane-agent {' '.join(command)}: {done.stderr}")
    return host


def figures(rounds: list[Round]) -> list[Figure]:
    """The goals' figures."""
    return [
        figure("agent, run --once with nothing due, processor time, ms", [_ms(r.once) for r in rounds], "<= 200"),
        figure("the same to the imports of asyncio and grpc.aio", [_ms(r.once) / _ms(r.imports) for r in rounds], ""),
        figure("agent, run --once with nothing due, most resident, MB", [r.once.resident / 1e6 for r in rounds], ""),
        figure("agent --help, processor time, ms", [_ms(r.help) for r in rounds], ""),
        figure("agent idle, resident memory, MB", [r.agent.memory.resident / 1e6 for r in rounds], "<= 50"),
        figure("agent idle, private memory, MB", [r.agent.memory.private / 1e6 for r in rounds], ""),
        figure(
            "agent idle, resident memory to a bare client's",
            [r.agent.memory.resident / r.client.memory.resident for r in rounds],
            "",
        ),
        figure(
            "agent, start to first call to a bare client's", [r.agent.seconds / r.client.seconds for r in rounds], ""
        ),
    ]


def _ms(run: Run) -> float:
    return run.processor * 1e3


_SPAWN = """
import os, sys
null = os.open(os.devnull, os.O_RDWR)
actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
_, status, used = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], dict(os.environ), file_actions=actions), 0)
print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss)
"""
"""In a small Python of its own: a process inherits the most that its parent ever had, as ru_maxrss tells it."""


def _run(command: Sequence[str]) -> Run:
    """Run a command to its end, with no variable that keeps Python from its compiled files."""
    environment = {name: value for name in ("PATH", "HOME") if (value := os.environ.get(name))}
    argv = [sys.executable, "-I", "-S", "-c", _SPAWN, *command]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    status, processor, most = done.stdout.split()
    if status != "0":
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    return Run(float(processor), int(most) * 1024)


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
                    return Start(moment - began, memory(process.pid))
                finally:
                    process.kill()
        finally:
            server.kill()
