"""An exception that nobody meant: a bug of the agent's, or what no port foresaw. One lineage's, and no other's.

It is logged with its traceback the first time, and in one line each time after that: what is tried again is not told
again in full. What a person sees (`status`, a display) says that it is a bug, and where the rest is.
"""

import logging

from certplane.errors import CertplaneError, OperationError

logger = logging.getLogger(__name__)

_MOST_KNOWN = 200
_known: set[tuple[str, str]] = set()


def as_error(subject: str, error: Exception) -> CertplaneError:
    """What failed for `subject`, as an error with a remedy; one that was raised on purpose is that itself."""
    if isinstance(error, CertplaneError):
        return error
    text = f"{type(error).__name__}: {error}"
    is_known = (subject, text) in _known
    if not is_known and len(_known) < _MOST_KNOWN:
        _known.add((subject, text))
    logger.error("%s: unexpected: %s", subject, text, exc_info=None if is_known else error)
    return OperationError(f"a bug of this agent: {text}", remedy="report it; the agent's log has the traceback")
