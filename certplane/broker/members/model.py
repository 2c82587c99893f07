"""What a broker says of itself to the others."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class AccountKey:
    """Which account a broker orders with at an issuer: the SHA-256 of the public key (SPKI), in hexadecimal."""

    issuer: str
    public_key_sha256: str


@dataclass(frozen=True, slots=True)
class Member:
    """A broker of the fleet.

    Attributes:
        broker_id: New with each start; orders name it as their holder.
        name: The machine's, for people.
        address: What it listens on.
        version: Of the program.
        start_time: By its own clock.
        policy_hash: Of the policy in force there.
        trust_hash: Of the agent CA bundle in force there.
        configuration_hash: Of what its broker.yml says that all brokers are to say alike.
        stream_count: Hosts that have their stream there.
        lease_until: By the database's clock; what a member says of itself before it has a lease is without.
        audit_mode: What happens there when an audit event can't be written, `off` without an audit log; empty of a
            release that doesn't say.
        account_keys: Of its issuers, by their names.
        clock_skew: Its clock less the database's, as its last renewal has shown.
        reuse_port: Whether other brokers of its machine may listen on its address too.
        schema_revision: The newest schema of the database that its program knows; the store says it.
        draining: Whether an operator has taken it out of service.
    """

    broker_id: str
    name: str
    address: str
    version: str
    start_time: datetime
    policy_hash: str
    trust_hash: str
    configuration_hash: str
    stream_count: int = 0
    lease_until: datetime | None = None
    audit_mode: str = ""
    account_keys: tuple[AccountKey, ...] = ()
    clock_skew: timedelta = timedelta()
    reuse_port: bool = False
    schema_revision: str = ""
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Renewal:
    """What the database says to the renewal of a lease.

    Attributes:
        stood: Whether the lease before had not ended; False of the first one.
        time: The database's clock at the renewal.
        removed: Whether other members were removed with it, whose leases had ended.
    """

    stood: bool
    time: datetime
    removed: bool = False
