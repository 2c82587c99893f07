"""What an `OSError` of the file system means to a person: a cause that goes on from the path, and what to do.

An errno says neither which of several files it is about nor what to do: "[Errno 16]" for a file that is mounted by
itself is no help at night.
"""

import errno
import os
import pwd
from pathlib import Path
from typing import TypeVar

from certplane.errors import OperationError

E = TypeVar("E", bound=OperationError)

_MEANINGS = {
    errno.ENOENT: ("doesn't exist", "create it, or correct the path"),
    errno.ENOTDIR: ("is no directory, or has a part that is none", "correct the path, or move the file away"),
    errno.EISDIR: ("is a directory", "move it away, or configure another path"),
    errno.ELOOP: ("is a symbolic link where none is followed, or a loop of them", "give the path that it leads to"),
    errno.EINVAL: ("isn't a regular file, or its file system can't do this", "move it away, or configure another path"),
    errno.ENAMETOOLONG: ("has too long a name", "configure a shorter name"),
    errno.EROFS: (
        "is on a file system that is read-only here",
        "mount it writable; under systemd add the directory to ReadWritePaths= in a drop-in of the agent's unit",
    ),
    errno.ENOSPC: ("is on a disk that is full", "make room on the disk"),
    errno.EDQUOT: ("is on a disk on which this user's quota is used up", "make room on the disk, or raise the quota"),
    errno.EBUSY: (
        "is a mount point, and nothing can take the place of one",
        "mount the directory that it lies in, not the single file",
    ),
    errno.EXDEV: ("lies on another file system than its directory", "mount the whole directory"),
    errno.EIO: ("can't be read or written: the disk has an error", "check the kernel's log"),
    errno.ESTALE: ("is gone from its file server", "mount the file system anew"),
    errno.EMFILE: ("can't be opened: the process has too many files open", "raise its limit (LimitNOFILE=)"),
}
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})


def explain(error: OSError, path: Path | str | None = None) -> tuple[str, str]:
    """Cause, beginning with the path, and remedy.

    Args:
        error: what was raised.
        path: what it was about, where `error` doesn't say so.
    """
    named = error.filename if isinstance(error.filename, str) else ""
    where = named if named.startswith("/") or path is None else str(path)
    if error.errno in _FORBIDDEN:
        cause, remedy = f"can't be used by {this_user()}", "give that user the right to read and write there"
        if error.errno == errno.EPERM:
            remedy = f"{remedy}; `lsattr -d` shows whether the file or its directory is immutable"
    else:
        cause, remedy = _MEANINGS.get(error.errno or 0, (f"can't be used: {error.strerror or error}", ""))
    said = f" ({error.strerror})" if error.strerror and error.strerror.lower() not in cause else ""
    return f"{where} {cause}{said}" if where else f"{cause}{said}", remedy


def disk_error(kind: type[E], doing: str, error: OSError, path: Path) -> E:
    """The error of a program's own file that the disk refuses.

    Args:
        kind: which error.
        doing: what fails by it, such as "the lock can't be taken".
        error: what was raised.
        path: the file, where `error` doesn't say so.
    """
    cause, remedy = explain(error, path)
    return kind(f"{doing}: {cause}", remedy=remedy)


def this_user() -> str:
    """Who this process acts as, for messages."""
    return user_text(os.geteuid())


def user_text(uid: int) -> str:
    """A user by name, and by number where the system knows no name."""
    return f"user {user_name(uid).removeprefix('#')}"


def as_user(uid: int, command: str) -> str:
    """The line by which a person runs a command as this user."""
    import shlex  # noqa: PLC0415 - nothing has failed, most of the time

    return f"sudo -u {shlex.quote(user_name(uid))} {command}"


def user_name(uid: int) -> str:
    """A user by name, or by number, as sudo(8) takes either."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
