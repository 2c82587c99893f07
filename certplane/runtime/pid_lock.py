"""A lock between processes that a crash can't leave behind: flock(2) on a file that holds the holder's process id."""

from __future__ import annotations

import fcntl
import os


class HeldError(Exception):
    """Another process has the lock; `holder` is its id as it wrote it, None if it can't be read."""

    def __init__(self, holder: int | None) -> None:
        super().__init__("another process" if holder is None else f"process {holder}")
        self.holder = holder


def lock_with_pid(descriptor: int) -> None:
    """Take the lock on an open file at once, and leave this process's id there for whoever finds it locked.

    The kernel gives it up when the descriptor is closed, or the process ends, however it ends. The file must stay:
    removing it would let two processes lock two files of one name. Whatever is raised, the descriptor is closed.

    Raises:
        HeldError: somebody else has it.
        OSError: the file can't be locked or written.
    """
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HeldError(_holder(descriptor)) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    except BaseException:
        os.close(descriptor)
        raise


def _holder(descriptor: int) -> int | None:
    try:
        return int(os.pread(descriptor, 32, 0))
    except (OSError, ValueError):
        return None
