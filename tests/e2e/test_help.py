"""What `--help` says, compared with tests/e2e/help: a change of the interface is seen in review.

After a change that is meant, `CERTPLANE_WRITE_HELP=1 pytest tests/e2e/test_help.py` writes the files anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from certplane import __version__
from certplane.ctl.cli import COMMANDS
from tests.support.waiting import HANG

pytestmark = pytest.mark.e2e

_FOLDER = Path(__file__).parent / "help"


def _parts(name: str) -> list[str]:
    """A command, and the group before it."""
    group = name.rpartition(" ")[0]
    return [group, name] if group else [name]


_COMMANDS = {
    "certplane.agent": ["", "init", "enroll", "run", "check", "status", "renew", "activate", "reload"],
    "certplane.broker": [
        "",
        "init",
        "renew-certificate",
        "serve",
        "check",
        "reload",
        "preflight",
        "backup",
        "policy",
        "policy validate",
        "policy test",
        "policy diff",
        "notify",
        "notify test",
        "account",
        "account show",
        "account rollover",
        "account import",
        "account export",
        "account reseal",
        "account persist-records",
        "certs",
        "certs list",
        "certs show",
        "certs revoke",
        "audit",
        "audit tail",
        "audit verify",
        "audit export",
        "audit keys",
        "store",
        "store check",
        "store copy",
        "identity",
        "identity deny",
        "identity allow",
        "identity list",
    ],
    "certplane.ctl": ["", *dict.fromkeys(part for each in COMMANDS for part in _parts(each.name))],
    "certplane.sandbox": ["", "demo", "parts"],
}


def run(module: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    ).stdout


def normal(text: str) -> str:
    """A text without what differs between Python's versions: where argparse wraps, and `-c FILE, --config FILE`."""
    return re.sub(r"(-\w) [A-Z]+, (--\w)", r"\1, \2", " ".join(text.split()))


@pytest.mark.parametrize(
    ("module", "command"),
    [pytest.param(module, each, id=f"{module} {each}") for module, commands in _COMMANDS.items() for each in commands],
)
def test_help(module: str, command: str) -> None:
    """The help of each command is the one that was reviewed."""
    said = run(module, *command.split(), "--help")
    file = _FOLDER / ("-".join([module.rpartition(".")[2], *command.split()]) + ".txt")
    if os.environ.get("CERTPLANE_WRITE_HELP"):
        file.write_text(said, encoding="utf-8")
    assert normal(said) == normal(file.read_text(encoding="utf-8"))


def test_no_forgotten_files() -> None:
    """Each file is some command's."""
    known = {
        "-".join([module.rpartition(".")[2], *each.split()]) for module, all_ in _COMMANDS.items() for each in all_
    }
    assert {file.stem for file in _FOLDER.glob("*.txt")} == known


def test_every_command_is_compared() -> None:
    """Each command that a help lists is in the table above."""
    for module, commands in _COMMANDS.items():
        for command in commands:
            listed = re.findall(r"^    (\w+) {2,}\w", run(module, *command.split(), "--help"), re.MULTILINE)
            assert listed or command, "the programs themselves list commands"
            assert {f"{command} {each}".strip() for each in listed} <= set(commands)


@pytest.mark.parametrize("program", ["certplane-agent", "certplane-broker", "certplanectl"])
def test_installed_programs(program: str) -> None:
    """All programs are installed beside Python under their names and say their version."""
    installed = Path(sys.executable).parent / program
    said = subprocess.run([installed, "--version"], capture_output=True, text=True, timeout=HANG, check=True).stdout
    assert said == f"{program} {__version__}\n"
