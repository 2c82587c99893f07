"""A lock with the holder's process id."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from certplane.runtime.pid_lock import HeldError, lock_with_pid


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


def test_file_that_cannot_be_written() -> None:
    """A disk error comes through, and neither descriptor nor lock is left."""
    descriptor = os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC)
    with pytest.raises(OSError, match=r"Invalid argument|No space left"):
        lock_with_pid(descriptor)
    assert not _is_open(descriptor)
