"""An `AuditSink` that does what a test says."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from certplane.broker.sinks.ports import AuditSink, SinkError, StoredEvent
from tests.fakes.faults import FaultScript


class FakeSink(AuditSink):
    """Takes everything, unless `faults` says otherwise."""

    def __init__(self) -> None:
        self.events: list[StoredEvent] = []
        self.faults = FaultScript()

    @property
    def ids(self) -> list[str]:
        return [event.event_id for event in self.events]

    def away(self) -> None:
        """From now on nothing is taken."""
        self.faults.fail_always("send", SinkError("it is away"))

    @override
    async def send(self, events: Sequence[StoredEvent]) -> None:
        async with self.faults.around("send"):
            self.events += events

    @override
    async def close(self) -> None:
        pass
