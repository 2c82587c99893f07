"""What is done once for all brokers of a database, and whether this one does it.

A role has no lease of its own: it is held as long as its holder's lease stands, as orders are (ADR 0028), so that
keeping one costs nothing. One that is free is taken by whoever comes first: at a start, when another broker leaves or
its lease has ended, and when this broker's own lease stands again, since others may have taken its roles meanwhile.

A role saves work. It doesn't make anything right that would be wrong if two did it: a broker that stood still may go on
for a second before it notices, so whatever runs under a role must bear being done twice at a time (ADR 0036).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.members.ports import Lease, RoleLease, RoleStore
from certplane.broker.metrics import Gauge
from certplane.broker.ports import ChangeFollower, Meter
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_logger = logging.getLogger("certplane.broker")

UPKEEP: Final = "upkeep"
"""Rows that nobody will ask for again are removed, and counts of brokers that were killed become audit events."""
SOUNDNESS: Final = "soundness"
"""The database is looked at for damage."""
COMPROMISED_KEYS: Final = "compromised_keys"
"""What CAs have issued of compromised keys is revoked."""
FLEET_HEALTH: Final = "fleet_health"
"""The figures of the whole fleet are computed."""
INCIDENTS: Final = "incidents"
"""What CAs do to many certificates at once is looked for, and followed."""
NOTIFICATIONS: Final = "notifications"
"""People are told what is wrong."""
ROLLOUTS: Final = "rollouts"
"""Rollouts are run."""
AUDIT_SINKS: Final = "audit_sinks"
"""The audit log is copied to its sinks."""

_LOOK: Final = timedelta(seconds=1)
"""Between looks at this broker's lease, and at whether others have left roles: from memory."""


def renewal_information(issuer: str) -> str:
    """The role of asking a CA when certificates are to be renewed; its own for each, since brokers may know others."""
    return f"renewal_information:{issuer}"


class SoleRoleStore(RoleStore):
    """`RoleStore` of the one broker of a database that nobody else can open: all roles are its own."""

    @override
    async def take(self, roles: Collection[str]) -> Mapping[str, int]:
        return dict.fromkeys(roles, 1)

    @override
    async def give_back(self, roles: Collection[str]) -> None:
        pass


class Roles(RoleLease, ChangeFollower):
    """This broker's roles, while `run` runs. For the event loop's thread."""

    def __init__(self, store: RoleStore, lease: Lease, clock: Clock, meter: Meter) -> None:
        """No role is held, nor known yet: `add` them."""
        self._store = store
        self._lease = lease
        self._clock = clock
        self._meter = meter
        self._works: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {}
        self._figures: dict[str, tuple[Gauge, ...]] = {}
        self._held: dict[str, asyncio.Task[object]] = {}
        self._term = lease.term
        self._looking = True
        """Whether a role may be free."""
        self._failing = False
        self._brokers: set[str] = set()

    def add(self, role: str, work: Callable[[], Coroutine[Any, Any, object]], figures: Iterable[Gauge] = ()) -> None:
        """Do `work`, which doesn't end by itself, whenever this broker has the role, and cancel it when it hasn't.

        `figures` are shown by the broker that has the role alone, or sums over all brokers would count them twice.
        """
        self._works[role] = work
        self._figures[role] = tuple(figures)
        for gauge in self._figures[role]:
            self._meter.forget(gauge)
        self._meter.level(metrics.ROLES_HELD, 0, role=role)

    @override
    def holds(self, role: str) -> bool:
        return role in self._held and self._stands()

    async def run(self) -> None:
        """Have what roles are free, until cancelled; then all are given back."""
        try:
            while True:
                await self._look()
                await self._clock.sleep(_LOOK)
        finally:
            held = await self._end(list(self._held))
            await self._give_back(held)

    @override
    async def changed(self, keys: Collection[str]) -> None:
        self._looking = True

    @override
    async def reread(self, since: datetime) -> None:
        self._looking = True

    def heard(self, brokers: Collection[str]) -> None:
        """These have a lease: who has gone since may have left roles."""
        if not self._brokers.issubset(brokers):
            self._looking = True
        self._brokers = {*brokers}

    async def _look(self) -> None:
        if not self._stands():
            await self._end(list(self._held))
            self._term = self._lease.term
            self._looking = True
        ended = [role for role, task in self._held.items() if task.done()]
        if ended:
            await self._give_back(await self._end(ended))
        if self._looking and self._lease.stands():
            self._looking = False
            await self._take(self._works.keys() - self._held.keys())

    async def _take(self, free: Collection[str]) -> None:
        try:
            taken = await self._store.take(free)
        except RefusalError as error:
            self._looking = True
            if not self._failing:
                _logger.warning("could not look which roles other brokers have left; will retry: %s", error)
            self._failing = True
            return
        self._failing = False
        for role, epoch in taken.items():
            if self._lease.shared:
                _logger.info("this broker has the role %s", role, extra={"fields": {"epoch": epoch}})
            self._meter.level(metrics.ROLES_HELD, 1, role=role)
            for gauge in self._figures[role]:
                if not gauge.labels:
                    self._meter.level(gauge, 0)
            self._held[role] = asyncio.create_task(self._works[role](), name=role)

    async def _end(self, roles: Collection[str]) -> Collection[str]:
        """Stop the work of these; returns them."""
        tasks = [self._held[role] for role in roles]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for role in roles:
            task = self._held.pop(role)
            if not task.cancelled() and task.exception() is not None:
                # Another broker may have no such bug, being of another release; this one doesn't try again.
                del self._works[role]
                _logger.critical("%s has ended unexpectedly; restart the broker", role, exc_info=task.exception())
            self._meter.level(metrics.ROLES_HELD, 0, role=role)
            for gauge in self._figures[role]:
                self._meter.forget(gauge)
        return roles

    async def _give_back(self, roles: Collection[str]) -> None:
        if not self._lease.stands():
            return  # they are free already
        try:
            await self._store.give_back(roles)
        except RefusalError as error:
            _logger.warning("roles could not be given back and end with this broker's lease: %s", error)

    def _stands(self) -> bool:
        return self._lease.stands() and self._lease.term == self._term
