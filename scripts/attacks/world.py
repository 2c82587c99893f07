"""The sandbox that is attacked: all servers, the broker as an operator runs it, and a CA of ours beside step-ca.

With a CA of our own in `agent_ca_bundle` hostile identities can be anything that an internal CA could sign.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from attacks.neighbour import Neighbour
from attacks.target import PROFILE
from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.loopback import free_port

HOSTILE = 4
NAMES = ["www.certplane.test"]
_HOSTS = ["neighbour", *(f"hostile{number}" for number in range(1, HOSTILE + 1))]
_POLICY = {
    "version": 1,
    "profiles": {PROFILE: {"type": "multi_san", "dns_names": NAMES, "acme": {"challenge": "dns-01"}}},
    "hosts": {name: {"identity": f"{name}.certplane.test", "profiles": [PROFILE]} for name in _HOSTS},
}


class Hostile:
    """A hostile host's process."""

    def __init__(self, attack: str, folder: Path, port: int, number: int, seconds: float) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "attacks.hostile", attack, "--folder", str(folder), "--port", str(port),
                "--number", str(number), "--seconds", str(seconds),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if self._line() != "ready\n":
            raise RuntimeError("a hostile host did not start")

    def begin(self) -> None:
        """Attack."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> str:
        """Wait for its end; what it counted."""
        counted = self._line().strip() or '{"it has failed": 1}'
        self._process.wait(timeout=60)
        return counted

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


class World:
    """A running sandbox."""

    def __init__(self, deployment: Deployment, neighbour: Neighbour, files: Path) -> None:
        self.deployment = deployment
        self.neighbour = neighbour
        self.files = files

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, folder: Path) -> AsyncIterator[World]:
        """Start everything; the neighbour has its certificate."""
        files = folder / "files"
        files.mkdir(parents=True)
        bundle = files / "agents.pem"
        root = CertificateAuthority.root("Attack Root")
        signer = root.intermediate("Attack CA")
        for name in _HOSTS:
            signer.issue("", [f"{name}.certplane.test"]).write(files, name)
        metrics = free_port()
        (files / "metrics.port").write_text(str(metrics))
        broker = {
            "server": {"mtls": {"agent_ca_bundle": str(bundle), "allow_missing_provisioner": True}},
            "metrics": {"address": f"127.0.0.1:{metrics}"},
        }
        async with Deployment(folder / "sandbox", DeploymentOptions(_POLICY, broker=broker)) as deployment:
            bundle.write_bytes(deployment.identity_ca.roots_file.read_bytes() + root.pem)
            (files / "root.crt").write_bytes((deployment.broker_folder / "root.crt").read_bytes())
            await deployment.start_broker()
            neighbour = Neighbour(files, deployment.broker_port, NAMES)
            try:
                await neighbour.settle()
                yield cls(deployment, neighbour, files)
            finally:
                await neighbour.close()

    async def shut_out(self, *, denied: bool) -> None:
        """Put the hostile hosts on the deny-list, or take them off."""
        for name in _HOSTS[1:]:
            command = ["identity", "deny", "--name", f"{name}.certplane.test", "--reason", "attack"]
            if not denied:
                command = ["identity", "allow", "--name", f"{name}.certplane.test"]
            finished = await self.deployment.run_broker(*command)
            if finished.status != 0:
                raise RuntimeError(f"{' '.join(command)}: {finished.stderr}")

    def raise_firewall(self) -> None:
        """Put the rules of the documentation in force, for the broker's port."""
        text = (Path(__file__).resolve().parents[2] / "docs" / "limits.md").read_text(encoding="utf-8")
        _, begin, rest = text.partition("table inet certplane {")
        rules = begin + rest.partition("```")[0]
        ours = rules.replace("dport 8443", f"dport {self.deployment.broker_port}")
        subprocess.run(["nft", "-f", "-"], input=ours, text=True, check=True)

    def hostile(self, attack: str, number: int, seconds: float) -> Hostile:
        """A hostile host, ready to begin."""
        return Hostile(attack, self.files, self.deployment.broker_port, number, seconds)

    @property
    def broker_seconds(self) -> float:
        """Processor time that the broker has used so far."""
        times = self._broker.cpu_times()
        return float(times.user + times.system)

    @property
    def broker_megabytes(self) -> float:
        """The broker's resident memory."""
        return float(self._broker.memory_info().rss) / 2**20

    @property
    def written_megabytes(self) -> float:
        """Database and log of the broker."""
        folder = self.deployment.broker_folder
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 2**20

    @property
    def _broker(self) -> psutil.Process:
        return psutil.Process(self.deployment.broker_process.pid)
