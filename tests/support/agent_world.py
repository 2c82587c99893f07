"""An agent in this process: a real disk below a folder, a clock set by hand, a broker and an internal CA in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from certplane.agent.app import Agent
from certplane.agent.control import FanOut
from certplane.agent.host import Host
from certplane.agent.model import LineageStatus, Version
from certplane.agent.settings import load_settings
from certplane.runtime.clock import SystemClock
from certplane.runtime.progress import Progress
from tests.fakes.agent_broker import FakeBroker
from tests.fakes.agent_identity import FakeIdentityAuthority
from tests.fakes.clock import ManualClock
from tests.support.lineages import LocalIssuer
from tests.support.waiting import until

NAME = "web1.example"


class FakeHost(Host):
    """A `Host` whose internal CA is in memory."""

    fake_authority: FakeIdentityAuthority

    def authority(self) -> Any:
        return self.fake_authority


class Recorder(FanOut):
    """Keeps what it is told, as `subject: event: text`."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def _tell(self, event: str, subject: str, text: str) -> None:
        self.lines.append(f"{subject}: {event}: {text}")
        super()._tell(event, subject, text)


class AgentWorld:
    """One host; `enroll` gives it an identity, `agent` starts the program anew."""

    def __init__(
        self,
        folder: Path,
        certificates: Sequence[Mapping[str, Any]] = ({"name": "web"},),
        *,
        identity: Mapping[str, Any] | None = None,
        clock: ManualClock | None = None,
        metrics: Mapping[str, str] | None = None,
        **ca: Any,
    ) -> None:
        self.folder = folder
        self.metrics = metrics or {}
        self.clock = clock or ManualClock(SystemClock().now().replace(microsecond=0))
        self.broker = FakeBroker(self.clock, LocalIssuer(now=self.clock.now()))
        self.authority = FakeIdentityAuthority(self.clock, **ca)
        self.progress = Recorder()
        self.hosts: list[Host] = []
        (folder / "broker-ca.crt").write_bytes(self.authority.root.pem)
        self.configure(certificates, identity or {})
        self.host = self.start()

    def configure(self, certificates: Sequence[Mapping[str, Any]], identity: Mapping[str, Any]) -> None:
        """Write agent.yml; a certificate has the profile `web`, a name after its own, and outputs below `tls`."""
        tls = self.folder / "tls"
        settings = {
            "state_dir": str(self.folder / "state"),
            "identity": {
                "name": NAME,
                **identity,
                "step_ca": {"url": "https://127.0.0.1:1", "fingerprint": "ab" * 32},
            },
            "broker": {"url": "https://127.0.0.1:1", "server_ca_bundle": str(self.folder / "broker-ca.crt")},
            "metrics": dict(self.metrics),
            "certificates": [
                {
                    "profile": "web",
                    "dns_names": [f"{each['name']}.example"],
                    "key": str(tls / f"{each['name']}.key"),
                    "fullchain": str(tls / f"{each['name']}.pem"),
                    **each,
                }
                for each in certificates
            ],
        }
        (self.folder / "agent.yml").write_text(yaml.safe_dump(settings))

    def start(self) -> Host:
        """A host as a new process would see it."""
        host = FakeHost(load_settings(self.folder / "agent.yml"), clock=self.clock, rng=random.Random(1))
        host.fake_authority = self.authority
        self.hosts.append(host)
        self.host = host
        return host

    def agent(self, progress: Progress | None = None) -> Agent:
        """The agent of a new process."""
        return Agent(self.start(), progress or self.progress, broker=self.broker)

    async def run_once(self, agent: Agent) -> Mapping[str, LineageStatus]:
        """`Agent.run_once` where there are streams: time passes, and with it the wait for what the broker wants."""
        task = asyncio.create_task(agent.run_once())

        def ended() -> bool:
            self.clock.advance(timedelta(seconds=0.05))
            return task.done()

        await until(ended, what="the end of the run")
        return await task

    async def enroll(self) -> Version:
        """Give the host its identity."""
        (self.folder / "state").mkdir(exist_ok=True)
        pending = self.host.host_identity(self.host.authority())
        token = self.authority.mint_token(NAME)
        return await pending.enroll(lambda: token, force=True, report=lambda _: None)

    async def status(self, name: str) -> LineageStatus:
        """A lineage's status as it is on disk."""
        lineage = self.host.identity if name == "identity" else self.host.certificates[name]
        return (await lineage.facts(self.clock.now())).status

    async def versions(self, name: str) -> list[Version]:
        """A lineage's versions on disk."""
        lineage = self.host.identity if name == "identity" else self.host.certificates[name]
        return list((await lineage.facts(self.clock.now())).versions)

    def close(self) -> None:
        """End the threads."""
        for host in self.hosts:
            host.close()
