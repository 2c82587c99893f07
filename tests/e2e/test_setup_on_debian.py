"""docs/setup.md, and what other pages say of units and users, on booted Debian machines: see tests/support/debian_walk.py."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import booted
from tests.support.debian_packages import need_packages
from tests.support.waiting import blocking_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]  # packages are built, machines are booted

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def machines() -> None:
    """Nothing is in the way of booting some."""
    booted.need_machines("step", "step-ca", "pebble", "bind")


@pytest.mark.usefixtures("machines")
def test_documents_on_booted_machines(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A reader's lines, with the users, units and owners that they name; a line that fails is shown."""
    debs = need_packages(tmp_path_factory)
    done = booted.enter("tests.support.debian_walk", str(tmp_path), str(debs))
    assert done.returncode == 0, done.stdout
    sys.stdout.write(done.stdout)


@pytest.mark.usefixtures("machines")
def test_nothing_stays_of_a_run_that_is_killed(tmp_path: Path) -> None:
    """No process, no mount, no file: the kernel ends all with whoever began it."""
    begin = f"from tests.support import booted; booted.enter('tests.support.debian_walk', {str(tmp_path)!r}, 'stand')"
    with subprocess.Popen([sys.executable, "-c", begin], cwd=_ROOT) as run:
        try:
            blocking_until((tmp_path / "booted").exists)
            assert running(tmp_path)
        finally:
            run.kill()
    blocking_until(lambda: not running(tmp_path))
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert list((tmp_path / "machines").iterdir()) == []
    blocking_until(booted.remove_control_groups)
    assert not list(Path("/sys/fs/cgroup").glob(f"**/certplane-test-{run.pid}-*"))


def running(folder: Path) -> list[str]:
    """The programs of this machine that have a folder's name in their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (words := path.read_bytes()):
                found.append(words.decode())
    return found
