"""What a host reports of each of its certificates. The wire's words for it are in proto/certplane/v1/renewal.proto.

Frozen, without behaviour beyond derived facts. Times are aware UTC, serial numbers lower-case hexadecimal without
leading zeros. Agents keep reports as JSON objects and the broker keeps each status as a JSON array of its fields in
their order: a field is only ever added, at the end and with a default, so that what an older release wrote still loads.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final

from certplane.fleet_report.fields import DnsNames, Printable, Span, Text, Word, Words


class RenewalCause(StrEnum):
    """Why a certificate should be renewed at the time that the broker says; values are stored and shown."""

    LIFETIME = "lifetime"
    """The broker's own rule."""
    ISSUER = "issuer"
    """The CA's window (RFC 9773)."""
    OPERATOR = "operator"
    REVOKED = "revoked"


class AgentMode(StrEnum):
    """How a host's agent runs; values are stored and shown."""

    DAEMON = "daemon"
    """All the time; an agent that doesn't say is taken for one."""
    TIMER = "timer"
    """Once in a while, started by a timer."""


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


_NAME_PROBLEM: Final = "must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"
NAME: Final = Word(re.compile(r"[A-Za-z0-9._-]{1,64}"), _NAME_PROBLEM)
_NAME_OR_NONE: Final = Word(re.compile(r"[A-Za-z0-9._-]{0,64}"), _NAME_PROBLEM)
_SERIAL: Final = Word(re.compile(r"0|[1-9a-f][0-9a-f]{0,39}"), "must be lower-case hexadecimal without leading zeros")
_ID: Final = Word(re.compile(r"[!-~]{0,128}"), "is not an id of this broker")
_SHA256: Final = Word(re.compile(r"[0-9a-f]{64}"), "must be a SHA-256 in lower-case hexadecimal")
_FEATURE: Final = Word(re.compile(r"[a-z0-9_-]{1,32}"), "must be 1 to 32 of the characters a-z 0-9 _ -")
MOST_ROOTS: Final = 20
MOST_REASON_BYTES: Final = 500
MOST_ERROR_BYTES: Final = 2000

_REACHED: Final = frozenset({CertificateState.WAITING, CertificateState.SERVING})
_MISSED: Final = frozenset({CertificateState.FAILED, CertificateState.DEGRADED})


@dataclass(frozen=True, slots=True)
class HeldCertificate:
    """A certificate on a host's disk, at its configured paths, or served by its service.

    `version` is zero for one that is none of the host's versions; `certificate_id` is empty for one that the broker
    didn't issue.
    """

    serial_number: Annotated[str, _SERIAL]
    not_before: datetime | None = None
    not_after: datetime | None = None
    certificate_id: Annotated[str, _ID] = ""
    version: int = 0
    observe_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """What a host says of one certificate; `name` is the one in its configuration."""

    name: Annotated[str, NAME]
    state: CertificateState
    profile: Annotated[str, _NAME_OR_NONE] = ""
    dns_names: Annotated[tuple[str, ...], DnsNames(100)] = ()
    failed_step: RenewalStep | None = None
    issued: HeldCertificate | None = None
    installed: HeldCertificate | None = None
    served: HeldCertificate | None = None
    renew_time: datetime | None = None
    renew_reason: Annotated[str, Text(MOST_REASON_BYTES)] = ""
    last_error: Annotated[str, Text(MOST_ERROR_BYTES)] = ""
    request_failures: int = 0
    activation_failures: int = 0
    next_attempt_time: datetime | None = None
    activate_time: datetime | None = None
    update_time: datetime | None = None
    held_by_rollout_id: Annotated[str, _NAME_OR_NONE] = ""
    """The rollout that holds back what is `issued`; `activate_time` is then when the host activates it by itself."""

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


IDENTITY_FEATURE: Final = "identity"
"""Of an agent that renews its host's identity when it is told to (`Renewal.identity`)."""
ROLLOUT_FEATURE: Final = "rollout"
"""Of an agent that can hold a certificate back (`Renewal.hold_activation`), and hears of activations."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host says of itself when its stream begins, and operators see of it.

    A fact is added here (with a default), under the same name in `Hello` and `Host` of renewal.proto, where the agent
    finds it (`agent.link.open_stream`), as a column of the broker's `host_streams`, and where certplanectl shows it.
    """

    agent_version: Annotated[str, Printable(64)]
    agent_mode: AgentMode | None = None
    """None of an agent that doesn't say: it is taken for a daemon."""
    run_interval: Annotated[timedelta, Span(timedelta(days=400))] | None = None
    """How often a timer starts the agent, as far as it knows."""
    broker_roots_sha256: Annotated[tuple[str, ...], Words(MOST_ROOTS, _SHA256)] = ()
    """The roots by which the host knows its broker: SHA-256 of each certificate (DER), lower-case hexadecimal."""
    features: Annotated[tuple[str, ...], Words(20, _FEATURE)] = ()
    """What the agent can do that older ones can't."""
