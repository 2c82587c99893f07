"""The fleet's values: what hosts report of their certificates, and what the broker knows of a host.

Frozen, without behaviour beyond derived facts; they know neither gRPC nor SQL. Times are aware UTC, serial numbers
lower-case hexadecimal without leading zeros. The wire's words for them are in proto/certplane/v1/renewal.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from certplane.errors import Refusal


class CertificateState(StrEnum):
    """Where one certificate of a host is; values are stored and shown."""

    ABSENT = "absent"
    WAITING = "waiting"
    DUE = "due"
    REQUESTING = "requesting"
    ISSUED = "issued"
    INSTALLING = "installing"
    RELOADING = "reloading"
    VERIFYING = "verifying"
    SERVING = "serving"
    FAILED = "failed"
    DEGRADED = "degraded"


class RenewalStep(StrEnum):
    """A step that can fail; values are stored and shown."""

    NONE = ""
    REQUEST = "request"
    INSTALL = "install"
    RELOAD = "reload"
    VERIFY = "verify"
    ROLLBACK = "rollback"


_REACHED: Final = frozenset({CertificateState.WAITING, CertificateState.SERVING})
_MISSED: Final = frozenset({CertificateState.FAILED, CertificateState.DEGRADED})


@dataclass(frozen=True, slots=True)
class HeldCertificate:
    """A certificate on a host's disk, at its configured paths, or served by its service."""

    serial_number: str
    not_before: datetime | None = None
    not_after: datetime | None = None
    certificate_id: str = ""
    version: int = 0
    observe_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """What a host said of one certificate; `name` is the one in its configuration."""

    name: str
    state: CertificateState
    profile: str = ""
    dns_names: tuple[str, ...] = ()
    failed_step: RenewalStep = RenewalStep.NONE
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
        return f"{state.value} {self.failed_step.value} {held.serial_number if held else ''}"


@dataclass(frozen=True, slots=True)
class StatusReport:
    """One report: `sequence` counts those of one host and epoch, from 1."""

    sequence: int
    certificate: CertificateStatus


@dataclass(frozen=True, slots=True)
class HostStream:
    """What the broker knows of a host's last stream; `end_time` is None while it may be open."""

    host: str
    agent_version: str
    identity_serial_number: str
    identity_not_after: datetime
    source_ip: str
    connect_time: datetime
    last_seen_time: datetime
    end_time: datetime | None = None
    clock_skew: timedelta | None = None
    """The host's clock less the broker's."""


@dataclass(frozen=True, slots=True)
class HostRecord:
    """What is durably known of a host: its last stream, what it holds, and why it refused the last directive."""

    host: str
    stream: HostStream | None
    certificates: tuple[CertificateStatus, ...] = ()
    acknowledged_sequence: int = 0
    directive_error: Refusal | None = None


@dataclass(frozen=True, slots=True)
class RevokedCertificate:
    """A certificate of the broker's that was revoked and hasn't expired: whoever uses it shouldn't."""

    host: str
    serial_number: str
    revoke_time: datetime
    reason: str = ""


@dataclass(frozen=True, slots=True)
class HeldUp:
    """A certificate that something holds up.

    `next_attempt_time` is until when its host waits; None if nothing comes of it before a person has acted.
    """

    host: str
    certificate_id: str
    reason: str
    name: str = ""
    next_attempt_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class RequestedRenewal:
    """What came of an operator's request: `last_renew_time` is of those that got another time, None without any.

    `held_up` are the first of those that something holds up, `held_up_count` how many they are.
    """

    request_id: str
    certificate_count: int
    changed_count: int
    last_renew_time: datetime | None = None
    held_up: tuple[HeldUp, ...] = ()
    held_up_count: int = 0
