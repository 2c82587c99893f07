"""scripts/setup, what a newcomer runs first: what it can't do is a line with cause and remedy, and status 1."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.waiting import HANG

_ROOT = Path(__file__).parents[3]
_INPUTS = ("scripts/setup", "scripts/versions.env", "pyproject.toml", "requirements/dev.txt", "requirements/acme2certifier.txt", "requirements/ansible.txt", "requirements/certbot.txt", "requirements/broker.txt")  # fmt: skip

_NO_INDEX = """#!/bin/sh
case "$*" in
    *"pip install"*) echo "ERROR: No matching distribution found" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the script reads, and a virtual environment whose pip reaches no index."""
    for name in _INPUTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(_ROOT / name, tmp_path / name)
    program = tmp_path / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(_NO_INDEX)
    program.chmod(0o755)
    (tmp_path / "parts").mkdir()
    return tmp_path


def set_up(checkout: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "HOME": str(checkout), "CERTPLANE_PARTS_DIR": str(checkout / "parts")}
    return subprocess.Popen(
        [checkout / "scripts" / "setup", "--quiet"], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_no_package_index(checkout: Path) -> None:
    """The last line says what is missing, where pip's own words are that there is no such version."""
    with set_up(checkout) as process:
        _, said = process.communicate(timeout=HANG)
    assert process.returncode == 1
    assert "PIP_INDEX_URL" in said.splitlines()[-1]
    assert not (checkout / ".venv" / "setup-stamp").exists(), "the next run tries again"


def test_no_python_that_is_new_enough(checkout: Path) -> None:
    """The version that is needed is named, and what is there is left alone."""
    (checkout / ".venv" / "bin" / "python").unlink()
    versions = checkout / "scripts" / "versions.env"
    lines = versions.read_text().splitlines()
    versions.write_text("\n".join("PYTHON_MINIMUM=9.1" if "PYTHON_MINIMUM=" in line else line for line in lines))
    with set_up(checkout) as process:
        _, said = process.communicate(timeout=HANG)
    assert process.returncode == 1
    assert said == "setup: Python 9.1 or newer is needed, and there is none on the PATH\n"


def test_another_set_up_is_waited_for(checkout: Path) -> None:
    """Two at once would build everything twice; whoever waits is told so."""
    with (checkout / "parts" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = set_up(checkout)
        assert process.stderr is not None
        assert process.stderr.readline() == "setup: another set-up of this user is at work; waiting for it\n"
        fcntl.flock(lock, fcntl.LOCK_UN)
        _, said = process.communicate(timeout=HANG)
    assert "installing Python packages" in said
