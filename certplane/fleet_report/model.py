"""What a host reports of each of its certificates. The wire's words for it are in proto/certplane/v1/renewal.proto.

Frozen, without behaviour beyond derived facts. Times are aware UTC, serial numbers lower-case hexadecimal without
leading zeros. Agents keep reports as JSON objects and the broker keeps each status as a JSON array of its fields in
their order: a field is only ever added, at the end and with a default, so that what an older release wrote still loads.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final


class RenewalCause(StrEnum):
    """Why a certificate should be renewed at the time that the broker says; values are stored and shown."""

    LIFETIME = "lifetime"
    """The broker's own rule."""
    ISSUER = "issuer"
    """The CA's window (RFC 9773)."""
    OPERATOR = "operator"
    REVOKED = "revoked"


class CertificateState(StrEnum):
    """Where one certificate of a host is; values are stored and shown. `agent.renewal.machine` has the transitions."""

    ABSENT = "absent"
    """There is none, and none was asked for yet."""
    WAITING = "waiting"
    """In use, and not due. Whether services serve it isn't known: `verify` isn't configured, or has not run yet."""
    DUE = "due"
    """Due, and not asked for yet."""
    REQUESTING = "requesting"
    ISSUED = "issued"
    """On disk, not installed; `activate_time` says what it waits for."""
    INSTALLING = "installing"
    RELOADING = "reloading"
    VERIFYING = "verifying"
    SERVING = "serving"
    """In use, not due, and seen served by `verify`."""
    FAILED = "failed"
    """The request failed; `next_attempt_time` says when it is made again."""
    DEGRADED = "degraded"
    """Issued but not activated (the previous version is in place, or the new one unconfirmed), or the service serves
    something else than what is in place."""


class RenewalStep(StrEnum):
    """A step that can fail; values are stored and shown."""

    REQUEST = "request"
    INSTALL = "install"
    RELOAD = "reload"
    VERIFY = "verify"
    ROLLBACK = "rollback"


_REACHED: Final = frozenset({CertificateState.WAITING, CertificateState.SERVING})
_MISSED: Final = frozenset({CertificateState.FAILED, CertificateState.DEGRADED})


@dataclass(frozen=True, slots=True)
class HeldCertificate:
    """A certificate on a host's disk, at its configured paths, or served by its service.

    `version` is zero for one that is none of the host's versions; `certificate_id` is empty for one that the broker
    didn't issue.
    """

    serial_number: str
    not_before: datetime | None = None
    not_after: datetime | None = None
    certificate_id: str = ""
    version: int = 0
    observe_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """What a host says of one certificate; `name` is the one in its configuration."""

    name: str
    state: CertificateState
    profile: str = ""
    dns_names: tuple[str, ...] = ()
    failed_step: RenewalStep | None = None
    issued: HeldCertificate | None = None
    installed: HeldCertificate | None = None
    served: HeldCertificate | None = None
    renew_time: datetime | None = None
    renew_reason: str = ""
    last_error: str = ""
    request_failures: int = 0
    activation_failures: int = 0
    next_attempt_time: datetime | None = None
    activate_time: datetime | None = None
    update_time: datetime | None = None

    @property
    def outcome(self) -> str:
        """What was reached with which certificate, or what failed; empty for a step in between, which decides nothing.

        Two reports with one outcome tell an auditor one thing.
        """
        state = self.state
        if state in _REACHED:
            held = self.served if state is CertificateState.SERVING else self.installed
        elif state in _MISSED:
            held = self.issued
        else:
            return ""
        return f"{state.value} {self.failed_step or ''} {held.serial_number if held else ''}"


@dataclass(frozen=True, slots=True)
class Report:
    """One report: `sequence` counts those of one host and epoch, from 1."""

    sequence: int
    certificate: CertificateStatus
