"""The file that brings the one-time token to this host: read with suspicion, removed after use.

Whoever can read the token can become this host, and whoever can choose what the agent reads can make it send another
file's content to the CA. So the file must be a regular one, closed to others, the agent's own, and is opened without
following a link.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from certplane.config.files import read_private_file
from certplane.errors import ConfigurationError, ConfigurationProblem

_KEY = "identity.bootstrap_token"
_MOST_BYTES = 16 * 1024
"""A token of step-ca has one or two KiB; one with a certificate chain in its header (X5C) a few more."""


def read_token_file(path: Path, problem: Callable[[str, str, str], ConfigurationProblem]) -> str:
    """The token in `path`, without surrounding white space.

    Args:
        path: the value of `identity.bootstrap_token`.
        problem: makes a problem of a configured key, a message and a remedy (`Source.problem`).

    Raises:
        ConfigurationError: the file is missing, is a link or another kind of file, is someone else's, others may read
            or write it, or holds no single token.
    """
    content = read_private_file(path, at=problem(_KEY, "", ""), max_bytes=_MOST_BYTES, follow_links=False)
    text = content.decode("ascii", errors="replace").strip()
    if not text:
        raise ConfigurationError([problem(_KEY, f"{path} is empty", "put a new one-time token there")])
    if not text.isascii() or not text.isprintable() or " " in text:
        message = f"{path} holds something else than one token"
        raise ConfigurationError([problem(_KEY, message, "put the token there and nothing else")])
    return text


def remove_token_file(path: Path) -> str:
    """Remove the used token; returns why that failed, empty if it didn't. A file that is gone is fine."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return ""
