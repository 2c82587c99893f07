"""Reading the files that settings name, with what is wrong said in one line and its remedy.

A private key or a token is read only from a regular file that nobody but its owner (this process's user, or root) can
read. A service's own key may besides be root's and readable by a group of the service's, and root, who looks after a
service, may read it whoever owns it. `follow_links=False` refuses a symbolic link in the last component, for files in
places that others may write. Sizes are capped before anything is read.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from certplane.errors import ConfigurationError, ConfigurationProblem

_MAX_BYTES = 1024 * 1024
_LET_READ = "give the program's user the right to read it"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_file(
    path: Path,
    *,
    at: ConfigurationProblem | None = None,
    max_bytes: int = _MAX_BYTES,
    follow_links: bool = True,
    closed_remedy: str = _LET_READ,
) -> bytes:
    """The content of a regular file.

    Args:
        path: The file.
        at: Where the path is configured (`Source.problem(key, "")`): problems name that file, line and key; otherwise
            they name the file itself.
        max_bytes: A larger file is a problem.
        follow_links: Whether the last component may be a symbolic link.
        closed_remedy: What to do where this user may not read it.

    Raises:
        ConfigurationError: it is missing, unreadable, no regular file, too large.
    """
    return _read(path, at, max_bytes, follow_links=follow_links, closed_remedy=closed_remedy)


def is_input(path: Path) -> bool:
    """Whether an argument means standard input; a file of that name is `./-`."""
    return os.fspath(path) == "-"


def read_argument(path: Path, *, max_bytes: int = _MAX_BYTES) -> bytes:
    """The content of a file that a command line names, or with `-` of standard input.

    Raises:
        ConfigurationError: as `read_file`.
    """
    if not is_input(path):
        return read_file(path, max_bytes=max_bytes)
    at = ConfigurationProblem("standard input", None, "", "")
    try:
        content = sys.stdin.buffer.read(max_bytes + 1)
    except (AttributeError, OSError, ValueError) as error:
        raise ConfigurationError(
            [replace(at, message="can't be read", remedy="give it a file, or name one")]
        ) from error
    if len(content) > max_bytes:
        raise ConfigurationError([replace(at, message=f"is larger than {max_bytes} bytes")])
    return content


def read_private_file(
    path: Path, *, at: ConfigurationProblem | None = None, max_bytes: int = _MAX_BYTES, follow_links: bool = True
) -> bytes:
    """As `read_file`, for a private key or a token: no access for group and others, its owner this user or root.

    Raises:
        ConfigurationError: as `read_file`, or the mode or owner is wrong; the content is never part of the message.
    """
    return _read(path, at, max_bytes, follow_links=follow_links, check=_check_private)


def read_service_key(path: Path, *, at: ConfigurationProblem | None = None, max_bytes: int = _MAX_BYTES) -> bytes:
    """As `read_private_file`, for a key that a service and root share; see this module's text.

    Raises:
        ConfigurationError: as `read_private_file`.
    """
    return _read(path, at, max_bytes, follow_links=True, check=_check_service_key)


_Check = Callable[[Path, "ConfigurationProblem | None", os.stat_result], None]


def _read(
    path: Path,
    at: ConfigurationProblem | None,
    max_bytes: int,
    *,
    follow_links: bool,
    check: _Check | None = None,
    closed_remedy: str = _LET_READ,
) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                kind = "is a directory" if stat.S_ISDIR(status.st_mode) else "is no regular file"
                raise _error(path, at, kind, "give the path of a file")
            if check is not None:
                check(path, at, status)
            return _read_capped(descriptor, path, at, max_bytes)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise _error(path, at, *_describe(path, error, closed_remedy)) from error


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
        raise _error(path, at, f"can be accessed by others (mode {mode:04o})", private_remedy(path, status))
    if status.st_uid not in {os.geteuid(), 0}:
        raise _error(path, at, f"belongs to another user ({_user(status.st_uid)})", _as_user(status.st_uid))


def _check_service_key(path: Path, at: ConfigurationProblem | None, status: os.stat_result) -> None:
    mode, by_root = stat.S_IMODE(status.st_mode), os.geteuid() == 0
    if status.st_uid not in {os.geteuid(), 0} and not by_root:
        raise _error(path, at, f"belongs to another user ({_user(status.st_uid)})", _as_user(status.st_uid))
    ours = by_root or status.st_gid in {os.getegid(), *os.getgroups()}
    shared = status.st_uid == 0 != status.st_gid and ours  # root's own group is no service's
    if mode & _OTHERS & ~(stat.S_IRGRP if shared else 0):
        raise _error(path, at, f"can be accessed by others (mode {mode:04o})", private_remedy(path, status))


def private_remedy(path: Path, status: os.stat_result) -> str:
    """The line that closes a file to others, and never to the one that reads it now."""
    me = os.geteuid()
    if me == status.st_uid == 0 and status.st_gid != 0 and status.st_mode & stat.S_IRGRP:
        return f"chmod 640 {path}"  # a service's, which reads it by its group
    if me in {status.st_uid, 0}:
        return f"chmod 600 {path}"
    return f"chown {_user(me).partition(' ')[0]} {path} && chmod 600 {path}"


def _user(number: int) -> str:
    try:
        return f"{pwd.getpwuid(number).pw_name} (uid {number})"
    except KeyError:
        return f"uid {number}"


def _as_user(number: int) -> str:
    """Whoever looks at a service's files does so as the service: a changed owner would lock it out."""
    name = _user(number).partition(" ")[0]
    return f"run the command as that user: sudo -u {name if name != 'uid' else f'#{number}'} ..."


def is_there(path: Path, *, folder: bool = False) -> bool:
    """Whether something is at `path`, or a `folder` is.

    True as well where this user isn't told: whoever opens it is told why, with a remedy, and `Path.exists` would raise.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return stat.S_ISDIR(mode) or not folder


def denied_remedy(path: Path, otherwise: str) -> str:
    """What lets this user use `path`, which it may not: to be its owner, or, where that is root, to be let in.

    `otherwise` is the remedy where the owner isn't what is in the way.
    """
    for place in (path, *path.parents):
        try:
            owner, me = place.stat().st_uid, os.geteuid()
        except OSError:
            continue
        if owner not in {me, 0}:
            return _as_user(owner)
        if owner == 0 != me:
            user = _user(me).partition(" (")[0]
            return f"{place} belongs to root: give {user} the right to it (chown, chgrp or setfacl)"
        break
    return otherwise


def _describe(path: Path, error: OSError | ValueError, closed_remedy: str) -> tuple[str, str]:
    if isinstance(error, ValueError):
        return "is not a path (it has a NUL character)", "correct the path"
    match error.errno:
        case errno.ENOENT:
            return "does not exist", "create it, or correct the path"
        case errno.EACCES | errno.EPERM:
            remedy = denied_remedy(path, closed_remedy) if closed_remedy == _LET_READ else closed_remedy
            return "can't be read by this user", remedy
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
