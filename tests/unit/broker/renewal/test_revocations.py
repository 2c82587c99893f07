"""What others have revoked reaches those who tell the holders, once each."""

from __future__ import annotations

from datetime import timedelta

from certplane.broker.model import CertificateRecord, RevocationReason
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.renewal.revocations import Revocations
from tests.fakes.clock import ManualClock
from tests.support.memory_store import MemoryStores
from tests.support.stores import StoreHarness, StorePlace


class RevocationSetting:
    """A broker beside a database that others write to as well."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.stores = MemoryStores.open(self.clock)
        self.harness = StoreHarness(StorePlace("memory", None), self.clock, self.stores)  # type: ignore[arg-type]
        self.plans = RenewalPlans(self.stores.renewal_plans)
        self.told: list[str] = []
        self.plans.subscribe_revoked(lambda record: self.told.append(record.certificate_id))
        self.revocations = Revocations(self.stores.certificates, self.plans, self.clock)

    async def issue(self) -> CertificateRecord:
        return await self.harness.issue()

    async def revoke(self, record: CertificateRecord) -> CertificateRecord:
        """Somebody else records it."""
        return await self.stores.certificates.mark_revoked(
            record.certificate_id, RevocationReason.SUPERSEDED, self.clock.now(), []
        )

    async def hear(self, *records: CertificateRecord) -> None:
        """The change feed tells of these."""
        await self.revocations.changed([record.certificate_id for record in records])


async def test_what_another_program_revokes_is_told_once() -> None:
    """When the feed tells of it; told again, or read again, it says nothing."""
    world = RevocationSetting()
    first, second, third = [await world.issue() for _ in range(3)]
    await world.revoke(first)
    assert world.told == []
    await world.hear(first)
    assert world.told == [first.certificate_id]
    await world.revoke(second)
    await world.hear(first, second, third)
    await world.revocations.reread(world.clock.now())
    assert world.told == [first.certificate_id, second.certificate_id]


async def test_what_this_broker_revokes_is_told_once() -> None:
    """At once, by the one who revoked; reading it again says nothing."""
    world = RevocationSetting()
    record = await world.issue()
    world.plans.note_revoked(await world.revoke(record))
    await world.revocations.reread(world.clock.now())
    assert world.told == [record.certificate_id]


async def test_a_clock_that_is_behind_hides_nothing() -> None:
    """A revocation that another machine dates minutes back is found when everything is read again; an old one isn't."""
    world = RevocationSetting()
    old, record = [await world.issue() for _ in range(2)]
    await world.revoke(old)
    world.clock.advance(timedelta(minutes=6))
    since = world.clock.now()
    earlier = since - timedelta(minutes=4)
    await world.stores.certificates.mark_revoked(record.certificate_id, RevocationReason.SUPERSEDED, earlier, [])
    await world.revocations.reread(since)
    assert world.told == [record.certificate_id]


async def test_a_certificate_that_is_gone_is_passed_over() -> None:
    """It may have been pruned since the feed told of it."""
    world = RevocationSetting()
    await world.revocations.changed(["no such certificate"])
    assert world.told == []
