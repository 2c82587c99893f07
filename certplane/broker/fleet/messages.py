"""What host and broker say on a stream, as values: `services.renewal` makes them of messages, and messages of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from certplane.broker.renewal.model import HostActivation, RenewalPlan
from certplane.errors import Refusal
from certplane.fleet_report.model import HostFacts, Report


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a stream; `request_id` is empty if the host chose none."""

    facts: HostFacts
    epoch: str
    certificate_names: tuple[str, ...]
    reports: tuple[Report, ...]
    host_time: datetime
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class DirectiveResult:
    """The answer to a directive; `error` None: it was taken."""

    nonce: str
    error: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to hello."""

    broker_time: datetime
    acknowledged_sequence: int
    heartbeat_interval: timedelta
    policy_hash: str
    trust_bundle_hash: str
    retry_epoch: str = ""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """All reports up to `sequence` are durable."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Directive:
    """What is wanted of the host."""

    nonce: str
    renewals: tuple[RenewalPlan, ...]
    policy_hash: str
    trust_bundle_hash: str
    retry_epoch: str = ""
    activations: tuple[HostActivation, ...] = ()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The answer to a heartbeat."""

    broker_time: datetime


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The last message: come back after `reconnect_delay`."""

    reconnect_delay: timedelta
    reason: str


Outgoing: TypeAlias = Welcome | Acknowledgement | Directive | Heartbeat | Goodbye
