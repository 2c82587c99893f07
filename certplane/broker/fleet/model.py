"""What the broker knows of a host; what hosts report of their certificates is in `certplane.fleet_report.model`.

Frozen, without behaviour beyond derived facts; they know neither gRPC nor SQL. Times are aware UTC, serial numbers
lower-case hexadecimal without leading zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from certplane.errors import Refusal
from certplane.fleet_report.model import CertificateStatus, HostFacts


@dataclass(frozen=True, slots=True)
class HostStream:
    """What is known of a host's last stream; `end_time` is None while it may be open.

    `stream_epoch` is its number among the host's streams; 0: it begins, and the store numbers it. `broker_id` is the
    broker that has it; empty in rows of before.
    """

    host: str
    facts: HostFacts
    identity_serial_number: str
    identity_not_after: datetime
    source_ip: str
    connect_time: datetime
    last_seen_time: datetime
    end_time: datetime | None = None
    clock_skew: timedelta | None = None
    """The host's clock less the broker's."""
    broker_id: str = ""
    stream_epoch: int = 0
    identity_anchor: str = ""
    """The CA of the bundle that its identity led to; empty of a release that didn't say."""


@dataclass(frozen=True, slots=True)
class RecordedStream:
    """A host's last stream, and what is durable of the host's reports: all up to a sequence of one counting."""

    stream: HostStream
    epoch: str = ""
    acknowledged_sequence: int = 0


@dataclass(frozen=True, slots=True)
class StreamBroker:
    """The broker that has a host's stream; `name` is its machine's and `address` what it listens on, for people."""

    broker_id: str
    name: str
    address: str


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
class Block:
    """Why a host gets no new certificates whatever it asks for: `text` and `remedy` for people, `cause` as in `Health`.

    `since` is when that began; None where it isn't known.
    """

    text: str
    cause: str
    remedy: str
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """Of a certificate that was issued, what the index of the fleet needs."""

    certificate_id: str
    identity: str
    profile: str
    issuer: str
    public_key_sha256: str
    serial_number: str
    dns_names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    renew_time: datetime
    revoke_time: datetime | None = None
    revocation_reason: str | None = None
