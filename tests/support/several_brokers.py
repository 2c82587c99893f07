"""Several broker programs beside the servers of one deployment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import yaml

from certplane.sandbox.deployment import Deployment, Finished, run_program
from certplane.sandbox.loopback import LOOPBACK, free_port
from certplane.sandbox.process import ServerProcess, accepts_tcp
from tests.support.waiting import until


class Broker:
    """One of several, with a configuration of its own; `url` is what agent.yml has.

    Args:
        deployment: The servers, and the first one's port.
        number: From 1.
        port: Where it listens; a free one if none is given, and the deployment's for the first.
        store_url: The database that it shares with others, and the ACME account with it. By default it has a database
            and an account of its own.
        server: Laid over the section `server`.
    """

    def __init__(
        self, deployment: Deployment, number: int, *, port: int = 0, store_url: str = "", **server: Any
    ) -> None:
        self.deployment = deployment
        self.folder = deployment.broker_folder / str(number)
        self.folder.mkdir()
        self.port = port or (deployment.broker_port if number == 1 else free_port())
        self.url = f"https://localhost:{self.port}"
        settings: dict[str, Any] = yaml.safe_load(deployment.broker_config.read_text())
        settings["server"] |= {"address": f"{LOOPBACK}:{self.port}", **server}
        settings["store"]["path"] = str(self.folder / "broker.db")
        if store_url:
            settings["store"] |= {"driver": "postgresql", "url": store_url}
        else:
            settings["issuer"]["acme"]["account_key"] = str(self.folder / "account.key")
        self.config = self.folder / "broker.yml"
        self.config.write_text(yaml.safe_dump(settings))
        self.process = self._process({})

    def _process(self, environment: Mapping[str, str]) -> ServerProcess:
        return ServerProcess(
            "certplane-broker",
            [self.deployment.python, "-P", "-m", "certplane.broker", "-c", self.config, "serve"],
            self.folder / "broker.log",
            environment={**self.deployment.broker_environment, **environment},
        )

    async def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start it, with more in its environment; returns once it listens. One that runs is stopped before."""
        await self.process.stop()
        self.process = self._process(environment or {})
        await self.process.start(lambda: accepts_tcp(LOOPBACK, self.port))

    async def run(self, *arguments: str) -> Finished:
        """A command of this broker's to its end."""
        command = ["-m", "certplane.broker", "-c", str(self.config), *arguments]
        return await run_program(command, self.deployment.broker_environment, python=self.deployment.python)

    @property
    def log(self) -> str:
        """What it has written since its last start."""
        return self.process.log_text()

    def _parts(self) -> Iterator[psutil.Process]:
        """The program and its issuing process."""
        with contextlib.suppress(psutil.NoSuchProcess):
            program = psutil.Process(self.process.pid)
            yield program
            yield from program.children(recursive=True)

    def stop_still(self) -> None:
        """SIGSTOP to all of it, as a machine that is suspended."""
        for part in self._parts():
            part.suspend()

    def go_on(self) -> None:
        """SIGCONT to all of it."""
        for part in self._parts():
            part.resume()

    async def until_still(self) -> None:
        """Wait until it stands still at a failpoint."""
        program = psutil.Process(self.process.pid)

        def still() -> bool:
            assert self.process.running, self.process.log_tail()
            return program.status() == psutil.STATUS_STOPPED

        await until(still, what=f"the broker at {self.url} that stands still")

    async def until_lost(self) -> None:
        """Wait until it says that its lease is gone, which it can while it runs."""
        await until(lambda: "has lost its lease" in self.log, what="the lost lease in the log")

    async def until_leased_again(self) -> None:
        """Wait until it says that it has its lease again."""
        await until(lambda: "has its lease again" in self.log, what="the lease in the log")
