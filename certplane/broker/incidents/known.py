"""The open incidents in memory, at every broker: what is told of them costs no read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from typing_extensions import override

from certplane.broker.incidents.model import Incident
from certplane.broker.incidents.ports import IncidentStore
from certplane.broker.ports import ChangeFollower


class KnownIncidents(ChangeFollower):
    """Knows them: of this broker at once, of another one as the change feed tells. For the event loop's thread."""

    def __init__(self, store: IncidentStore) -> None:
        """None is known before `reread`."""
        self._store = store
        self._open: Sequence[Incident] = ()

    @property
    def open(self) -> Sequence[Incident]:
        """Those that are open, by their issuers."""
        return self._open

    def note(self, incidents: Sequence[Incident]) -> None:
        """These are open, all of them."""
        self._open = incidents

    @override
    async def changed(self, keys: Collection[str]) -> None:
        self.note(await self._store.open_incidents())

    @override
    async def reread(self, since: datetime) -> None:
        self.note(await self._store.open_incidents())
