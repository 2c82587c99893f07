"""What streams are refused or ended with."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from certplane.errors import Reason, RefusalError, Violation

_COME_BACK: Final = timedelta(seconds=10)


def invalid(field: str, problem: str) -> RefusalError:
    """A message says what it may not."""
    return RefusalError(Reason.REQUEST_INVALID, f"{field} {problem}", violations=[Violation(field, problem)])


def timed_out(message: str) -> RefusalError:
    """The host took too long."""
    return RefusalError(Reason.STREAM_TIMED_OUT, message)


def displaced() -> RefusalError:
    """Another stream of the same host said hello later."""
    message = "another stream of this identity has taken the place of this one; each identity has one host"
    return RefusalError(Reason.STREAM_DISPLACED, message)


def draining() -> RefusalError:
    """The broker is being stopped."""
    return RefusalError(Reason.DRAINING, "the broker is shutting down; come back shortly", retry_after=_COME_BACK)


def failed() -> RefusalError:
    """A bug of the broker ended the stream."""
    return RefusalError(Reason.INTERNAL, "the broker failed while serving this stream; see its log")
