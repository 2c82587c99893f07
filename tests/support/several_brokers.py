"""Several broker programs beside the servers of one deployment."""

from __future__ import annotations

from typing import Any

import yaml

from certplane.sandbox.deployment import Deployment
from certplane.sandbox.loopback import LOOPBACK, free_port
from certplane.sandbox.process import ServerProcess, accepts_tcp


class Broker:
    """One of several, with a configuration, a database and an account of its own; `url` is what agent.yml has.

    Args:
        deployment: The servers, and the first one's port.
        number: From 1.
        port: Where it listens; a free one if none is given, and the deployment's for the first.
        server: Laid over the section `server`.
    """

    def __init__(self, deployment: Deployment, number: int, *, port: int = 0, **server: Any) -> None:
        self.deployment = deployment
        self.folder = deployment.broker_folder / str(number)
        self.folder.mkdir()
        self.port = port or (deployment.broker_port if number == 1 else free_port())
        self.url = f"https://localhost:{self.port}"
        settings: dict[str, Any] = yaml.safe_load(deployment.broker_config.read_text())
        settings["server"] |= {"address": f"{LOOPBACK}:{self.port}", **server}
        settings["store"]["path"] = str(self.folder / "broker.db")
        settings["issuer"]["acme"]["account_key"] = str(self.folder / "account.key")
        self.config = self.folder / "broker.yml"
        self.config.write_text(yaml.safe_dump(settings))
        self.process = self._process()

    def _process(self) -> ServerProcess:
        return ServerProcess(
            "certplane-broker",
            [self.deployment.python, "-P", "-m", "certplane.broker", "-c", self.config, "serve"],
            self.folder / "broker.log",
            environment=self.deployment.broker_environment,
        )

    async def start(self) -> None:
        self.process = self._process()
        await self.process.start(lambda: accepts_tcp(LOOPBACK, self.port))
