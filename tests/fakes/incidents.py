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
    """`started` has each request's certificates."""

    started: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fault: RefusalError | None = None

    @override
    async def start(self, incident: Incident, certificate_ids: Sequence[str], request_id: str) -> str:
        if self.fault is not None:
            raise self.fault
        self.started.setdefault(request_id, tuple(certificate_ids))
        return f"rollout of {request_id}"
