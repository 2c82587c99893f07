"""What others have revoked reaches those who tell the holders, once each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from certplane.broker.model import CertificateRecord, RevocationReason
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.renewal.revocations import RevocationWatch
from certplane.errors import Reason, RefusalError
from tests.fakes.clock import ManualClock
from tests.fakes.stores import FakeStores
from tests.support.stores import StoreHarness, StorePlace

LOOK = timedelta(seconds=15)
DOWN = RefusalError(Reason.STORE_UNAVAILABLE, "down")


class World:
    """A broker's watch over a database that others write to as well."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.stores = FakeStores.open(self.clock)
        self.harness = StoreHarness(StorePlace("fake", None), self.clock, self.stores)  # type: ignore[arg-type]
        self.plans = RenewalPlans(self.stores.renewal_plans)
        self.told: list[str] = []
        self.plans.subscribe_revoked(lambda record: self.told.append(record.certificate_id))

    async def issue(self) -> CertificateRecord:
        return await self.harness.issue()

    async def revoke(self, record: CertificateRecord) -> CertificateRecord:
        """Somebody else records it."""
        return await self.stores.certificates.mark_revoked(
            record.certificate_id, RevocationReason.SUPERSEDED, self.clock.now(), []
        )

    async def look(self) -> None:
        """Let a look's time come."""
        self.clock.advance(LOOK)
        await settle()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """The watch of a broker that has just started."""
        task = asyncio.create_task(RevocationWatch(self.stores.certificates, self.plans, self.clock).run())
        try:
            await settle()
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_another_program_revokes_is_told_once() -> None:
    """At the next look; later looks find it again and say nothing."""
    world = World()
    first, second, _ = [await world.issue() for _ in range(3)]
    async with world.watching():
        await world.revoke(first)
        assert world.told == []
        await world.look()
        assert world.told == [first.certificate_id]
        await world.look()
        await world.revoke(second)
        await world.look()
        for _ in range(40):
            await world.look()
    assert world.told == [first.certificate_id, second.certificate_id]


async def test_what_this_broker_revokes_is_told_once() -> None:
    """At once, by the one who revoked; the look that finds it says nothing."""
    world = World()
    record = await world.issue()
    async with world.watching():
        world.plans.note_revoked(await world.revoke(record))
        for _ in range(3):
            await world.look()
    assert world.told == [record.certificate_id]


async def test_a_clock_that_is_behind_hides_nothing() -> None:
    """A revocation that another machine dates minutes back, or that a look just missed, is found by the next."""
    world = World()
    record = await world.issue()
    async with world.watching():
        for _ in range(8):
            await world.look()
        earlier = world.clock.now() - timedelta(minutes=4)
        await world.stores.certificates.mark_revoked(record.certificate_id, RevocationReason.SUPERSEDED, earlier, [])
        await world.look()
    assert world.told == [record.certificate_id]


async def test_a_store_that_fails_for_long_hides_nothing() -> None:
    """The next look that succeeds goes back to the last one that did."""
    world = World()
    record = await world.issue()
    async with world.watching():
        world.stores.database.faults.fail_always("revoked_since", DOWN)
        await world.look()
        await world.revoke(record)
        for _ in range(40):
            await world.look()
        assert world.told == []
        world.stores.database.faults.heal()
        await world.look()
    assert world.told == [record.certificate_id]
