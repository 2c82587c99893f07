"""A copy of a SQLite database, made beside the broker that writes it: whole, private, and never half there.

SQLite copies one state of it, what is in the write-ahead log included; the broker goes on writing meanwhile. The copy
appears under its name when it is on the disk and was read from end to end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from pathlib import Path

from certplane.broker.store.files import beside
from certplane.broker.store.soundness import RESTORE, broken_pages
from certplane.errors import OperationError
from certplane.runtime.disk_errors import disk_error
from certplane.runtime.files import sync_folder


def back_up(database: Path, copy: Path) -> int:
    """Make `copy`, 0600, in a folder that is there; returns its size in octets. Blocks.

    Raises:
        ConfigurationError: there is no database, or it is none of the broker's.
        OperationError: there is something at `copy`, it can't be written, or the database is damaged.
    """
    if os.path.lexists(copy):
        raise _there(copy)
    if not copy.parent.is_dir():
        raise OperationError(f"{copy.parent} is no folder", remedy="make it, or name another one")
    making = copy.with_name(f".{copy.name}.{os.getpid()}.new")
    try:
        os.close(os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with beside(database) as source:
                _copy(source, making)
            _put(making, copy)
        finally:
            making.unlink(missing_ok=True)
    except OSError as error:
        named = OSError(error.errno, error.strerror)  # not by the name that it has while it is made
        raise disk_error(OperationError, "the copy can't be written", named, copy) from error
    return copy.stat().st_size


def _copy(source: sqlite3.Connection, making: Path) -> None:
    with contextlib.closing(sqlite3.connect(making)) as target:
        try:
            source.backup(target)
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
                raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, or the disk fails ({error})") from error
            raise
        # One file alone: the header of a copy says as the database's that there is a write-ahead log beside it.
        target.execute("PRAGMA journal_mode = DELETE")
        found = broken_pages(target, full=False)
    if found:
        raise OperationError(f"the database is damaged, and so would be a copy: {found[0]}", remedy=RESTORE)


def _put(making: Path, copy: Path) -> None:
    """Give the copy its name, durably; whatever came there meanwhile stays."""
    with making.open("rb") as file:
        os.fsync(file.fileno())
    try:
        copy.hardlink_to(making)
    except FileExistsError as error:
        raise _there(copy) from error
    sync_folder(copy.parent)


def _there(copy: Path) -> OperationError:
    return OperationError(f"{copy}: there is something already", remedy="name a file that isn't there")
