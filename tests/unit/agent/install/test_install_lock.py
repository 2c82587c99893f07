"""The lock of a state directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from certplane.agent.install.lock import StateLock, StateLockedError
from certplane.errors import OperationError

HOLDER = """
import sys, pathlib
from certplane.agent.install.lock import StateLock
StateLock(pathlib.Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_second_agent_is_told_who_holds_the_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """A second process on the same state directory is refused, with the first one's process id."""
    with pytest.raises(StateLockedError, match=f"in use by process {holder.pid}") as caught:
        StateLock(tmp_path).acquire()
    assert caught.value.holder == holder.pid
    holder.communicate()


def test_killed_holder_leaves_no_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """A crash doesn't leave the lock behind, though its file stays."""
    holder.kill()
    holder.communicate()
    with StateLock(tmp_path):
        assert (tmp_path / "lock").read_text() != f"{holder.pid}\n"


def test_child_of_the_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    """What a hook leaves running doesn't keep the next agent out."""
    with StateLock(tmp_path):
        child = subprocess.Popen(["sleep", "60"])
    with StateLock(tmp_path):
        assert child.poll() is None
    child.kill()
    child.wait()


def test_lock_is_taken_once(tmp_path: Path) -> None:
    """Two locks in one process exclude each other too; taking one twice, or giving back none, is misuse."""
    lock = StateLock(tmp_path / "state")
    with pytest.raises(RuntimeError):
        lock.release()
    with lock:
        with pytest.raises(StateLockedError):
            StateLock(tmp_path / "state").acquire()
        with pytest.raises(RuntimeError):
            lock.acquire()
    with lock:
        pass


def test_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """Somebody's link at the lock's place isn't followed."""
    (tmp_path / "victim").write_text("before")
    (tmp_path / "lock").symlink_to("victim")
    with pytest.raises(OperationError, match=r"can't be locked: .*/lock is a symbolic link"):
        StateLock(tmp_path).acquire()
    assert (tmp_path / "victim").read_text() == "before"


def test_holder_that_wrote_nothing_is_another_process(tmp_path: Path) -> None:
    """A lock whose file holds no process id is refused all the same."""
    with StateLock(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(StateLockedError, match="another process"):
            StateLock(tmp_path).acquire()
