"""What is known of the policy in force, and what would come of another: values that services answer with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from certplane.broker.policy.changes import PolicyChanges
from certplane.broker.policy.effort import NO_EFFORT, PolicyEffort
from certplane.broker.policy.same_names import SameNames
from certplane.errors import Reason


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """A broker's policy.

    Attributes:
        hash: SHA-256 of the file's bytes.
        load_time: Since when it is in force at this broker.
        loaded_by: Who had it loaded, as far as is known, for people.
        file: Where it was read.
        refusal: Why the file as it was last read isn't in force; empty where it is.
        broker_id: Of the broker.
        broker_name: Its machine's name.
    """

    hash: str
    load_time: datetime
    loaded_by: str
    file: str
    refusal: str
    broker_id: str
    broker_name: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A certificate that a host asks for, as it last reported it, and would be refused.

    `refused_now`: the policy in force refuses it already.
    """

    host: str
    certificate: str
    profile: str
    reason: Reason
    message: str
    refused_now: bool


@dataclass(frozen=True, slots=True)
class PolicyPlan:
    """What would come of a text in place of the policy in force.

    `confirmation`: why it would have to be confirmed. `effort`: the orders that it would come to. `same_names`:
    what takes time by a CA's limit of the same names, whatever the policy changes; the longest first.
    """

    hash: str
    changes: PolicyChanges
    mismatches: tuple[Mismatch, ...]
    confirmation: str
    effort: PolicyEffort = NO_EFFORT
    same_names: tuple[SameNames, ...] = ()
