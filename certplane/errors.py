"""Every error of Certplane, in one hierarchy.

    CertplaneError
    |-- RefusalError            a request can't be served; travels over gRPC as a Status with one ErrorInfo
    |   `-- (subclasses of packages add where it was found, never another meaning)
    |-- ConfigurationError      a file, an argument or a file mode is wrong; the programs exit with status 2
    `-- OperationError          something outside failed on this host: a CA call, an installation, a hook

A `Refusal` is the value inside a `RefusalError`. A failed order stores one too, so that the same cause reads the same
whether it stopped a call or an order. Its message is written for the one who must fix the cause, is safe to show to the
caller, and never holds a key, a token or a secret. `certplane.rpc.status` maps reasons to gRPC codes, both ways.

Misuse of an interface inside the program is a plain `RuntimeError` or `ValueError`, never one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final

from typing_extensions import override


class Reason(StrEnum):
    """`ErrorInfo.reason` of a refusal, domain `certplane`. docs/errors.md describes each with its remedy."""

    IDENTITY_EXPIRED = "IDENTITY_EXPIRED"
    IDENTITY_REVOKED = "IDENTITY_REVOKED"
    IDENTITY_RETIRED = "IDENTITY_RETIRED"
    IDENTITY_CONTESTED = "IDENTITY_CONTESTED"
    IDENTITY_UNKNOWN = "IDENTITY_UNKNOWN"
    PROFILE_NOT_ALLOWED = "PROFILE_NOT_ALLOWED"
    NAMES_NOT_ALLOWED = "NAMES_NOT_ALLOWED"
    KEY_REUSED = "KEY_REUSED"
    ROLE_REQUIRED = "ROLE_REQUIRED"
    CSR_INVALID = "CSR_INVALID"
    KEY_WEAK = "KEY_WEAK"
    REQUEST_INVALID = "REQUEST_INVALID"
    RATE_LIMITED = "RATE_LIMITED"
    ISSUER_RATE_LIMITED = "ISSUER_RATE_LIMITED"
    AUDIT_UNAVAILABLE = "AUDIT_UNAVAILABLE"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    POLICY_UNAVAILABLE = "POLICY_UNAVAILABLE"
    ISSUER_UNAVAILABLE = "ISSUER_UNAVAILABLE"
    DNS_UNAVAILABLE = "DNS_UNAVAILABLE"
    DRAINING = "DRAINING"
    ISSUER_REJECTED = "ISSUER_REJECTED"
    DNS_REJECTED = "DNS_REJECTED"
    BOOTSTRAP_NOT_CONFIGURED = "BOOTSTRAP_NOT_CONFIGURED"
    ORDER_NOT_FOUND = "ORDER_NOT_FOUND"
    CERTIFICATE_NOT_FOUND = "CERTIFICATE_NOT_FOUND"
    HOST_NOT_FOUND = "HOST_NOT_FOUND"
    STREAM_DISPLACED = "STREAM_DISPLACED"
    STREAM_TIMED_OUT = "STREAM_TIMED_OUT"
    INTERNAL = "INTERNAL"


OF_ONE_BROKER: Final = frozenset(
    {Reason.DRAINING, Reason.STORE_UNAVAILABLE, Reason.AUDIT_UNAVAILABLE, Reason.POLICY_UNAVAILABLE}
)
"""Refusals that say something of the broker that gave them; every other one would be the same at all brokers."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong (BadRequest and QuotaFailure of google/rpc/error_details.proto).

    Attributes:
        subject: A field of the request, or a limit.
        description: What is wrong with it, one line for people.
    """

    subject: str
    description: str


@dataclass(frozen=True, slots=True)
class ProblemDocument:
    """What a CA said (RFC 8555 6.7, RFC 9457), control characters removed.

    Attributes:
        type: The full URN.
        detail: For people.
        status: The HTTP status; None where the CA named none.
        identifier: The DNS name that it is about; empty where it is about the whole order.
    """

    type: str
    detail: str
    status: int | None = None
    identifier: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request or an order ended, and when to come back (docs/errors.md).

    Attributes:
        reason: Why, for programs.
        message: Why, for the one who must fix the cause.
        retry_after: Counts from the moment the refusal was made; set whenever a CA, a limit or a lock says so.
        violations: What is wrong with the request, or which limits are reached.
        problems: The CA's problem document first, then its subproblems.
        request_id: The broker's name for the call or the order in its log, where a broker has refused; it says nothing
            of why, and refusals are equal without it.
    """

    reason: Reason
    message: str
    retry_after: timedelta | None = None
    violations: tuple[Violation, ...] = ()
    problems: tuple[ProblemDocument, ...] = ()
    request_id: str = field(default="", compare=False)


class CertplaneError(Exception):
    """Root of everything that Certplane raises on purpose; what a caller may ask of each is here."""

    @property
    def reason(self) -> Reason | None:
        """Why a broker, or an order, refused (docs/errors.md); None where none did."""
        return None

    @property
    def retry_after(self) -> timedelta | None:
        """How long to wait before asking again is of use, from when it was raised; None where nobody said."""
        return None

    @property
    def request_id(self) -> str:
        """How the broker's log knows the call; empty where no broker has refused."""
        return ""


class RefusalError(CertplaneError):
    """A request can't be served.

    Attributes:
        refusal: Why, and when to come back.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retry_after: timedelta | None = None,
        violations: Sequence[Violation] = (),
        problems: Sequence[ProblemDocument] = (),
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.refusal = Refusal(reason, message, retry_after, tuple(violations), tuple(problems))

    @classmethod
    def of(cls, refusal: Refusal) -> RefusalError:
        """The error that carries `refusal`, as when a stored one is raised again."""
        error = RefusalError(refusal.reason, refusal.message)
        error.refusal = refusal
        return error

    @property
    @override
    def reason(self) -> Reason:
        return self.refusal.reason

    @property
    @override
    def retry_after(self) -> timedelta | None:
        return self.refusal.retry_after

    @property
    @override
    def request_id(self) -> str:
        return self.refusal.request_id


@dataclass(frozen=True, slots=True, order=True)
class ConfigurationProblem:
    """One wrong thing in a configuration, printed as one line: `file:line: key: message; remedy`."""

    file: str
    line: int | None
    key: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        """The line that a user reads."""
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        text = ": ".join(part for part in (where, self.key, self.message) if part)
        return f"{text}; {self.remedy}" if self.remedy else text


class ConfigurationError(CertplaneError):
    """All that is wrong with a configuration, reported at once.

    Attributes:
        problems: Each as a value whose text is a line: `file:line: key: message; remedy`.
    """

    def __init__(self, problems: Sequence[ConfigurationProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class OperationError(CertplaneError):
    """Something outside failed on this host.

    Attributes:
        message: What failed, and why.
        remedy: What a person can do; empty if waiting is all.
    """

    def __init__(self, message: str, *, remedy: str = "", retry_after: timedelta | None = None) -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy
        self._retry_after = retry_after

    @property
    @override
    def retry_after(self) -> timedelta | None:
        return self._retry_after
