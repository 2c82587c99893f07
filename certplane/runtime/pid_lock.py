"""A lock between processes that a crash can't leave behind: flock(2) on a file that holds the holder's process id.

Behind the id may stand a note, for whoever has the lock next: all that is left of one that was killed.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from certplane.runtime.files import give_to_service

_MOST: Final = 4096
"""Octets of the file that are read."""


class HeldError(Exception):
    """Another process has the lock; `holder` is its id as it wrote it, None if it can't be read."""

    def __init__(self, holder: int | None) -> None:
        super().__init__("another process" if holder is None else f"process {holder}")
        self.holder = holder


def open_lock(path: Path) -> int:
    """The file, made (0600) if there is none; no link is followed.

    Raises:
        OSError: it can't be opened.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)  # it is never removed
    give_to_service(descriptor, path.parent)
    return descriptor


def lock_with_pid(descriptor: int) -> str:
    """Take the lock on an open file at once, and leave this process's id there for whoever finds it locked.

    The kernel gives it up when the descriptor is closed, or the process ends, however it ends. The file must stay:
    removing it would let two processes lock two files of one name. Whatever is raised, the descriptor is closed.

    Returns the note of whoever had it before, empty if there is none; it stays until `leave_note`.

    Raises:
        HeldError: somebody else has it.
        OSError: the file can't be locked or written.
    """
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HeldError(_holder(descriptor)) from error
        _, _, note = _content(descriptor).partition("\n")
        leave_note(descriptor, note)
    except BaseException:
        os.close(descriptor)
        raise
    return note.strip()


def leave_note(descriptor: int, note: str) -> None:
    """Write what the next holder is told, behind this process's id. The lock is held.

    Raises:
        OSError: the file can't be written.
    """
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n{note}".encode(), 0)


def _holder(descriptor: int) -> int | None:
    try:
        return int(_content(descriptor).split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def _content(descriptor: int) -> str:
    return os.pread(descriptor, _MOST, 0).decode(errors="replace")
