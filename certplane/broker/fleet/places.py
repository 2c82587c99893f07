"""At which broker each host's stream is, and where services watch their certificates, as far as this broker knows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from typing_extensions import override

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


@dataclass(frozen=True, slots=True)
class ServicePlace:
    """How a service watches its certificates (`certplane.broker.watches`), or did.

    Attributes:
        stream: Its newest call as if it were a host's stream; its facts say what the service is.
        broker: Where that is; None if it has none open.
        watch_count: How many it has open, at all brokers.
    """

    stream: HostStream
    broker: StreamBroker | None
    watch_count: int


class ServicePlaces(Protocol):
    """Where services watch."""

    def is_here(self, service: str) -> bool:
        """Whether the service watches at this broker."""
        ...

    async def find(self, services: Collection[str]) -> Mapping[str, ServicePlace]:
        """Of these services those that watch at any broker, or did.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class NoServicePlaces(ServicePlaces):
    """No service watches."""

    @override
    def is_here(self, service: str) -> bool:
        return False

    @override
    async def find(self, services: Collection[str]) -> Mapping[str, ServicePlace]:
        return {}
