"""A lock with the holder's process id."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from certplane.runtime.pid_lock import HeldError, leave_note, lock_with_pid, open_lock


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("content", "holder"),
    [pytest.param(None, os.getpid(), id="its-id"), pytest.param(b"no number", None, id="something-else")],
)
def test_held(tmp_path: Path, content: bytes | None, holder: int | None) -> None:
    """Whoever comes second hears which process has it, and has no descriptor left over; closing gives it up."""
    path = tmp_path / "lock"
    first = _open(path)
    lock_with_pid(first)
    if content is not None:
        path.write_bytes(content)
    second = _open(path)
    with pytest.raises(HeldError) as caught:
        lock_with_pid(second)
    assert (caught.value.holder, _is_open(second)) == (holder, False)
    os.close(first)
    third = _open(path)
    lock_with_pid(third)
    assert path.read_text() == f"{os.getpid()}\n"
    os.close(third)


def test_note(tmp_path: Path) -> None:
    """Whoever has the lock next is told what the one before has left, until it leaves something else."""
    path = tmp_path / "lock"
    first = open_lock(path)
    assert lock_with_pid(first) == ""
    leave_note(first, "first\n")
    with pytest.raises(HeldError) as caught:
        lock_with_pid(open_lock(path))
    assert caught.value.holder == os.getpid()
    os.close(first)
    for _ in range(2):  # the second one may be killed before it says anything
        second = open_lock(path)
        assert lock_with_pid(second) == "first"
        os.close(second)
    assert path.read_text() == f"{os.getpid()}\nfirst\n"


def test_lock_is_private_and_no_link(tmp_path: Path) -> None:
    """0600, and what a link leads to is left alone."""
    os.close(open_lock(tmp_path / "lock"))
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "lock")
    with pytest.raises(OSError, match="symbolic links"):
        open_lock(tmp_path / "link")


def test_file_that_cannot_be_written() -> None:
    """A disk error comes through, and neither descriptor nor lock is left."""
    descriptor = os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC)
    with pytest.raises(OSError, match=r"Invalid argument|No space left"):
        lock_with_pid(descriptor)
    assert not _is_open(descriptor)
