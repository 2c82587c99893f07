"""Broker programs beside each other on the servers of one deployment."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from typing import Any

import yaml

from certplane.sandbox.deployment import Deployment, Finished, run_program
from certplane.sandbox.loopback import LOOPBACK, free_port
from certplane.sandbox.process import ServerProcess, accepts_tcp


def shared(store_url: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What brokers have in common that share a database: settings to lay over broker.yml, and secrets.

    Database and ACME account: the account's key is in the database, sealed with a secret that each of them has.
    """
    settings = {
        "store": {"driver": "postgresql", "url": store_url, "seal_secret": "sandbox/seal"},
        "issuer": {"acme": {"account_key": {"store": True}}},
    }
    return settings, {"SANDBOX_SEAL": base64.b64encode(secrets.token_bytes(32)).decode("ascii")}


class FleetBroker:
    """One of several, with files of its own in `broker/NUMBER`; `url` is what agent.yml has.

    Args:
        deployment: The servers, and the first one's port.
        number: From 1.
        port: Where it listens; a free one if none is given, and the deployment's for the first.
        store_url: The database that it shares with others, as it is to reach it; the deployment's settings are `shared`
            then. By default it has a database and an account of its own.
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
        settings: dict[str, Any] = yaml.safe_load(deployment.broker_config.read_text(encoding="utf-8"))
        settings["server"] |= {"address": f"{LOOPBACK}:{self.port}", **server}
        settings["store"]["path"] = str(self.folder / "broker.db")
        if store_url:
            settings["store"] |= {"driver": "postgresql", "url": store_url}
        else:
            settings["issuer"]["acme"]["account_key"] = str(self.folder / "account.key")
        self.config = self.folder / "broker.yml"
        self.config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
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
