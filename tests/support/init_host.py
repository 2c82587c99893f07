"""A host on which `certplane-agent init` is run, against the servers of a deployment."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from certplane.sandbox.deployment import Deployment, Finished
from tests.support.in_terminal import InTerminal
from tests.support.waiting import no_hang

_AS_USER = """
import encodings.idna, encodings.utf_8_sig, os, sys
from certplane.agent.cli import main
from certplane.agent.init import command, identity
identity.load()  # that user may have no way to the test's own virtual environment
os.setgroups([])
os.setresgid({uid}, {uid}, {uid})
os.setresuid({uid}, {uid}, {uid})
sys.exit(main())
"""


class InitHost:
    """A folder in which nothing is yet; `arguments` are those that a broker's operator would hand out."""

    def __init__(self, deployment: Deployment, folder: Path, name: str) -> None:
        self.deployment = deployment
        self.folder = folder
        self.name = name
        self.config = folder / "etc" / "agent.yml"
        self.state = folder / "var" / "agent"
        self.tls = folder / "etc" / "tls"
        self.user = ""
        self.acts_as: int | None = None
        """The user by whom the program is run; None for the test's."""

    @property
    def arguments(self) -> list[str]:
        ca = self.deployment.identity_ca
        given = [
            *("-c", str(self.config), "--state-dir", str(self.state), "--name", self.name),
            *("--ca-url", ca.url, "--ca-fingerprint", ca.authority.fingerprint),
            *("--broker", f"https://localhost:{self.deployment.broker_port}"),
            *("--broker-ca", str(self.deployment.broker_folder / "root.crt")),
        ]
        return [*given, *(["--user", self.user] if self.user else [])]

    def mint(self, name: str = "") -> str:
        return self.deployment.identity_ca.mint_token(name or self.name)

    async def init(
        self, *more: str, token: str | None = None, arguments: list[str] | None = None, **environment: str
    ) -> Finished:
        """Run it: `token` on standard input; none, and no --token, where it is None."""
        given = [*(self.arguments if arguments is None else arguments), *more]
        if token is not None:
            given += ["--token", "-"]
        return await self.run("init", *given, told=token, environment=environment)

    async def run(self, *arguments: str, told: str | None = None, environment: Mapping[str, str] = {}) -> Finished:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", *self._program, *arguments),
            env={**kept, "LANG": "C.UTF-8", **environment},
            stdin=subprocess.DEVNULL if told is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # no terminal of the test's own to ask at
        )
        async with no_hang():
            out, errors = await process.communicate(None if told is None else f"{told}\n".encode())
        assert process.returncode is not None
        return Finished(process.returncode, out.decode(), errors.decode())

    @property
    def _program(self) -> list[str]:
        return ["-m", "certplane.agent"] if self.acts_as is None else ["-c", _AS_USER.format(uid=self.acts_as)]

    @asynccontextmanager
    async def in_terminal(self, *arguments: str) -> AsyncIterator[InTerminal]:
        """Run it on a terminal of its own."""
        master, slave = os.openpty()
        before = termios.tcgetattr(slave)
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "certplane.agent", *arguments),
            env={**kept, "LANG": "C.UTF-8", "TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        shown = InTerminal(master, slave, process, before)
        loop = asyncio.get_running_loop()
        loop.add_reader(master, shown.read)
        try:
            yield shown
        finally:
            loop.remove_reader(master)
            if process.returncode is None:
                process.kill()
                await process.wait()
            os.close(master)
            shown.close_slave()

    @property
    def settings(self) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load(self.config.read_text())
        return loaded

    def snapshot(self) -> dict[str, tuple[int, int, int, str]]:
        """All that is there, by path: owner, mode, when it was changed, and its content's hash."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            changed = status.st_mtime_ns if path.is_file() and path.name != "lock" else 0
            found[str(path.relative_to(self.folder))] = (status.st_uid, status.st_mode, changed, content)
        return found
