"""What happens at other brokers that this one's hosts and watchers must hear of, through the change feed."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from typing_extensions import override

from certplane.broker.fleet.hub import FleetHub
from certplane.broker.fleet.indexing import MemoryIndex
from certplane.broker.fleet.watching import Watchers
from certplane.broker.members.known import KnownMembers
from certplane.broker.model import ChangeKind
from certplane.broker.ports import ChangeFeed, ChangeFollower
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.renewal.ports import RevokedCertificates
from certplane.broker.renewal.revocations import Revocations
from certplane.runtime.clock import Clock


def follow_others(
    hub: FleetHub, plans: RenewalPlans, revoked: RevokedCertificates, feed: ChangeFeed, clock: Clock
) -> None:
    """Let the hub hear of plans and revocations, this broker's and those of other programs, and of others' hosts."""
    plans.subscribe(hub.plans_changed)
    plans.subscribe_unknown(hub.plans_unknown)
    plans.subscribe_revoked(hub.certificate_revoked)
    plans.subscribe_identities(hub.identities_wanted)
    feed.follow(ChangeKind.PLAN, plans, what="renewal plans")
    feed.follow(ChangeKind.IDENTITY_RENEWAL, IdentitiesWanted(hub), what="renewals of identities")
    feed.follow(ChangeKind.ACTIVATION, ActivationsWanted(hub), what="released certificates")
    feed.follow(ChangeKind.CERTIFICATE_REVOKED, Revocations(revoked, plans, clock), what="recent revocations")
    feed.follow(ChangeKind.STREAM, hub.displacement, what="which hosts have gone to another broker")
    feed.follow(ChangeKind.REPORT, ReportsElsewhere(hub.watchers, clock), what="reports to other brokers")
    feed.follow(ChangeKind.STREAM, HostsElsewhere(hub), what="hosts at other brokers")


class ReportsElsewhere(ChangeFollower):
    """What hosts report to other brokers, for those who watch the fleet here."""

    def __init__(self, watchers: Watchers, clock: Clock) -> None:
        self._watchers = watchers
        self._clock = clock

    @override
    async def changed(self, keys: Collection[str]) -> None:
        for key in keys:
            host, *names = key.split(" ")
            self._watchers.recorded_elsewhere(host, names, self._clock.now())

    @override
    async def reread(self, since: datetime) -> None:
        self._watchers.fleet_changed(self._clock.now())


class IdentitiesWanted(ChangeFollower):
    """Identities whose renewal an operator has asked another broker for."""

    def __init__(self, hub: FleetHub) -> None:
        self._hub = hub

    @override
    async def changed(self, keys: Collection[str]) -> None:
        self._hub.identities_wanted(keys)

    @override
    async def reread(self, since: datetime) -> None:
        self._hub.plans_unknown()


class ActivationsWanted(ChangeFollower):
    """Certificates that hosts hold, and that a rollout has released or abandoned at another broker."""

    def __init__(self, hub: FleetHub) -> None:
        self._hub = hub

    @override
    async def changed(self, keys: Collection[str]) -> None:
        self._hub.activations_wanted(keys)

    @override
    async def reread(self, since: datetime) -> None:
        self._hub.plans_unknown()  # which has all that hosts don't know told


class HostsElsewhere(ChangeFollower):
    """Hosts that come to other brokers, and leave them."""

    def __init__(self, hub: FleetHub) -> None:
        self._hub = hub

    @override
    async def changed(self, keys: Collection[str]) -> None:
        for host in keys:
            self._hub.was_elsewhere(host)

    @override
    async def reread(self, since: datetime) -> None:
        self._hub.may_have_been_elsewhere()  # watchers read everything again by `ReportsElsewhere`


class ShutOuts(ChangeFollower):
    """Who is denied or contested, or isn't any more, whichever program says so."""

    def __init__(self, index: MemoryIndex) -> None:
        self._index = index

    @override
    async def changed(self, keys: Collection[str]) -> None:
        for key in keys:  # an identity's name; of no host where it is a serial number
            self._index.shut_out(key)

    @override
    async def reread(self, since: datetime) -> None:
        self._index.any_shut_out()


class BrokersElsewhere:
    """Has those who watch the fleet read it again when a broker has come or gone: where it is, its hosts are.

    One that was killed has recorded no end of the streams that it had.
    """

    def __init__(self, known: KnownMembers, watchers: Watchers, clock: Clock) -> None:
        """Looks whenever `known` tells of something."""
        self._known = known
        self._watchers = watchers
        self._clock = clock
        self._there = self._ids()
        known.subscribe(self.look)

    def look(self) -> None:
        """Look who is there now."""
        before, self._there = self._there, self._ids()
        if self._there != before:
            self._watchers.brokers_changed(before ^ self._there, self._clock.now())

    def _ids(self) -> frozenset[str]:
        return frozenset(member.broker_id for member in self._known.members)
