"""The service of examples/go, built as its document says, and run as a program.

Its modules come by the ordinary Go client, in the versions and with the hashes of its go.mod and go.sum. Where there is no
Go that is new enough, or the modules can't be had, its tests are skipped with a word; or fail where all parts are required.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from certplane.sandbox import parts
from certplane.sandbox.deployment import Deployment
from certplane.sandbox.process import ServerProcess
from tests.support.tls_services import served_serial
from tests.support.waiting import MINUTES_OF_WORK

EXAMPLE = Path(__file__).parents[2] / "examples" / "go"


def _left_out(reason: str) -> NoReturn:
    message = f"the Go example is left out: {reason}"
    if parts.all_required():
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


class GoModule:
    """A copy of the example with what go does there."""

    def __init__(self, folder: Path) -> None:
        """Copy it; the test is skipped where Go or the modules aren't there."""
        self.folder = folder / "examples" / "go"
        go = shutil.which("go")
        if go is None:
            _left_out("there is no Go")
        shutil.copytree(EXAMPLE, self.folder, ignore=shutil.ignore_patterns("gen", "protos"))
        programs = folder / "bin"
        programs.mkdir()
        (programs / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (programs / "python3").chmod(0o755)
        path = os.pathsep.join(map(str, [programs, Path(sys.executable).parent, Path(go).parent, os.environ["PATH"]]))
        go_settings = {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0", "GOWORK": "off"}
        self.environment = {**os.environ, **go_settings, "PATH": path}
        wanted = self._version(re.search(r"^go (\S+)$", (EXAMPLE / "go.mod").read_text(), re.MULTILINE))
        have = self._version(re.search(r"go(\d\S*)", self.run("go", "version").stdout))
        if have < wanted:
            _left_out(f"its go.mod wants Go {'.'.join(map(str, wanted))}, and this is {'.'.join(map(str, have))}")
        modules = self.run("go", "mod", "download", check=False)
        if modules.returncode != 0:
            assert "checksum mismatch" not in modules.stderr, modules.stderr
            _left_out(f"its modules can't be had: {modules.stderr.strip()[-300:]}")

    def build_as_documented(self) -> None:
        """The commands of its README.md, typed at the top of a checkout."""
        section = (self.folder / "README.md").read_text(encoding="utf-8").partition("\n## Build\n")[2]
        commands = section.partition("```sh\n")[2].partition("```")[0]
        assert commands.startswith("cd examples/go\n")
        self.run("bash", "-ec", f"cd ../..\n{commands}")

    @staticmethod
    def _version(found: re.Match[str] | None) -> tuple[int, ...]:
        assert found is not None
        return tuple(map(int, re.findall(r"\d+", found[1])[:2]))

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in its folder to its end."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MINUTES_OF_WORK,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done


class GoService:
    """The program, as a service of a deployment: its identity is a pair of files that somebody has enrolled."""

    def __init__(self, program: Path, deployment: Deployment, identity: tuple[Path, Path], folder: Path) -> None:
        self.folder = folder
        self.settings = {
            "broker": f"localhost:{deployment.broker_port}",
            "broker-ca": str(deployment.broker_folder / "root.crt"),
            "identity-cert": str(identity[0]),
            "identity-key": str(identity[1]),
            "profile": "api",
            "folder": str(folder),
            "listen": "127.0.0.1:0",
        }
        self._program = program
        self._process: ServerProcess | None = None

    async def start(self) -> None:
        """Start it, or start it again; returns once it listens."""
        arguments = [f"-{name}={value}" for name, value in self.settings.items()]
        self._process = ServerProcess("Go service", [self._program, *arguments], self.folder.parent / "service.log")

        async def listens() -> bool:
            return "serving at " in self.log_text()

        await self._process.start(listens)

    def log_text(self) -> str:
        """What it has said since it was started."""
        assert self._process is not None
        return self._process.log_text()

    @property
    def port(self) -> int:
        """Where it listens."""
        found = re.search(r"serving at https://127\.0\.0\.1:(\d+)", self.log_text())
        assert found is not None
        return int(found[1])

    async def serial(self) -> str:
        """The serial number of the certificate that a new connection is shown, hexadecimal."""
        return await served_serial(self.port)

    async def stop(self) -> None:
        """Ask it to end."""
        if self._process is not None:
            await self._process.stop()

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
