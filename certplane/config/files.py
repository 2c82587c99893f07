"""Reading the files that settings name, with what is wrong said in one line and its remedy.

A private key or a token is read only from a regular file that nobody but its owner (this process's user, or root) can
read; `follow_links=False` besides refuses a symbolic link in the last component, for files in places that others
may write. Sizes are capped before anything is read.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from certplane.errors import ConfigurationError, ConfigurationProblem

__all__ = ["read_file", "read_private_file"]

_MAX_BYTES = 1024 * 1024
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_file(
    path: Path, *, at: ConfigurationProblem | None = None, max_bytes: int = _MAX_BYTES, follow_links: bool = True
) -> bytes:
    """The content of a regular file.

    Args:
        path: The file.
        at: Where the path is configured (`Source.problem(key, "")`): problems name that file, line and key; otherwise
            they name the file itself.
        max_bytes: A larger file is a problem.
        follow_links: Whether the last component may be a symbolic link.

    Raises:
        ConfigurationError: it is missing, unreadable, no regular file, too large.
    """
    return _read(path, at, max_bytes, follow_links=follow_links, private=False)


def read_private_file(
    path: Path, *, at: ConfigurationProblem | None = None, max_bytes: int = _MAX_BYTES, follow_links: bool = True
) -> bytes:
    """As `read_file`, for a private key or a token: no access for group and others, its owner this user or root.

    Raises:
        ConfigurationError: as `read_file`, or the mode or owner is wrong; the content is never part of the message.
    """
    return _read(path, at, max_bytes, follow_links=follow_links, private=True)


def _read(path: Path, at: ConfigurationProblem | None, max_bytes: int, *, follow_links: bool, private: bool) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                kind = "is a directory" if stat.S_ISDIR(status.st_mode) else "is no regular file"
                raise _error(path, at, kind, "give the path of a file")
            if private:
                _check_private(path, at, status)
            return _read_capped(descriptor, path, at, max_bytes)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise _error(path, at, *_describe(error)) from error


def _read_capped(descriptor: int, path: Path, at: ConfigurationProblem | None, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    left = max_bytes + 1
    while left > 0 and (part := os.read(descriptor, left)):
        parts.append(part)
        left -= len(part)
    if left == 0:
        raise _error(path, at, f"is larger than {max_bytes} bytes", "check that it is the right file")
    return b"".join(parts)


def _check_private(path: Path, at: ConfigurationProblem | None, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS:
        raise _error(path, at, f"can be accessed by others (mode {mode:04o})", f"chmod 600 {path}")
    if status.st_uid not in {os.geteuid(), 0}:
        raise _error(path, at, f"belongs to another user (uid {status.st_uid})", f"chown {os.geteuid()} {path}")


def _describe(error: OSError | ValueError) -> tuple[str, str]:
    if isinstance(error, ValueError):
        return "is not a path (it has a NUL character)", "correct the path"
    match error.errno:
        case errno.ENOENT:
            return "does not exist", "create it, or correct the path"
        case errno.EACCES | errno.EPERM:
            return "can't be read by this user", "give the program's user the right to read it"
        case errno.ELOOP:
            return "is a symbolic link, or a loop of them", "give the path of the file itself"
        case errno.ENOTDIR:
            return "has a part that is no directory", "correct the path"
        case _:
            return f"can't be read: {os.strerror(error.errno or 0)}", "check the file"


def _error(path: Path, at: ConfigurationProblem | None, message: str, remedy: str) -> ConfigurationError:
    if at is None:
        return ConfigurationError([ConfigurationProblem(str(path), None, "", message, remedy)])
    return ConfigurationError([ConfigurationProblem(at.file, at.line, at.key, f"{path} {message}", remedy)])
