"""The plans as a broker knows them: its own, and those that other brokers make."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from certplane.broker.model import CertificateRecord
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.renewal.plans import RenewalPlans
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
from tests.fakes.clock import ManualClock
from tests.support.memory_store import MemoryStores
from tests.support.stores import StoreHarness, StorePlace
from tests.support.waiting import until

HOUR = timedelta(hours=1)


class World:
    """A broker over a database that others write to as well."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.stores = MemoryStores.open(self.clock)
        self.harness = StoreHarness(StorePlace("memory", None), self.clock, self.stores)  # type: ignore[arg-type] # in memory there is no path
        self.plans = RenewalPlans(self.stores.renewal_plans)
        self.told: list[RenewalPlan] = []
        self.unknown = 0
        self.plans.subscribe(self.told.extend)
        self.plans.subscribe_unknown(self._count)

    def _count(self) -> None:
        self.unknown += 1

    async def issue(self) -> CertificateRecord:
        return await self.harness.issue()

    def plan(self, record: CertificateRecord, hours: int = 1) -> RenewalPlan:
        time = self.clock.now() + hours * HOUR
        return RenewalPlan(record.certificate_id, record.identity, time, RenewalCause.OPERATOR, "drill")

    async def plan_elsewhere(self, *plans: RenewalPlan) -> None:
        """Another broker makes these durable, and nobody here has heard of it."""
        await self.stores.renewal_plans.set_plans(plans)


@pytest.fixture
def world() -> World:
    return World()


async def test_what_another_broker_plans_is_known_and_told(world: World) -> None:
    """As it is in the database; a certificate of which nothing is planned, or that is gone, is passed over."""
    records = [await world.issue() for _ in range(3)]
    plans = [world.plan(record) for record in records[:2]]
    await world.plan_elsewhere(*plans)
    assert world.plans.renew_time(records[0]) == records[0].renew_time
    await world.plans.changed([*(record.certificate_id for record in records), "gone"])
    assert sorted(world.told, key=lambda plan: plan.certificate_id) == plans
    assert [world.plans.renew_time(record) for record in records] == [
        *(plan.renew_time for plan in plans),
        records[2].renew_time,
    ]


async def test_thousands_of_others_plans_are_told_some_at_a_time(world: World) -> None:
    """A request for a whole fleet at another broker lets everybody else have their turn."""
    keys = [f"certificate-{number}" for number in range(10_000)]
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await world.plans.changed(keys)
    counting.cancel()
    assert turns > 10_000 // 128


async def test_a_plan_of_this_broker_is_told_after_an_older_one_of_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are for one certificate: the one that is durable last is what the host hears last, and what is answered."""
    record = await world.issue()
    await world.plan_elsewhere(world.plan(record, 1))
    answer = asyncio.Event()
    read = world.stores.renewal_plans.planned

    async def slow(certificate_ids: Collection[str]) -> Sequence[RenewalPlan]:
        found = await read(certificate_ids)
        await answer.wait()
        return found

    monkeypatch.setattr(world.stores.renewal_plans, "planned", slow)
    heard = asyncio.create_task(world.plans.changed([record.certificate_id]))
    await asyncio.sleep(0)
    mine = asyncio.create_task(world.plans.set_plans([world.plan(record, 2)]))
    await until(lambda: world.stores.database.plans[record.certificate_id] == world.plan(record, 2))
    answer.set()
    await asyncio.gather(heard, mine)
    assert [plan.renew_time for plan in world.told] == [world.plan(record, hours).renew_time for hours in (1, 2)]
    assert world.told[-1] == world.plan(record, 2)
    assert world.plans.renew_time(record) == world.clock.now() + 2 * HOUR


async def test_plans_that_may_have_changed_unheard_are_read_again(world: World) -> None:
    """Their times at once; which hosts are to be told is found by who has their streams."""
    record = await world.issue()
    plan = world.plan(record)
    await world.plan_elsewhere(plan)
    await world.plans.reread(world.clock.now())
    assert world.plans.renew_time(record) == plan.renew_time
    assert (world.told, world.unknown) == ([], 1)


async def test_a_database_that_can_not_be_read_leaves_what_was_known(world: World) -> None:
    """The feed asks again."""
    record = await world.issue()
    plan = world.plan(record)
    await world.plans.set_plans([plan])
    await world.plan_elsewhere(replace(plan, renew_time=world.clock.now()))
    world.stores.database.down = True
    for again in (world.plans.changed([record.certificate_id]), world.plans.reread(world.clock.now())):
        with pytest.raises(RefusalError) as caught:
            await again
        assert caught.value.refusal.reason is Reason.STORE_UNAVAILABLE
    assert world.plans.renew_time(record) == plan.renew_time
    world.stores.database.down = False
    await world.plans.changed([record.certificate_id])
    assert world.plans.renew_time(record) == world.clock.now()
