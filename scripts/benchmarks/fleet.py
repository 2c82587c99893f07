"""A fleet's files, its broker, and the processes that play its hosts.

`Fleet` makes thousands of identities of a CA of its own and a broker that knows them all, without anything else: no
public CA is asked, so none runs. The broker runs as an operator's would (SQLite with synchronous=FULL, `fail_closed`,
uvloop where it is installed), wired by `certplane.broker.app`, in a process of its own that also takes a command, so
that the moment in which it learns that a directive is wanted is known.

`python -m benchmarks.fleet CONFIG` is that process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.hosts import identity_file
from benchmarks.processes import memory, processor_seconds
from benchmarks.reference import broker_loop
from certplane.broker.app import Broker, open_broker
from certplane.broker.descriptors import raise_file_limit
from certplane.broker.prepared import prepare
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.settings import load_settings
from certplane.fleet_report.model import RenewalCause
from certplane.runtime.logging import setup
from certplane.sandbox.certificates import CertificateAuthority, write_private
from certplane.sandbox.loopback import LOOPBACK
from tests.support.stores import NO_LIMITS, certificate, draft

NAME = "host{}.certplane.test"
OPERATOR = "operator.certplane.test"
MOST = 10_000
_PORTS = range(10_240, 32_768)
"""Below those that the kernel gives to outgoing connections: nobody takes the port of a broker that is down."""


class Process:
    """A program that answers each line it is given with a line of JSON."""

    def __init__(self, *arguments: str, log: Path | None = None) -> None:
        self._name = " ".join(arguments[:2])
        with contextlib.ExitStack() as opened:
            errors = opened.enter_context(log.open("ab")) if log is not None else None
            self.child = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        self.answer()

    @property
    def resident(self) -> int:
        """Its resident memory in bytes, its child processes' too."""
        return memory(self.child.pid).resident

    @property
    def processor(self) -> float:
        """Its processor time so far, in seconds, its child processes' too."""
        return processor_seconds(self.child.pid)

    def tell(self, command: str) -> None:
        """Give it a line."""
        assert self.child.stdin is not None
        self.child.stdin.write(command + "\n")
        self.child.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for its line.

        Raises:
            RuntimeError: it has ended, or says what is wrong.
        """
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        answer: dict[str, Any] = json.loads(line or '{"error": "it has ended"}')
        if "error" in answer:
            raise RuntimeError(f"{self._name}: {answer['error']}")
        return answer

    def ask(self, command: str) -> dict[str, Any]:
        """Give it a line, and wait for its own."""
        self.tell(command)
        return self.answer()

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it."""
        self.child.send_signal(number)
        self.child.wait()
        for stream in (self.child.stdin, self.child.stdout):
            if stream is not None:
                stream.close()


class HostProcesses:
    """The hosts, in some processes."""

    def __init__(
        self, folder: Path, port: int, count: int, processes: int = 2, *, first: int = 0, others: Sequence[int] = ()
    ) -> None:
        """Hosts `first` and those after it; when a host loses its stream it tries the ports of `others` too."""
        each = -(-count // processes)
        self.count = count
        ports = [str(port), *map(str, others)]
        self.processes = [
            Process(
                "benchmarks.hosts", "--folder", str(folder), "--port", *ports, "--first", str(begin),
                "--count", str(min(each, first + count - begin)),
            )
            for begin in range(first, first + count, each)
        ]  # fmt: skip

    def ask(self, command: str) -> list[dict[str, Any]]:
        """Tell all of them, and wait for all."""
        self.tell(command)
        return self.answers()

    def tell(self, command: str) -> None:
        """Tell all of them."""
        for process in self.processes:
            process.tell(command)

    def answers(self) -> list[dict[str, Any]]:
        """Wait for all."""
        return [process.answer() for process in self.processes]

    def connect(self, window: int = 64) -> float:
        """Connect all; streams a second, from the first begin to the last welcome."""
        answers = self.ask(f"connect {window // len(self.processes)}")
        times = [moment for answer in answers for moment in answer["times"]]
        return len(times) / (max(times) - min(answer["begun"] for answer in answers))

    def end(self) -> None:
        """Hang up and end."""
        for process in self.processes:
            process.end()


class Fleet:
    """The files of a broker that knows `count` hosts, and of the hosts."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.port = free_port()
        (folder / "identities").mkdir(parents=True)
        agents = CertificateAuthority.root("Bench Identity Root")
        signer = agents.intermediate("Bench Identity CA")
        for number in range(count):
            name = NAME.format(number)
            identity = signer.issue(name, [name])
            write_private(identity_file(folder, number), identity.chain_pem + identity.key_pem)
        self._write_others(agents, signer, count)

    @property
    def config(self) -> Path:
        """broker.yml."""
        return self.folder / "broker.yml"

    def broker(self) -> Process:
        """Start the broker; it listens on return."""
        return Process("benchmarks.fleet", str(self.config), log=self.folder / "broker.log")

    def bare(self) -> Process:
        """Start the bare server on the same port."""
        return Process(
            "benchmarks.reference", "server", "--folder", str(self.folder / "bare"), "--port", str(self.port), "--json"
        )

    @contextlib.contextmanager
    def serving(self, *, bare: bool = False) -> Iterator[Process]:
        """The broker, or the bare server, for the length of the block."""
        server = self.bare() if bare else self.broker()
        try:
            yield server
        finally:
            server.end(signal.SIGKILL if bare else signal.SIGTERM)

    @contextlib.contextmanager
    def hosts(self, count: int, processes: int = 2) -> Iterator[HostProcesses]:
        """The first `count` hosts, not connected yet."""
        hosts = HostProcesses(self.folder, self.port, count, processes)
        try:
            yield hosts
        finally:
            hosts.end()

    def _write_others(self, agents: CertificateAuthority, signer: CertificateAuthority, count: int) -> None:
        folder = self.folder
        bare = folder / "bare"
        server_root = CertificateAuthority.root("Bench Broker Root")
        server = server_root.issue("certplane-broker", ["localhost", LOOPBACK])
        server.write(folder, "server")
        (folder / "root.pem").write_bytes(server_root.pem)
        (folder / "agents.pem").write_bytes(agents.pem)
        bare.mkdir()
        (bare / "server.pem").write_bytes(server.chain_pem)
        write_private(bare / "server.key", server.key_pem)
        (bare / "root.pem").write_bytes(agents.pem)
        # Of a host by itself, for unary calls: a second certificate of one of the others would end that one's stream.
        name = NAME.format(count)
        one = signer.issue(name, [name], key=ec.generate_private_key(ec.SECP256R1()))
        (folder / "client.pem").write_bytes(one.chain_pem)
        write_private(folder / "client.key", one.key_pem)
        operator = signer.issue(OPERATOR, [OPERATOR])
        (folder / "operator.pem").write_bytes(operator.chain_pem)
        write_private(folder / "operator.key", operator.key_pem)
        names = [NAME.format(number) for number in range(count + 1)]
        profile = {"type": "multi_san", "dns_names": ["www.certplane.test"], "acme": {"challenge": "dns-01"}}
        policy = {
            "version": 1,
            "profiles": {"web": profile},
            "hosts": {f"host{number}": {"identity": name, "profiles": ["web"]} for number, name in enumerate(names)},
            "operators": {"operator": {"identity": OPERATOR, "roles": ["admin", "operator"]}},
        }
        (folder / "policy.yml").write_text(json.dumps(policy))
        self.config.write_text(yaml.safe_dump(self._settings()))

    def _settings(self) -> dict[str, Any]:
        folder = self.folder
        return {
            "server": {
                "address": f"{LOOPBACK}:{self.port}",
                "tls": {"cert": str(folder / "server.crt"), "key": str(folder / "server.key")},
                "mtls": {"agent_ca_bundle": str(folder / "agents.pem"), "allow_missing_provisioner": True},
                "calls_per_identity_per_second": 1_000_000,
                "calls_burst": 1_000_000,
            },
            "policy": {"path": str(folder / "policy.yml")},
            "issuer": {
                "provider": "acme",
                "acme": {
                    "directory_url": f"https://{LOOPBACK}:9/directory",  # discard: nothing listens there
                    "account_email": "operator@certplane.test",
                    "account_key": str(folder / "account.key"),
                    "dns_provider": "cloudflare",
                    "cloudflare": {"credentials": "cloudflare/token"},
                },
            },
            "secrets": {"provider": "env"},
            "store": {"driver": "sqlite", "path": str(folder / "broker.db")},
            "audit": {"enabled": True, "failure_mode": "fail_closed"},
            "logging": {"level": "warning", "format": "text", "destination": "stderr"},
        }


def free_port() -> int:
    """A port that nobody takes while its broker is down."""
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise OSError("none of a hundred ports is free")


def push(server: Process) -> float:
    """Have a directive sent to every host; when that began."""
    return float(server.ask("push")["time"])


async def _serve(config: Path) -> None:
    settings = load_settings(config)
    raise_file_limit()
    setup(settings.logging.level, settings.logging.format, settings.logging.destination)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    async with open_broker(prepare(settings)) as broker:
        lines: asyncio.Queue[str] = asyncio.Queue()
        loop.add_reader(0, lambda: lines.put_nowait(sys.stdin.readline()))
        print(json.dumps({"port": broker.port}), flush=True)
        ending = asyncio.create_task(stop.wait())
        commands = asyncio.create_task(_obey(broker, lines))
        await asyncio.wait((ending, commands), return_when=asyncio.FIRST_COMPLETED)
        loop.remove_reader(0)
        commands.cancel()
        ending.cancel()


async def _obey(broker: Broker, lines: asyncio.Queue[str]) -> None:
    """Do what each line says, until they end.

    push                    a renewal is wanted of every host with a stream, as when its plan has become durable
    certify FIRST COUNT     hosts have a certificate each, which no CA was asked for
    want FIRST COUNT        a renewal of these is wanted, durable
    """
    for turn in range(1_000_000):
        command, *arguments = (await lines.get()).split() or [""]
        begun = time.monotonic()
        match command:
            case "":
                return
            case "push":
                plans = _plans(broker, turn)
                gc.collect()
                begun = time.monotonic()
                broker.hub.plans_changed(plans)
            case "certify":
                await _certify(broker, _hosts(arguments))
            case "want":
                when = datetime.now(UTC) + timedelta(minutes=turn)
                await broker.renewal_plans.set_plans([_plan(f"of {host}", host, when) for host in _hosts(arguments)])
            case _:
                raise RuntimeError(f"no command {command}")
        print(json.dumps({"time": begun}), flush=True)


def _hosts(arguments: Sequence[str]) -> list[str]:
    first, count = map(int, arguments)
    return [NAME.format(number) for number in range(first, first + count)]


async def _certify(broker: Broker, hosts: Sequence[str]) -> None:
    orders, now = broker.stores.orders, datetime.now(UTC)
    for host in hosts:
        opened = await orders.open_order(draft(identity=host, public_key_sha256=f"of {host}"), NO_LIMITS, [])
        assert opened is not None
        record = certificate(opened.order, f"of {host}", now, timedelta(days=90))
        await orders.finish_order(opened.order, record, [])


def _plans(broker: Broker, turn: int) -> Sequence[RenewalPlan]:
    when = datetime.now(UTC) + timedelta(minutes=turn)
    return [
        _plan(f"certificate-{turn}", host, when)
        for number in range(MOST)
        if (host := NAME.format(number)) in broker.hub.registry
    ]


def _plan(certificate_id: str, host: str, when: datetime) -> RenewalPlan:
    return RenewalPlan(certificate_id, host, when, RenewalCause.OPERATOR, "the bench wants it so")


def main() -> None:
    """Run the broker until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=broker_loop()) as runner:
        runner.run(_serve(arguments.config))


if __name__ == "__main__":
    main()
