"""A `RolloutStarter` that does what a test says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from typing_extensions import override

from certplane.broker.incidents.model import Incident
from certplane.broker.incidents.ports import RolloutStarter
from certplane.errors import RefusalError


@dataclass
class FakeRolloutStarter(RolloutStarter):
    """Rollouts run until they are taken out of `running`; `started` has each request's certificates."""

    started: dict[str, tuple[str, ...]] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    fault: RefusalError | None = None

    @override
    async def start(self, incident: Incident, certificate_ids: Sequence[str], request_id: str) -> str:
        if self.fault is not None:
            raise self.fault
        rollout_id = f"rollout of {request_id}"
        if request_id not in self.started:
            self.started[request_id] = tuple(certificate_ids)
            self.running.add(rollout_id)
        return rollout_id

    @override
    async def is_running(self, rollout_id: str) -> bool:
        return rollout_id in self.running
