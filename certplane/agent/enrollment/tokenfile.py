"""The file that brings the one-time token to this host: read with suspicion, removed after use.

Whoever can read the token can become this host, and whoever can choose what the agent reads can make it send another
file's content to the CA. So the file must be a regular one, mode 0600, the agent's own, and is opened without
following a link.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from certplane.errors import ConfigurationError, ConfigurationProblem

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_token_file", "remove_token_file"]

_KEY = "identity.bootstrap_token"
_MOST_BYTES = 16 * 1024
"""A token of step-ca has one or two KiB; one with a certificate chain in its header (X5C) a few more."""


def read_token_file(path: Path) -> str:
    """The token in `path`, without surrounding white space.

    Raises:
        ConfigurationError: the file is missing, is a link or another kind of file, is someone else's, others may read
            or write it, or holds no single token.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise _problem(path, "there is no such file", "put the one-time token there, mode 0600") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _problem(path, "it is a symbolic link", "put the token itself there, mode 0600") from error
        raise _problem(path, f"can't be read: {error.strerror}", "make it readable for the agent's user") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _problem(path, "it is not a regular file", "put the token there as a file, mode 0600")
        if status.st_uid != os.geteuid():
            raise _problem(path, f"it belongs to uid {status.st_uid}", f"chown it to the agent's uid {os.geteuid()}")
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o177:
            raise _problem(
                path, f"its mode is {mode:04o}: others may have read the token", "chmod 0600, and better use a new one"
            )
        content = file.read(_MOST_BYTES + 1)
    text = content.decode("ascii", errors="replace").strip()
    if not text:
        raise _problem(path, "it is empty", "put a new one-time token there")
    if len(content) > _MOST_BYTES or not text.isprintable() or not text.isascii() or " " in text:
        raise _problem(path, "it holds something else than one token", "put the token there, nothing else")
    return text


def remove_token_file(path: Path) -> str:
    """Remove the used token; returns why that failed, empty if it didn't. A file that is gone is fine."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _problem(path: Path, message: str, remedy: str) -> ConfigurationError:
    return ConfigurationError([ConfigurationProblem(str(path), None, _KEY, message, remedy)])
