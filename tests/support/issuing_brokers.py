"""Brokers of one database as far as they issue, beside one fake CA and DNS: what may happen to one is a method."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import timedelta

from typing_extensions import override

from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.members.model import Member
from certplane.broker.members.ports import Lease
from tests.fakes.issuer import FakeIssuer
from tests.support.issuance import NO_WAIT, World, running, settle

SECOND = timedelta(seconds=1)
LONG = timedelta(hours=1)


class SharedLease(Lease):
    """A lease that a test gives and takes."""

    def __init__(self) -> None:
        self.held = True
        self.number = 0

    @property
    @override
    def shared(self) -> bool:
        return True

    @override
    def stands(self) -> bool:
        return self.held

    @property
    @override
    def term(self) -> int:
        return self.number


class IssuingBroker:
    """One of several: a process of its own in the world that they share."""

    def __init__(self, world: World, *, issuers: Sequence[str] = ()) -> None:
        """With more issuers of these names, of the same CA."""
        self.world = world
        world.connect()
        world.others = [FakeIssuer(world.ca, name=name) for name in issuers]
        self.lease = SharedLease()
        self.orders, self.members, self.issuer = world.stores.orders, world.stores.members, world.issuer
        self.solver, self.meter, self.epoch = world.solver, world.meter, world.epoch
        self.moving: asyncio.Task[None] | None = None
        self.database_stores = world.database.stores
        self.database_stores.certificates._changes._shared = True  # as on PostgreSQL
        number = f"b{random.Random(self.members.broker_id).getrandbits(32):08x}"
        ids = iter(range(1, 1_000_000))
        self.database_stores.orders._new_id = lambda: f"{number}-{next(ids):06d}"
        self.authority: RegistrationAuthority = world.authority(lease=self.lease)

    async def start(self) -> IssuingBroker:
        await self.renew(LONG)
        self.authority.follow_others(self.database_stores.changes)
        await self.authority.start(list(self.world.policies.policy.profiles))
        running.append(self.authority)
        return self

    async def renew(self, span: timedelta) -> bool:
        """Have the lease for a while from now; whether the one before had not ended."""
        now = self.world.clock.now()
        renewal = await self.members.renew(Member("", "machine", "[::]:8443", "1", now, "p", "t", "c"), span)
        return bool(renewal.stood)

    async def look(self) -> None:
        """Hear of the other brokers, as the feed lets it four times a second."""
        await self.database_stores.changes.look()

    async def stop_for(self) -> None:
        """Stopped for longer than its lease: others may take what it has."""
        await self.renew(timedelta())
        self.lease.held = False

    def writes_late(self) -> bool:
        """Whether it may have written TXT records for an order that another broker has by now."""
        dispatcher = self.authority._dispatcher
        return any(dispatcher.flights.find(order_id) is None for order_id in dispatcher._records._writing)

    async def drain(self) -> None:
        """Stopped in order, with no time for what runs."""
        draining = asyncio.create_task(self.authority.drain(NO_WAIT))
        await settle()
        self.world.clock.advance(timedelta(minutes=1))
        await draining

    def kill(self) -> None:
        """All that it holds stays as it is."""
        supervisor = self.authority._dispatcher._supervisor
        assert supervisor is not None
        supervisor.cancel()
        running.remove(self.authority)


async def tick(world: World, *brokers: IssuingBroker, seconds: int = 1) -> None:
    """Let time pass, and each broker hear of the others."""
    for _ in range(seconds):
        world.clock.advance(SECOND)
        await settle()
        for broker in brokers:
            await broker.look()
        await settle()
