"""The lock beside the spill file: one broker has it, and whoever has it next learns which one that was.

Two brokers with one spill file would take each other's events. And where brokers share a database, one that was killed
keeps its lease for some seconds, during which nobody may take its orders, since to the others a dead broker looks like
a slow one. The kernel knows better: it gives the lock up with the process. So a broker that gets the lock knows that
the one whose id stands in it has ended, and need not wait for the lease.

    <spill>.lock   the process's id, then the broker's and where this file is; it stays

Where the file is (the boot of the kernel, device and inode) keeps the conclusion to the case where it holds: not for a
folder that was copied together with the file, nor for a file server's, whose locks other machines may have lost.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from certplane.errors import OperationError
from certplane.runtime.disk_errors import explain
from certplane.runtime.pid_lock import HeldError, leave_note, lock_with_pid, open_lock

_logger = logging.getLogger("certplane.broker")

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
"""Drawn by the kernel at each boot; containers of one machine have the same (random(4))."""


class SpillLock:
    """The exclusive use of a spill file by one broker."""

    def __init__(self, spill: Path) -> None:
        """Nothing is locked yet."""
        self._spill = spill
        self._path = spill.with_name(spill.name + ".lock")
        self._descriptor: int | None = None
        self._where = ""

    def take(self) -> str:
        """Take the lock; the id of the broker that had it before and has ended for certain, else an empty text.

        A lock that can't be made, in a folder that isn't there say, is a warning: the broker needs the spill file only
        when the database fails, and may need it never.

        Raises:
            OperationError: another broker has it.
        """
        try:
            descriptor = open_lock(self._path)
            note = lock_with_pid(descriptor)
            self._descriptor = descriptor
            self._where = _where(descriptor)
        except HeldError as error:
            raise OperationError(
                f"{self._spill}: another broker ({error}) has this spill file",
                remedy="stop it first, or give each broker an audit.spill_path of its own",
            ) from error
        except OSError as error:
            cause, remedy = explain(error, self._path)
            _logger.warning(
                "the spill file can't be locked, so that another broker that has it isn't noticed: %s",
                cause,
                extra={"fields": {"remedy": remedy}},
            )
            return ""
        broker_id, _, where = note.partition(" ")
        return broker_id if self._where and where == self._where else ""

    def name(self, broker_id: str) -> None:
        """Leave this broker's id for the next one. What can't be written is only a slower start."""
        if self._descriptor is None or not self._where:
            return
        try:
            leave_note(self._descriptor, f"{broker_id} {self._where}\n")
        except OSError as error:
            cause, _ = explain(error, self._path)
            _logger.warning("killed, this broker would leave its orders for the length of its lease: %s", cause)

    def close(self) -> None:
        """Let the next one in, if this one has it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _where(descriptor: int) -> str:
    """Empty where the kernel doesn't say which boot this is: then nobody is known to have ended."""
    status = os.fstat(descriptor)
    try:
        boot = _BOOT.read_text().strip()
    except OSError:
        return ""
    return f"{boot} {status.st_dev}:{status.st_ino}"
