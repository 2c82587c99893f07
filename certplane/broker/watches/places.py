"""Where services watch their certificates: at this broker by its memory, at others by what they have recorded."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from typing_extensions import override

from certplane.broker.fleet.model import HostStream, StreamBroker
from certplane.broker.fleet.places import ServicePlace, ServicePlaces
from certplane.broker.members.ports import OtherBrokers
from certplane.broker.watches.desk import WatchDesk
from certplane.broker.watches.model import ServiceWatch
from certplane.broker.watches.ports import WatchStore
from certplane.fleet_report.model import HostFacts


class WatchPlaces(ServicePlaces):
    """`ServicePlaces` over the desk of this broker and the store of all."""

    def __init__(self, desk: WatchDesk, store: WatchStore, here: StreamBroker, others: OtherBrokers) -> None:
        self._desk, self._store, self._here, self._others = desk, store, here, others

    @override
    def is_here(self, service: str) -> bool:
        return service in self._desk

    @override
    async def find(self, services: Collection[str]) -> Mapping[str, ServicePlace]:
        rows: dict[str, dict[str, ServiceWatch]] = {}
        for row in await self._store.watches_of(services) if services else ():
            rows.setdefault(row.identity, {})[row.broker_id] = row
        for service in services:  # after the read: what happened here meanwhile is newer
            if (own := self._desk.here(service)) is not None:
                rows.setdefault(service, {})[own.broker_id] = own
        return {service: self._place(of_one.values()) for service, of_one in rows.items()}

    def _place(self, rows: Collection[ServiceWatch]) -> ServicePlace:
        """The newest call there is, else the one that ended last."""
        open_rows = [row for row in rows if self._broker(row) is not None]
        newest = max(open_rows or rows, key=lambda row: (row.connect_time, row.last_seen_time))
        broker = self._broker(newest)
        return ServicePlace(
            stream=HostStream(
                host=newest.identity,
                facts=HostFacts(newest.client_version),
                identity_serial_number=newest.identity_serial_number,
                identity_not_after=newest.identity_not_after,
                source_ip=newest.source_ip,
                connect_time=newest.connect_time,
                last_seen_time=newest.last_seen_time,
                # A broker that was killed has recorded no end: then it is when it was seen last.
                end_time=None if broker is not None else newest.end_time or newest.last_seen_time,
                broker_id=newest.broker_id,
            ),
            broker=broker,
            watch_count=sum(row.watch_count for row in open_rows),
        )

    def _broker(self, row: ServiceWatch) -> StreamBroker | None:
        """Where it watches; None if it doesn't, as far as is known."""
        if not row.watch_count:
            return None
        if row.broker_id == self._here.broker_id:
            return self._here if row.identity in self._desk else None
        other = self._others.find(row.broker_id)
        return None if other is None else StreamBroker(other.broker_id, other.name, other.address)
