"""certplanectl as a person waits for it: seconds from the Enter key to the first byte of an answer.

A broker with one host answers, so that what is measured is the program: Python, its imports, TLS and one
call.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.result import Figure, figure
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.operator import Operator

_OPERATOR: Final = "alice.certplane.test"
_POLICY: Final[dict[str, Any]] = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["www.certplane.test"]}},
    "hosts": {"web1": {"identity": "web1.certplane.test", "profiles": ["web"]}},
    "operators": {"alice": {"identity": _OPERATOR, "roles": ["operator"]}},
}
_COMMANDS: Final = {"fleet": ["fleet"], "summary": ["summary"], "--help": ["--help"]}
_GOALS: Final = {"fleet": "<= 0.5", "summary": "<= 0.5"}


async def measure(folder: Path, *, rounds: int) -> dict[str, list[float]]:
    """Each command again and again; by command the seconds to the first byte."""
    async with Deployment(folder / "deployment", DeploymentOptions(_POLICY)) as deployment:
        alice = Operator(deployment, _OPERATOR)
        await deployment.start_broker()
        enrolled = await alice.enroll()
        assert enrolled.status == 0, enrolled.stderr
        found = {}
        for name, arguments in _COMMANDS.items():
            command = [deployment.python, "-P", *alice.command(*arguments)]
            await asyncio.to_thread(_first_byte, command)  # what a first run does once: Python's compiled files
            found[name] = [await asyncio.to_thread(_first_byte, command) for _ in range(rounds)]
        return found


def figures(found: dict[str, list[float]]) -> list[Figure]:
    """One for each command."""
    return [
        figure(f"certplanectl {name}, first byte, s", seconds, _GOALS.get(name, "")) for name, seconds in found.items()
    ]


def _first_byte(command: Sequence[str]) -> float:
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.read(1), "it says something"
        seconds = time.perf_counter() - began
        child.stdout.read()
    assert child.returncode == 0
    return seconds
