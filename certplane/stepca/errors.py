"""What can go wrong between this host and the internal CA.

    OperationError
    `-- EnrollmentError         the CA, or the way to it, failed
        |-- UnreachableError    no request was sent, so the same call may be repeated
        `-- RefusedError        the CA answered, and said no

The difference matters because step-ca burns a one-time token before it signs: once a request has left this host, the
token may be spent whatever came back.
"""

from __future__ import annotations

from datetime import timedelta

from certplane.errors import OperationError


class EnrollmentError(OperationError):
    """A call to the internal CA failed.

    `token_spent` says whether the one-time token (of an enrolment) may be burnt: then a new one is needed. The key and
    the request are kept either way.
    """

    def __init__(
        self, message: str, *, remedy: str = "", retry_after: timedelta | None = None, token_spent: bool = False
    ) -> None:
        super().__init__(message, remedy=remedy, retry_after=retry_after)
        self.token_spent = token_spent


class UnreachableError(EnrollmentError):
    """Nothing was sent: no name, no connection, no TLS, or a server that isn't the pinned CA."""


class RefusedError(EnrollmentError):
    """The CA answered with an error; `status` is HTTP's, `said` the CA's own words."""

    def __init__(self, message: str, *, status: int, said: str, remedy: str = "", token_spent: bool = False) -> None:
        super().__init__(message, remedy=remedy, token_spent=token_spent)
        self.status = status
        self.said = said
