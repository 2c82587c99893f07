"""At which broker each host's stream is, as far as this one knows."""

from __future__ import annotations

from dataclasses import dataclass

from certplane.broker.fleet.model import HostStream, StreamBroker
from certplane.broker.fleet.registry import StreamRegistry
from certplane.broker.members.ports import OtherBrokers


@dataclass(frozen=True, slots=True)
class HostPlaces:
    """Streams of this broker, by its memory, and those of others, by what is recorded while these live.

    Attributes:
        registry: This broker's streams.
        here: This broker.
        others: The others.
    """

    registry: StreamRegistry
    here: StreamBroker
    others: OtherBrokers

    def broker_of(self, host: str, stream: HostStream | None) -> StreamBroker | None:
        """Which broker has the host's stream; None if it is nowhere. `stream` is its last one, as recorded."""
        if host in self.registry:
            return self.here
        if stream is None or stream.end_time is not None:
            return None
        other = self.others.find(stream.broker_id)
        return None if other is None else StreamBroker(other.broker_id, other.name, other.address)
