"""One agent per state directory: a lock that a crash can't leave behind."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from certplane.errors import OperationError
from certplane.runtime.disk_errors import as_user, disk_error, user_text
from certplane.runtime.files import open_directory
from certplane.runtime.pid_lock import HeldError, lock_with_pid

_NAME = "lock"


class StateLockedError(OperationError):
    """Another agent uses the state directory; `holder` is its process id as it wrote it, None if it can't be read."""

    def __init__(self, path: Path, holder: int | None) -> None:
        who = "another process" if holder is None else f"process {holder}"
        super().__init__(f"{path.parent} is in use by {who}", remedy="wait for it to end, or stop it")
        self.holder = holder


class StateLock:
    """A context manager around everything that writes the state directory.

    On `<state_dir>/lock` (`pid_lock`). The descriptor isn't inherited, so that what a hook leaves running doesn't hold
    the lock.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock; the state directory is made (0755) if it is missing.

        Raises:
            StateLockedError: somebody else has it.
            OperationError: the directory can't be used.
        """
        if self._fd is not None:
            raise RuntimeError("the lock is held already")
        path = self._state_dir / _NAME
        try:
            with open_directory(self._state_dir, create_mode=0o755) as directory:
                fd = directory.open_lasting(_NAME, mode=0o644)
            lock_with_pid(fd)
        except HeldError as error:
            raise StateLockedError(path, error.holder) from error
        except OSError as error:
            raise _not_taken(error, path) from error
        self._fd = fd

    def release(self) -> None:
        """Give it back."""
        if self._fd is None:
            raise RuntimeError("the lock isn't held")
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def _not_taken(error: OSError, path: Path) -> OperationError:
    doing = "the state directory can't be locked"
    told = disk_error(OperationError, doing, error, path)
    with contextlib.suppress(OSError):
        owner = path.parent.stat().st_uid
        if isinstance(error, PermissionError) and owner != os.geteuid():
            message = f"{told.message}; {path.parent} belongs to {user_text(owner)}"
            return OperationError(message, remedy=f"run it as that user: `{as_user(owner, 'certplane-agent ...')}`")
    return told
