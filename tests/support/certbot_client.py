"""The real certbot at a Pebble that validates nothing, with all its files below one folder."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from certplane.sandbox.parts import Part
from certplane.sandbox.pebble import Pebble
from tests.support.waiting import HANG


@dataclass(frozen=True)
class Certbot:
    """One certbot; `folder` is what `/etc/letsencrypt` is elsewhere."""

    part: Part
    pebble: Pebble
    folder: Path

    async def certonly(self, *names: str, options: tuple[str, ...] = ()) -> Path:
        """Get a certificate for the names; returns its folder in `live`."""
        domains = [word for name in names for word in ("-d", name)]
        manual = ("--manual", "--preferred-challenges", "dns", "--manual-auth-hook", "true")
        finished = await self.run(
            "certonly", "--agree-tos", "--register-unsafely-without-email", *manual, *domains, *options
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return self.folder / "live" / names[0].removeprefix("*.")

    async def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Any of its commands, as a timer would run it."""
        waits = ("--no-random-sleep-on-renew",) if arguments[0] == "renew" else ()
        command = [str(self.part.path), *arguments, *waits, "--server", self.pebble.directory_url, "--non-interactive"]
        for option, name in (("--config-dir", ""), ("--work-dir", "../work"), ("--logs-dir", "../logs")):
            command += [option, str((self.folder / name).resolve())]
        environment = {**os.environ, "REQUESTS_CA_BUNDLE": str(self.pebble.https_roots_file)}
        return await asyncio.to_thread(
            lambda: subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG, check=False)
        )
