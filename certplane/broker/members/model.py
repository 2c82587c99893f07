"""What a broker says of itself to the others."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


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
        configuration_hash: Of its broker.yml.
        stream_count: Hosts that have their stream there.
        lease_until: By the database's clock; what a member says of itself before it has a lease is without.
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
