"""The planner at work: who is asked when, what is stored, and who hears of it. Store, CA and time are fakes."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker import metrics
from certplane.broker.events import AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.model import CertificateRecord, Profile, RevocationReason
from certplane.broker.renewal.model import InForce, RenewalInfo, RenewalInfoError, RenewalPlan
from certplane.broker.renewal.planner import PATIENCE, RenewalPlanner
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.standing_rules import IncidentRollout, IncidentRules
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.fakes.renewal import FakeRenewalInfoSource, plan_on
from tests.support.memory_store import MemoryStores
from tests.support.stores import StoreHarness, StorePlace

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
LOOK = timedelta(seconds=30)
DOWN = RefusalError(Reason.STORE_UNAVAILABLE, "down")


class PlannerSetting:
    """A store with certificates, a CA or two, and a planner between them."""

    def __init__(self, *issuers: str) -> None:
        self.clock = ManualClock()
        self.stores = MemoryStores.open(self.clock)
        self.harness = StoreHarness(StorePlace("memory", None), self.clock, self.stores)  # type: ignore[arg-type]
        self.sources = {issuer: FakeRenewalInfoSource(self.window(60)) for issuer in issuers or ("acme",)}
        self.source = next(iter(self.sources.values()))
        self.policies = FakePolicySource(FakePolicy.of())
        self.meter = FakeMeter()
        self.told: list[str] = []
        self.plans = RenewalPlans(self.stores.renewal_plans)
        self.plans.subscribe(self.hear)
        self.numbers = itertools.count()

    def hear(self, plans: Sequence[RenewalPlan]) -> None:
        self.told += [plan.host for plan in plans]

    def window(self, day: float, **values: Any) -> RenewalInfo:
        start = self.clock.now() + day * DAY
        return RenewalInfo(start, start + DAY, **values)

    async def issue(self, **values: Any) -> CertificateRecord:
        record = await self.harness.issue(**values)
        # The fakes' certificates have one text for all; here each is asked about by its own.
        record = replace(record, certificate_pem=record.certificate_id)
        self.stores.database.put_certificate(record)
        self.plans.note_issued(record)
        return record

    @asynccontextmanager
    async def planning(self) -> AsyncIterator[None]:
        """The planner of a broker that has just started."""
        await self.plans.refresh()
        planner = RenewalPlanner(
            self.plans,
            self.sources,
            self.policies,
            clock=self.clock,
            rng=random.Random(7),
            trail=AuditTrail(self.clock, lambda: f"planned-{next(self.numbers)}"),
            meter=self.meter,
        )
        task = asyncio.create_task(plan_on(planner))
        try:
            await self.settle()
            yield
            assert not task.done(), "it goes on, whatever happens"
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def settle(self) -> None:
        for _ in range(400):
            await asyncio.sleep(0)

    async def pass_time(self, span: timedelta) -> None:
        """Let `span` go by, and then a look."""
        self.clock.advance(span)
        await self.settle()

    def plan(self, record: CertificateRecord) -> RenewalPlan:
        return self.stores.database.plans[record.certificate_id]

    def events(self) -> list[Any]:
        wanted = AuditEventType.RENEWAL_WINDOW_MOVED
        return [event for event in self.stores.database.events if event.event_type is wanted]

    def checks(self, result: str) -> int:
        return self.meter.total(metrics.RENEWAL_CHECKS, result=result)


async def test_a_certificate_is_asked_about_right_after_it_was_issued() -> None:
    """Not at the next look: its holder's first answer may have the CA's time already."""
    world = PlannerSetting()
    async with world.planning():
        record = await world.issue()
        await world.settle()
        assert world.source.asked == [record.certificate_id]
        assert world.plan(record).cause is RenewalCause.ISSUER
        assert world.plans.renew_time(record) == world.plan(record).renew_time
        assert world.told == [record.identity]
        assert world.checks("window") == 1
        assert world.events() == []


async def test_it_is_asked_again_when_the_ca_said() -> None:
    """Once, and not before."""
    world = PlannerSetting()
    world.source.answer = world.window(60, retry_after=3 * HOUR)
    async with world.planning():
        await world.issue()
        await world.settle()
        await world.pass_time(3 * HOUR - LOOK)
        assert len(world.source.asked) == 1
        await world.pass_time(HOUR)
        assert len(world.source.asked) == 2
        assert world.told == [world.stores.database.certificates["certificate-000001"].identity], "nothing new to tell"


async def test_what_is_brought_forward_is_kept_for_who_looks_for_many() -> None:
    """With its plan, as it was and as it is; a window that has not moved, or by some hours, isn't."""
    world = PlannerSetting()
    async with world.planning():
        record = await world.issue()
        await world.settle()
        due = world.plan(record).renew_time
        assert await world.stores.incidents.unassigned() == []
        world.source.answer = world.window(59.9)
        await world.pass_time(7 * HOUR)
        assert await world.stores.incidents.unassigned() == []
        world.source.answer = world.window(-2, explanation_url="https://ca.example/why")
        await world.pass_time(7 * HOUR)
        (move,) = await world.stores.incidents.unassigned()
        assert (move.certificate_id, move.host) == (record.certificate_id, record.identity)
        assert (move.move_time, move.explanation_url) == (world.clock.now(), "https://ca.example/why")
        assert abs(move.due_before - due) < 2 * DAY
        assert world.plan(record).renew_time == world.clock.now()


async def test_where_rollouts_answer_incidents_a_call_back_waits_for_one() -> None:
    """Ten minutes; by the policy of the moment."""
    world = PlannerSetting()
    async with world.planning():
        record = await world.issue()
        await world.settle()
        policy = world.policies.policy
        assert isinstance(policy, FakePolicy)
        rules = (policy.rules[0], IncidentRules(IncidentRollout.RINGS))
        world.policies.policy = replace(policy, rules=rules)
        world.source.answer = world.window(-2)
        await world.pass_time(7 * HOUR)
        assert world.plan(record).renew_time == world.clock.now() + PATIENCE


async def test_a_moved_window_is_audited_and_told() -> None:
    """With what was and what will be; an incident as a warning with the CA's explanation."""
    world = PlannerSetting()
    async with world.planning():
        record = await world.issue()
        await world.settle()
        first = world.plan(record)
        world.source.answer = world.window(30)
        await world.pass_time(7 * HOUR)
        (event,) = world.events()
        assert event.severity is AuditSeverity.INFO
        assert f"instead of {first.renew_time:%Y-%m-%dT%H:%M:%SZ}" in event.reason
        assert (event.certificate_id, event.identity) == (record.certificate_id, record.identity)
        world.source.answer = world.window(-2, explanation_url="https://ca.example/incident")
        await world.pass_time(7 * HOUR)
        _, event = world.events()
        assert event.severity is AuditSeverity.WARNING
        assert "explained at https://ca.example/incident" in event.reason
        assert world.plans.renew_time(record) == world.plan(record).renew_time == world.clock.now()
        assert len(world.told) == 3
        assert world.meter.total(metrics.RENEWAL_PLANS_MOVED, issuer="acme") == 2


async def test_a_restart_goes_on_with_what_is_stored() -> None:
    """The same moment, and no question before its time."""
    world = PlannerSetting()
    async with world.planning():
        record = await world.issue()
        await world.settle()
    before = world.plan(record)
    world.plans = RenewalPlans(world.stores.renewal_plans)
    assert world.plans.renew_time(record) == record.renew_time
    async with world.planning():
        await world.pass_time(HOUR)
        assert world.plans.renew_time(record) == before.renew_time
        assert len(world.source.asked) == 1
        await world.pass_time(6 * HOUR)
        assert len(world.source.asked) == 2
        assert world.plan(record).renew_time == before.renew_time


async def test_one_slow_ca_does_not_stop_another() -> None:
    """Nor more than a few of its own certificates."""
    world = PlannerSetting("acme", "second")
    gate = world.source.faults.hold("renewal_info")
    async with world.planning():
        slow = [await world.issue() for _ in range(10)]
        quick = [await world.issue(issuer="second") for _ in range(10)]
        await world.settle()
        assert len(world.source.asked) == world.source.most_at_once == 4
        assert all(world.plan(record).cause is RenewalCause.ISSUER for record in quick)
        gate.set()
        await world.settle()
        assert all(world.plan(record).cause is RenewalCause.ISSUER for record in slow)
        assert len(world.source.asked) == 10


async def test_a_great_many_are_asked_about_one_after_the_other() -> None:
    """A first start with an old store works through all of them, each once."""
    world = PlannerSetting()
    records = [await world.issue() for _ in range(150)]
    async with world.planning():
        for _ in range(5):
            await world.settle()
        assert sorted(world.source.asked) == sorted(record.certificate_id for record in records)
        assert world.source.most_at_once == 4


async def test_row_10_a_ca_that_is_down_leaves_the_lifetime_s_rule() -> None:
    """Fault row 10: it is asked with backoff, and the certificate keeps its own time until there is a window."""
    world = PlannerSetting()
    world.source.faults.fail_always("renewal_info", RenewalInfoError("no answer", temporary=True))
    async with world.planning():
        record = await world.issue()
        await world.settle()
        assert world.plan(record).renew_time == record.renew_time
        assert world.plan(record).cause is RenewalCause.LIFETIME
        for _ in range(24 * 12):
            await world.pass_time(timedelta(minutes=5))
        assert 8 <= len(world.source.asked) <= 12
        assert world.plans.renew_time(record) == record.renew_time
        world.source.faults.heal()
        await world.pass_time(7 * HOUR)
        assert world.plan(record).cause is RenewalCause.ISSUER


async def test_a_ca_that_asks_for_patience_is_left_alone() -> None:
    """Its other certificates wait too, and then are asked about."""
    world = PlannerSetting()
    world.source.faults.fail("renewal_info", RenewalInfoError("limit", temporary=True, retry_after=2 * HOUR))
    async with world.planning():
        await world.issue()
        await world.settle()
        other = await world.issue()
        await world.pass_time(HOUR)
        assert len(world.source.asked) == 1
        await world.pass_time(1.2 * HOUR)
        assert other.certificate_id in world.source.asked
        assert len(world.source.asked) == 3


async def test_what_an_operator_asks_for_meanwhile_is_kept() -> None:
    """The CA's answer is planned with what stands then."""
    world = PlannerSetting()
    gate = world.source.faults.hold("renewal_info")
    async with world.planning():
        record = await world.issue()
        await world.settle()
        wanted = RenewalPlan(
            record.certificate_id, record.identity, world.clock.now() + HOUR, RenewalCause.OPERATOR, "asked"
        )
        await world.plans.set_plans([wanted])
        gate.set()
        await world.settle()
        plan = world.plan(record)
        assert (plan.cause, plan.renew_time, plan.reason) == (RenewalCause.OPERATOR, wanted.renew_time, "asked")
        assert plan.window_start is not None
        assert len(world.source.asked) == 1


async def test_a_certificate_that_is_replaced_meanwhile_gets_no_plan() -> None:
    """Nor is it asked about again; so with one that is revoked."""
    world = PlannerSetting()
    gate = world.source.faults.hold("renewal_info")
    async with world.planning():
        old = await world.issue()
        await world.settle()
        await world.stores.renewal_plans.set_plans(
            [RenewalPlan(old.certificate_id, old.identity, old.renew_time, RenewalCause.LIFETIME)]
        )
        new = await world.issue(replaces_certificate_id=old.certificate_id)
        gate.set()
        await world.settle()
        assert old.certificate_id not in world.stores.database.plans
        await world.stores.certificates.mark_revoked(
            new.certificate_id, RevocationReason.SUPERSEDED, world.clock.now(), []
        )
        await world.pass_time(2 * DAY)
        assert world.source.asked == [old.certificate_id, new.certificate_id]
        assert world.stores.database.plans == {}, "plans of what is gone are dropped"


async def test_a_plan_that_cannot_be_stored_is_made_later() -> None:
    """Nobody is told of it, and the CA isn't asked all the time."""
    world = PlannerSetting()
    world.stores.database.faults.fail("replace_plan", DOWN)
    async with world.planning():
        record = await world.issue()
        await world.settle()
        assert world.told == []
        assert world.plans.renew_time(record) == record.renew_time
        await world.pass_time(LOOK)
        assert len(world.source.asked) == 1
        await world.pass_time(2 * LOOK)
        assert world.plan(record).cause is RenewalCause.ISSUER
        assert world.told == [record.identity]


async def test_a_store_that_is_down_is_waited_for() -> None:
    """The planner ends for nothing."""
    world = PlannerSetting()
    async with world.planning():
        world.stores.database.down = True
        await world.pass_time(2 * HOUR)
        world.stores.database.down = False
        record = await world.issue()
        await world.settle()
        assert world.plan(record).cause is RenewalCause.ISSUER


async def test_a_certificate_that_brings_out_a_fault_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """It is left out for a while, with a trace in the log, and then tried again."""
    world = PlannerSetting()
    world.source.faults.fail("renewal_info", ZeroDivisionError())
    async with world.planning():
        bad = await world.issue()
        await world.settle()
        good = await world.issue()
        await world.pass_time(LOOK)
        assert world.plan(good).cause is RenewalCause.ISSUER
        assert world.source.asked == [bad.certificate_id, good.certificate_id]
        assert "ZeroDivisionError" in caplog.text
        await world.pass_time(HOUR)
        assert world.plan(bad).cause is RenewalCause.ISSUER


async def test_the_policy_of_the_moment_bounds_the_plan() -> None:
    """A profile's renew_before, set after the certificate was issued."""
    world = PlannerSetting()
    async with world.planning():
        record = await world.issue()
        await world.settle()
        assert world.plan(record).renew_time > record.not_after - 40 * DAY
        profile = Profile("web", "mixed", record.dns_names, "h", renew_before=40 * DAY)
        world.policies.policy = FakePolicy.of(profiles=[profile])
        await world.pass_time(7 * HOUR)
        assert world.plan(record).renew_time == record.not_after - 40 * DAY
        assert len(world.told) == 2


async def test_plans_learnt_while_the_store_is_read_are_newer() -> None:
    """A refresh doesn't bring back what it began with."""
    world = PlannerSetting()
    record = await world.issue()
    gate = world.stores.database.faults.hold("renew_times")
    refresh = asyncio.create_task(world.plans.refresh())
    await world.settle()
    await world.plans.set_plans(
        [RenewalPlan(record.certificate_id, record.identity, world.clock.now(), RenewalCause.OPERATOR)]
    )
    world.stores.database.forget("renewal_plans")
    gate.set()
    await refresh
    assert world.plans.renew_time(record) == world.clock.now()


def test_an_unplanned_certificate_has_its_own_time() -> None:
    """And a plan's takes its place."""
    clock = ManualClock()
    certificate = InForce(
        "c", "web1", "web", "acme", ("a.test",), clock.now(), clock.now() + 90 * DAY, clock.now() + 60 * DAY
    )
    assert certificate.renew_time == clock.now() + 60 * DAY
    plan = RenewalPlan("c", "web1", clock.now(), RenewalCause.OPERATOR)
    assert replace(certificate, plan=plan).renew_time == clock.now()
