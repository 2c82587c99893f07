"""What a policy says beforehand of rollouts and incidents: values of policy.yml's sections of these names. Frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from certplane.runtime.tables import span_text

AT_LEAST: Final = 10
"""Certificates whose windows a CA must have moved before it is an incident, where policy doesn't say."""


class Approval(StrEnum):
    """Whether a second operator is asked before a rollout begins."""

    NONE = "none"
    REQUIRED = "required"
    """Of one that revokes, that selects all, or is of more hosts than `RolloutRules.approval_above_hosts`."""


class IncidentRollout(StrEnum):
    """What is done about an incident."""

    NONE = "none"
    """Each host renews as it is planned for it."""
    RINGS = "rings"
    """A rollout begins by itself, in the standing rings."""


@dataclass(frozen=True, slots=True)
class RingRule:
    """A standing ring; exactly one of `labels`, `percent` and `rest` picks its hosts, as in the proto's RingSpec.

    Attributes:
        name: Unique among the rings.
        labels: Hosts that have all of these labels.
        percent: So many, 1 to 100, of all hosts of the rollout, of those that no earlier ring has.
        rest: All that no earlier ring has.
        bake: How long after its last host is done the next ring is released.
    """

    name: str
    labels: Mapping[str, str]
    percent: int = 0
    rest: bool = False
    bake: timedelta = timedelta()

    def __str__(self) -> str:
        """For people: `canary (ring=canary, 1h 0m)`."""
        picked = [f"{key}={value}" for key, value in self.labels.items()]
        picked += [f"{self.percent}%"] if self.percent else []
        picked += ["rest"] if self.rest else []
        picked += [span_text(self.bake)] if self.bake else []
        return f"{self.name} ({', '.join(picked)})"


@dataclass(frozen=True, slots=True)
class RolloutRules:
    """Policy's word on rollouts.

    Attributes:
        approval: Whether a second operator is asked.
        approval_above_hosts: Where approval is required: that it is for more hosts than these too; None: however many.
        rings: The rings of rollouts that begin by themselves, in order; none are one ring of all.
    """

    approval: Approval = Approval.NONE
    approval_above_hosts: int | None = None
    rings: tuple[RingRule, ...] = ()


@dataclass(frozen=True, slots=True)
class IncidentRules:
    """Policy's word on incidents.

    Attributes:
        rollout: What is done about one.
        at_least: Of how many certificates one CA must have moved the windows.
    """

    rollout: IncidentRollout = IncidentRollout.NONE
    at_least: int = AT_LEAST
