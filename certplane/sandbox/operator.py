"""An operator on a deployment: an identity of its own, had as a host has one, and certplanectl with it."""

from __future__ import annotations

from pathlib import Path

import yaml

from certplane.sandbox.deployment import Deployment, Finished, Host, run_program


class Operator:
    """Its files: `hosts/<name>` has ctl.yml beside what enrolment left. The policy must know the name."""

    def __init__(self, deployment: Deployment, name: str) -> None:
        """Write the files; nothing is enrolled yet."""
        self._deployment = deployment
        self._host = Host(deployment, name)
        self._host.write_token()
        self._host.write_config([])
        self.write_config(f"https://localhost:{deployment.broker_port}")

    def write_config(self, url: str) -> None:
        """Write ctl.yml for the broker at `url`."""
        cert, key = self._host.identity
        settings = {
            "broker": {"url": url, "server_ca_bundle": str(self._deployment.broker_folder / "root.crt")},
            "identity": {"cert": str(cert), "key": str(key)},
        }
        self.config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    @property
    def identity(self) -> tuple[Path, Path]:
        """Certificate chain and key, as grpcurl and certplanectl read them."""
        return self._host.identity

    @property
    def config(self) -> Path:
        """ctl.yml."""
        return self._host.folder / "ctl.yml"

    async def enroll(self) -> Finished:
        """Get the identity from the internal CA with a one-time token."""
        return await self._host.run("enroll")

    def command(self, *arguments: str) -> list[str]:
        """The arguments of this Python for a certplanectl command."""
        return ["-m", "certplane.ctl", "-c", str(self.config), *arguments]

    async def run(self, *arguments: str) -> Finished:
        """Run a certplanectl command to its end."""
        return await run_program(self.command(*arguments), {})
