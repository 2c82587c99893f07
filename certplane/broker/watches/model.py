"""The values of services that watch their certificates. Frozen; times are aware UTC.

Serial numbers are lower-case hexadecimal digits without leading zeros, hashes 64 of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

from certplane.broker.model import RevocationReason
from certplane.broker.renewal.model import RenewalPlan
from certplane.fleet_report.model import RenewalCause


@dataclass(frozen=True, slots=True)
class HeldByService:
    """A certificate of a service as the database has it: one in force, or one that was revoked before its end.

    `renew_time` is what it was stored with; `plan` the one that holds, None without one.
    """

    certificate_id: str
    identity: str
    profile: str
    dns_names: tuple[str, ...]
    serial_number: str
    public_key_sha256: str
    create_time: datetime
    not_after: datetime
    renew_time: datetime
    revoke_time: datetime | None = None
    revocation_reason: RevocationReason | None = None
    plan: RenewalPlan | None = field(default=None, metadata={"stored": False})


@dataclass(frozen=True, slots=True)
class CertificateNews:
    """What a service is told of one of its certificates (proto, WatchMyCertificatesResponse.CertificateNews)."""

    certificate_id: str
    profile: str
    dns_names: tuple[str, ...]
    serial_number: str
    public_key_sha256: str
    create_time: datetime
    not_after: datetime
    renew_time: datetime
    renew_cause: RenewalCause = RenewalCause.LIFETIME
    renew_reason: str = ""
    renewal_request_id: str = ""
    new_key: bool = False
    revoke_time: datetime | None = None
    revocation_reason: RevocationReason | None = None


@dataclass(frozen=True, slots=True)
class InForce:
    """What a broker refuses and fails by: the hash of its policy, and its retry epoch."""

    policy_hash: str = ""
    retry_epoch: str = ""


@dataclass(frozen=True, slots=True)
class Listening:
    """All that there was has been said; changes follow."""

    broker_time: datetime
    heartbeat_interval: timedelta
    in_force: InForce


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The broker is there."""

    broker_time: datetime


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The last message: watch again after `reconnect_delay`."""

    reconnect_delay: timedelta
    reason: str


Told: TypeAlias = Listening | CertificateNews | Heartbeat | Goodbye | InForce


@dataclass(frozen=True, slots=True)
class ServiceWatch:
    """What is recorded of a service's watching at one broker.

    Attributes:
        identity: The service's name.
        broker_id: The broker.
        watch_count: How many calls it has open there.
        client_version: As the newest of those says; empty if it doesn't.
        identity_serial_number: Of the identity certificate of that one.
        identity_not_after: End of that certificate's validity.
        source_ip: Where that one comes from.
        connect_time: Since when it has had one, without a pause.
        last_seen_time: When it had one, as recorded now and then.
        end_time: When the last one ended; None while there is one.
    """

    identity: str
    broker_id: str
    watch_count: int
    client_version: str
    identity_serial_number: str
    identity_not_after: datetime
    source_ip: str
    connect_time: datetime
    last_seen_time: datetime
    end_time: datetime | None = None
