"""A SQLite database as a file: the lock on it, making it, and the checks before anything else touches it.

All of it blocks and is done before the event loop serves anyone. Each thing that can be wrong has one line and a
remedy.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from certplane.broker.store import sqlite
from certplane.broker.store.migrate import (
    FoundSchema,
    SchemaError,
    check_current,
    check_known,
    check_whole,
    found_schema,
    migrate,
    upgrade_notices,
)
from certplane.broker.store.schema import APPLICATION_ID
from certplane.broker.store.soundness import QUICK_AT_START, RESTORE, broken_pages, broken_references
from certplane.config.files import denied_remedy, is_there
from certplane.errors import CertplaneError, ConfigurationError, ConfigurationProblem, OperationError
from certplane.runtime.disk_errors import disk_error
from certplane.runtime.files import give_to_service
from certplane.runtime.pid_lock import HeldError, lock_with_pid, open_lock

_log = logging.getLogger("certplane.store")

_FAILING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What comes and goes with the machine, and is no mistake of the configuration."""
_DENIED: Final = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)


class StateLock:
    """The exclusive use of a database by one broker.

    On `<database>.lock` (`pid_lock`), which stays.
    """

    def __init__(self, database: Path) -> None:
        """Take the lock.

        Raises:
            OperationError: another broker has it, or the disk is full or fails.
            ConfigurationError: the file can't be made.
        """
        path = database.with_name(database.name + ".lock")
        try:
            self._descriptor = open_lock(path)
            lock_with_pid(self._descriptor)
        except OSError as error:
            raise _unusable(path, error) from error
        except HeldError as error:
            raise OperationError(
                f"{database}: another broker{'' if error.holder is None else f' ({error})'} uses this store",
                remedy="stop it first, or give this one a store.path of its own",
            ) from error

    def release(self) -> None:
        """Let the next one in."""
        os.close(self._descriptor)


def open_writer(path: Path, wait: timedelta, *, exclusive: bool) -> sqlite3.Connection:
    """The connection that writes, to a database that was checked and has the program's schema.

    `exclusive`: the caller holds the lock, so the database is made if there is none and migrated. A small one is
    checked from end to end too; of a large one that would take minutes, and is done beside the work (`soundness`).

    Raises:
        ConfigurationError: the path, the file's owner or kind, or its schema is wrong.
        OperationError: the database is corrupt, or somebody else has it locked.
    """
    try:
        if exclusive:
            _create(path)
        _check_file(path)
        with contextlib.closing(sqlite.connect_to_look(path, wait)) as connection:
            _check_owner(connection, path)
            check_known(_schema(connection))
            _check_writable(connection)
        if exclusive:
            _make_private(path)  # not before: a file that is refused is left as it is
        with contextlib.ExitStack() as undo:
            connection = sqlite.connect_to_write(path, wait)
            undo.callback(connection.close)
            if exclusive:
                if path.stat().st_size <= QUICK_AT_START:
                    _check_pages(connection, path)
                migrate("sqlite://", lambda: sqlite.connect_to_write(path, wait), _schema(connection))
            else:
                check_current(_schema(connection))
            undo.pop_all()
            return connection
    except SchemaError as error:
        raise _configuration(path, *error.args) from error
    except sqlite3.Error as error:
        raise _explain(path, error) from error
    except SQLAlchemyError as error:
        if isinstance(error.__cause__, sqlite3.Error):
            raise _explain(path, error.__cause__) from error
        raise


@contextlib.contextmanager
def alone(path: Path, wait: timedelta, *, empty: bool) -> Iterator[sqlite3.Connection]:
    """A connection to a database that this process alone has, for a copy.

    Args:
        path: The file; made if `empty`.
        wait: For another's lock.
        empty: It is to have no tables; nothing is begun. Else it has the program's schema, and a transaction is begun
            that keeps every other writer out.

    Raises:
        ConfigurationError: it is none of ours, has another schema, or isn't empty.
        OperationError: a broker or another program has it, or it is corrupt.
    """
    with contextlib.ExitStack() as stack:
        if not empty:
            _check_file(path)
        stack.callback(StateLock(path).release)
        try:
            if empty:
                _create(path)
                _check_file(path)
            connection = stack.enter_context(contextlib.closing(sqlite.connect_to_look(path, wait)))
            _check_owner(connection, path)
            if not empty:
                check_whole(_schema(connection))
            elif connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                raise _configuration(path, "there is something in the target database", "name a file that isn't there")
            else:
                connection.close()
                connection = stack.enter_context(contextlib.closing(sqlite.connect_to_write(path, wait)))
            if not empty:
                connection.execute("BEGIN IMMEDIATE")
            yield connection
        except SchemaError as error:
            raise _configuration(path, *error.args) from error
        except sqlite3.Error as error:
            raise _explain(path, error) from error


def _create(path: Path) -> None:
    """Make a private database of ours without tables, if there is none.

    In one step: an empty file is what is left of a database, never one that a start began to make. Taken for a new one
    it would let those in whom the deny-list of the old one keeps out.
    """
    if os.path.lexists(path):
        return
    making = path.with_name(f".{path.name}.new")
    try:
        for left in (making, making.with_name(f"{making.name}-journal")):  # by a start that was killed
            left.unlink(missing_ok=True)
        descriptor = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        give_to_service(descriptor, path.parent)
        os.close(descriptor)
        with contextlib.closing(sqlite3.connect(making)) as connection:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        making.rename(path)
    except OSError as error:
        raise _unusable(path, error) from error
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a file system without it keeps its own promises
        os.fsync(folder)
    os.close(folder)


def look_at(path: Path) -> list[str]:
    """What a start would find of the database at `path`, without changing or making anything; notices, a line each.

    A database that another process is writing is read beside it, and one that nobody has open as the file that it is.

    Raises:
        ConfigurationError: a start would refuse it.
        OperationError: it is corrupt.
    """
    if not is_there(path):
        return []
    with beside(path) as connection:
        _check_owner(connection, path)
        return upgrade_notices(str(path), _schema(connection))


def look_through(path: Path, *, full: bool) -> list[str]:
    """What is damaged of the database at `path`, nothing if it is whole; read from end to end, as `look_at` reads.

    Args:
        path: The file.
        full: See `broken_pages`.

    Raises:
        ConfigurationError: there is none, or it is none of ours.
        OperationError: it can't be read at all.
    """
    _check_file(path)
    in_use = _in_use(path)
    with beside(path) as connection:
        _check_owner(connection, path)
        found = broken_pages(connection, full=full) or broken_references(connection)
    if found and not in_use and _in_use(path):
        return look_through(path, full=full)  # a broker was started meanwhile, and changed what we took for fixed
    return found


def _in_use(path: Path) -> bool:
    return is_there(path.with_name(f"{path.name}-wal"))


@contextlib.contextmanager
def beside(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes and makes nothing: beside whoever writes, or to the file that nobody has open.

    Raises:
        ConfigurationError: a start would refuse it.
        OperationError: it is corrupt.
    """
    _check_file(path)
    try:
        uri = f"{path.absolute().as_uri()}?{'mode=ro' if _in_use(path) else 'immutable=1'}"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            yield connection
    except SchemaError as error:
        raise _configuration(path, *error.args) from error
    except sqlite3.Error as error:
        raise _explain(path, error) from error


def _make_private(path: Path) -> None:
    try:
        status = path.stat()
        if status.st_mode & 0o077:
            path.chmod(0o600)
            _log.warning("%s: other users had access to it (mode %o), now none has", path, stat.S_IMODE(status.st_mode))
    except OSError as error:
        raise _unusable(path, error) from error


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _configuration(path, "is not a file", "set store.path to the database's file")
        if not status.st_size:
            remedy = f"{RESTORE}; only if no broker has ever used it, remove the file"
            raise OperationError(f"{path}: the database is corrupt (the file is empty)", remedy=remedy)
    except FileNotFoundError as error:
        raise _configuration(path, "there is no such database", "set store.path, or start the broker once") from error
    except OSError as error:
        raise _unusable(path, error) from error


def _check_owner(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse another program's database before anything is set in it."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise _configuration(
            path, "is a database of another program", "set store.path to Certplane's, or to a file that doesn't exist"
        )


def _check_writable(connection: sqlite3.Connection) -> None:
    """Take the lock once: it fails on a file, or a file system, that can be read only."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")


def _check_pages(connection: sqlite3.Connection, path: Path) -> None:
    if damage := broken_pages(connection, full=False):
        raise OperationError(f"{path}: the database is corrupt ({damage[0]})", remedy=RESTORE)


def _schema(connection: sqlite3.Connection) -> FoundSchema:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    return found_schema(tables.__contains__, lambda query: next(iter(connection.execute(query).fetchone() or ()), None))


def _explain(path: Path, error: sqlite3.Error) -> CertplaneError:
    """One line for what SQLite said while the database was opened."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return OperationError(f"{path}: the database is corrupt ({error})", remedy=RESTORE)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return OperationError(
            f"{path}: another program holds a lock on the database", remedy="end it, then start again"
        )
    if code == sqlite3.SQLITE_FULL:
        return OperationError(f"{path}: there is no space left for the database", remedy="make space, then start again")
    if code == sqlite3.SQLITE_IOERR:
        return OperationError(
            f"{path}: the database can't be read or written ({error})",
            remedy="the disk is full or has an error (df, and the kernel's log): mend that, then start again",
        )
    remedy = "its file and folder must be the broker's own and writable"
    if code in _DENIED:
        remedy = denied_remedy(path, remedy)
    return _configuration(path, f"the database can't be used ({error})", remedy)


def _unusable(path: Path, error: OSError) -> CertplaneError:
    if error.errno in _FAILING:
        return disk_error(OperationError, "the database can't be opened", error, path)
    remedy = denied_remedy(path, "its folder must be the broker's own and writable")
    if isinstance(error, FileNotFoundError):
        remedy = f"create the folder {path.parent}, owned by the broker's user"
    return _configuration(path, (error.strerror or str(error)).lower(), remedy)


def _configuration(path: Path, message: str, remedy: str) -> ConfigurationError:
    return ConfigurationError([ConfigurationProblem(str(path), None, "store.path", message, remedy)])
