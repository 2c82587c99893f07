"""A `RolloutStarter` that does what a test says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from typing_extensions import override

from certplane.broker.incidents.model import Incident
from certplane.broker.incidents.ports import RolloutStarter, Started
from certplane.errors import RefusalError


@dataclass
class FakeRolloutStarter(RolloutStarter):
    """`started` has each request's certificates; `others` those of operators' rollouts, with its id."""

    started: dict[str, tuple[str, ...]] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    fault: RefusalError | None = None

    @override
    async def under_way(self, certificate_ids: Sequence[str]) -> Mapping[str, str]:
        return {each: self.others[each] for each in certificate_ids if each in self.others}

    @override
    async def start(self, incident: Incident, certificate_ids: Sequence[str], request_id: str) -> Started:
        if self.fault is not None:
            raise self.fault
        begun_for = self.started.setdefault(request_id, tuple(certificate_ids))
        return Started(f"rollout of {request_id}", [each for each in begun_for if each in certificate_ids])
