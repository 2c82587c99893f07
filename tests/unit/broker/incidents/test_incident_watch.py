"""From windows that CAs move to what is durable, measured and answered: looks, brokers that take over, faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from certplane.broker import metrics
from certplane.broker.events import AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.incidents.detect import TOGETHER
from certplane.broker.incidents.known import KnownIncidents
from certplane.broker.incidents.model import Incident
from certplane.broker.incidents.watch import IncidentWatch
from certplane.broker.incidents.words import remedy, trouble
from certplane.broker.model import CertificateRecord, RevocationReason
from certplane.broker.renewal.model import RenewalPlan, WindowMove
from certplane.broker.renewal.planner import PATIENCE
from certplane.broker.standing_rules import IncidentRollout, IncidentRules
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
from certplane.runtime.health import Severity
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.fakes.incidents import FakeRolloutStarter
from tests.support.memory_store import MemoryStores
from tests.support.stores import StoreHarness, StorePlace

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
DOWN = RefusalError(Reason.STORE_UNAVAILABLE, "down")
WHY = "https://ca.example/why"
DAY_OF_IT = f"acme-{ManualClock().now():%Y%m%d}"


class Fleet:
    """What of `FleetIndex` is looked at."""

    def __init__(self) -> None:
        self.hosts: dict[str, IndexedHost] = {}

    async def settled(self) -> None:
        pass

    def uses(self, host: str, record: CertificateRecord, **more: Any) -> None:
        values = {"serial_number": record.serial_number, "certificate_id": record.certificate_id, **more}
        one = IndexedCertificate("web", "web", dns_names=record.dns_names, **values)
        self.hosts[host] = IndexedHost(host, host, certificates=(one,))


class Night:
    """Hosts with a certificate each, their CA, and a broker that watches."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.stores = MemoryStores.open(self.clock)
        self.harness = StoreHarness(StorePlace("memory", None), self.clock, self.stores)  # type: ignore[arg-type]
        self.fleet = Fleet()
        self.rules = IncidentRules(at_least=3)
        self.rollouts = FakeRolloutStarter()
        self.numbers = count(1)
        self.begin()

    def begin(self) -> None:
        """Start a broker."""
        self.meter = FakeMeter()
        self.known = KnownIncidents(self.stores.incidents)
        self.watch = IncidentWatch(
            store=self.stores.incidents,
            index=self.fleet,  # type: ignore[arg-type]  # as much as is looked at
            known=self.known,
            rules=lambda: self.rules,
            rollouts=self.rollouts,
            keep=30 * DAY,
            clock=self.clock,
            meter=self.meter,
            trail=AuditTrail(self.clock, lambda: f"event-{next(self.numbers)}"),
        )

    async def issue(self, host: str, **values: Any) -> CertificateRecord:
        record = await self.harness.issue(identity=host, **values)
        self.fleet.uses(host, record)
        return record

    async def fleet_of(self, number: int) -> list[CertificateRecord]:
        return [await self.issue(f"web{n}") for n in range(number)]

    async def move(self, *records: CertificateRecord, ends: timedelta = -HOUR, **more: Any) -> None:
        """The CA brings their windows forward."""
        now = self.clock.now()
        for record in records:
            found = await self.stores.renewal_plans.find(record.certificate_id, now)
            assert found is not None
            plan = RenewalPlan(record.certificate_id, record.identity, now, RenewalCause.ISSUER, f"at {now} {ends}")
            end = now + ends
            one = WindowMove(
                record.certificate_id, record.identity, record.issuer, now, end - HOUR, end, record.renew_time, WHY
            )
            assert await self.stores.renewal_plans.replace_plan(found.plan, plan, move=replace(one, **more))
            self.watch.plans_changed([plan])

    async def replace(self, record: CertificateRecord, *, used: bool = True) -> CertificateRecord:
        """Its host renews it."""
        new = await self.harness.issue(identity=record.identity, replaces_certificate_id=record.certificate_id)
        if used:
            self.fleet.uses(record.identity, new)
        return new

    async def only(self) -> Incident:
        (incident,) = await self.stores.incidents.open_incidents()
        return incident

    @property
    def events(self) -> list[Any]:
        wanted = {AuditEventType.INCIDENT_OPENED, AuditEventType.INCIDENT_CLOSED}
        return [event for event in self.stores.database.events if event.event_type in wanted]

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.watch.run())
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
        self.clock.advance(span)
        await self.settle()


@pytest.fixture
def night() -> Night:
    return Night()


async def test_a_few_windows_are_no_incident(night: Night) -> None:
    """Nothing is written, audited or told."""
    records = await night.fleet_of(2)
    await night.move(*records)
    await night.watch.look()
    assert await night.stores.incidents.open_incidents() == []
    assert night.events == []
    assert night.known.open == []


async def test_many_are_one_with_all_that_is_to_be_seen(night: Night) -> None:
    """Its deadline, where it is explained, whose they are; audited, measured, and known to whoever tells people."""
    records = await night.fleet_of(4)
    await night.move(*records)
    await night.watch.look()
    incident = await night.only()
    figures = incident.figures
    assert (incident.incident_id, incident.issuer, incident.explanation_url) == (DAY_OF_IT, "acme", WHY)
    assert incident.deadline == records[0].not_after, "the CA's window is past"
    assert (figures.certificate_count, figures.holder_count, figures.open_count) == (4, 4, 4)
    assert figures.hosts == ("web0", "web1", "web2", "web3")
    (event,) = night.events
    assert (event.event_type, event.severity) == (AuditEventType.INCIDENT_OPENED, AuditSeverity.WARNING)
    assert (event.issuer_name, event.count, event.selection) == ("acme", 4, f"incident: {DAY_OF_IT}")
    assert WHY in event.reason
    assert night.known.open == [incident]
    assert night.meter.levels[metrics.INCIDENTS] == 1
    told = trouble(incident)
    assert (told.cause, told.severity, told.of_fleet) == (f"INCIDENT {DAY_OF_IT}", Severity.WARNING, True)
    assert "4 certificates of 4 holders" in told.text


async def test_a_certificate_that_is_replaced_at_once_counts(night: Night) -> None:
    """A host that is told renews within seconds, before anybody looks."""
    records = await night.fleet_of(3)
    await night.move(*records)
    for record in records[:2]:
        await night.replace(record)
    await night.watch.look()
    figures = (await night.only()).figures
    assert (figures.certificate_count, figures.in_use_count, figures.open_count) == (3, 2, 1)


async def test_it_grows_while_more_come(night: Night) -> None:
    """A CA's answers come in over hours; they are one incident, and one event."""
    records = await night.fleet_of(5)
    await night.move(*records[:3])
    await night.watch.look()
    night.clock.advance(5 * HOUR)
    await night.move(*records[3:])
    await night.watch.look()
    incident = await night.only()
    assert incident.figures.certificate_count == 5
    assert len(night.events) == 1


async def test_it_ends_when_all_are_replaced(night: Night) -> None:
    """On disk is not enough; then it is over, audited, and the next one of the day has another name."""
    records = await night.fleet_of(3)
    await night.move(*records)
    await night.watch.look()
    old = records[0]
    night.fleet.uses("web0", old, issued_serial_number=(await night.replace(old, used=False)).serial_number)
    for record in records[1:]:
        await night.replace(record)
    await night.watch.look()
    figures = (await night.only()).figures
    assert (figures.replaced_count, figures.in_use_count, figures.open_count) == (3, 2, 1)
    (new,) = [each for each in night.stores.database.certificates.values() if each.identity == "web0" and each != old]
    night.fleet.uses("web0", new)
    await night.watch.look()
    assert await night.stores.incidents.open_incidents() == []
    ended = await night.stores.incidents.get_incident(DAY_OF_IT)
    assert ended is not None
    assert (ended.close_time, ended.figures.in_use_count) == (night.clock.now(), 3)
    assert remedy(ended) == "nothing: it is over"
    *_, event = night.events
    assert (event.event_type, event.severity) == (AuditEventType.INCIDENT_CLOSED, AuditSeverity.INFO)
    assert night.known.open == []
    assert night.meter.levels[metrics.INCIDENTS] == 0
    await night.move(*[await night.issue(f"mail{n}") for n in range(3)])
    await night.watch.look()
    assert (await night.only()).incident_id == f"{DAY_OF_IT}-2"


async def test_a_drill_that_is_called_off_ends(night: Night) -> None:
    """The CA puts the windows off again: nothing is to be replaced."""
    records = await night.fleet_of(3)
    await night.move(*records)
    await night.watch.look()
    await night.replace(records[0])
    await night.move(*records[1:], ends=60 * DAY, forward=False)
    await night.watch.look()
    ended = await night.stores.incidents.get_incident(DAY_OF_IT)
    assert ended is not None
    assert (ended.close_time, ended.figures.withdrawn_count) == (night.clock.now(), 2)
    assert "2 put off again" in night.events[-1].reason


async def test_what_is_revoked_without_a_successor_hurts(night: Night) -> None:
    """Its host is named first, it is critical, and the incident isn't over before it is replaced."""
    records = await night.fleet_of(3)
    await night.move(*records)
    await night.watch.look()
    revoked = records[2]
    await night.stores.certificates.mark_revoked(
        revoked.certificate_id, RevocationReason.SUPERSEDED, night.clock.now(), []
    )
    for record in records[:2]:
        await night.replace(record)
    await night.watch.look()
    incident = await night.only()
    assert (incident.figures.hurt_count, incident.figures.hosts) == (1, ("web2",))
    assert trouble(incident).severity is Severity.CRITICAL
    assert "begin with web2" in remedy(incident)
    assert night.meter.tables[metrics.INCIDENT_CERTIFICATES]["acme", "hurt"] == 1
    await night.replace(revoked)
    await night.watch.look()
    assert night.known.open == []


async def test_a_host_that_never_comes_leaves_it_when_it_has_expired(night: Night) -> None:
    """An incident doesn't stay for good; that it hurt is said."""
    records = await night.fleet_of(3)
    await night.move(*records)
    await night.watch.look()
    for record in records[:2]:
        await night.replace(record)
    night.clock.advance(90 * DAY)
    await night.watch.look()
    ended = await night.stores.incidents.get_incident(DAY_OF_IT)
    assert ended is not None
    assert ended.figures.hurt_count == 1
    assert night.events[-1].severity is AuditSeverity.WARNING


async def test_its_ca_is_asked_about_all_at_once(night: Night) -> None:
    """Else what it did to the others would be heard of over the six hours to their next questions."""
    records = await night.fleet_of(3)
    quiet = await night.issue("web9")
    check = night.clock.now() + 6 * HOUR
    plan = RenewalPlan(quiet.certificate_id, "web9", check, RenewalCause.ISSUER, next_check_time=check)
    await night.stores.renewal_plans.set_plans([plan])
    await night.move(*records)
    await night.watch.look()
    now = night.clock.now()
    due = await night.stores.renewal_plans.to_check("acme", now, 10)
    assert quiet.certificate_id in {each.certificate.certificate_id for each in due}
    await night.stores.renewal_plans.set_plans([plan])
    await night.watch.look()
    due = await night.stores.renewal_plans.to_check("acme", now, 10)
    assert quiet.certificate_id not in {each.certificate.certificate_id for each in due}, "once an incident"


async def test_a_rollout_answers_where_policy_says_so(night: Night) -> None:
    """Of all that is still to be replaced, once no more come; those that come later have another one."""
    night.rules = replace(night.rules, rollout=IncidentRollout.RINGS)
    records = await night.fleet_of(6)
    await night.move(*records[:4])
    await night.replace(records[0])
    await night.watch.look()
    assert night.rollouts.started == {}
    night.clock.advance(MINUTE)
    await night.watch.look()
    first = f"{DAY_OF_IT}.1"
    assert night.rollouts.started == {first: tuple(each.certificate_id for each in records[1:4])}
    incident = await night.only()
    assert (incident.rollout_id, incident.rollout_count) == (f"rollout of {first}", 1)
    assert incident.rollout_id in remedy(incident)
    await night.move(*records[4:])
    night.clock.advance(MINUTE)
    await night.watch.look()
    assert night.rollouts.started[f"{DAY_OF_IT}.2"] == tuple(each.certificate_id for each in records[4:])
    assert (await night.only()).rollout_count == 2
    night.clock.advance(HOUR)
    await night.watch.look()
    assert len(night.rollouts.started) == 2, "each has been given to one"


async def test_certificates_that_come_on_and_on_do_not_wait_too_long(night: Night) -> None:
    """Their hosts renew by themselves after ten minutes: the rollout begins before."""
    night.rules = replace(night.rules, rollout=IncidentRollout.RINGS)
    for record in await night.fleet_of(12):
        await night.move(record)
        await night.watch.look()
        night.clock.advance(timedelta(seconds=45))
    (started,) = night.rollouts.started.values()
    assert 6 <= len(started) <= 9
    assert timedelta(seconds=45) * len(started) < PATIENCE - 2 * MINUTE


async def test_a_clock_that_is_set_back_holds_no_rollout_up(night: Night) -> None:
    """What was heard of in the future has waited long enough."""
    night.rules = replace(night.rules, rollout=IncidentRollout.RINGS)
    await night.move(*await night.fleet_of(3), move_time=night.clock.now() + DAY)
    await night.watch.look()
    assert len(night.rollouts.started) == 1


async def test_without_the_rule_hosts_renew_at_the_planner_s_pace(night: Night) -> None:
    """And whoever looks is told so."""
    await night.move(*await night.fleet_of(3))
    await night.watch.look()
    assert night.rollouts.started == {}
    assert "each host renews by itself" in remedy(await night.only())


async def test_a_rollout_that_can_not_begin_is_said_and_tried_again(night: Night) -> None:
    """Rings that leave hosts out, say: hosts renew as without it, and it is tried a minute later."""
    night.rules = replace(night.rules, rollout=IncidentRollout.RINGS)
    night.rollouts.fault = RefusalError(Reason.REQUEST_INVALID, "rings leave out web2: add a ring `rest`")
    await night.move(*await night.fleet_of(3))
    await night.watch.look()
    night.clock.advance(MINUTE)
    await night.watch.look()
    incident = await night.only()
    assert "rings leave out web2: add a ring `rest`" in incident.trouble
    assert incident.trouble in remedy(incident)
    assert trouble(incident).severity is Severity.CRITICAL
    night.rollouts.fault = None
    await night.watch.look()
    assert night.rollouts.started == {}
    night.clock.advance(timedelta(minutes=1))
    await night.watch.look()
    incident = await night.only()
    assert (incident.rollout_count, incident.trouble) == (1, "")


async def test_a_broker_killed_before_it_noted_the_rollout_begins_no_second_one(night: Night) -> None:
    """The request has the same id, so it is the same rollout."""
    night.rules = replace(night.rules, rollout=IncidentRollout.RINGS)
    await night.move(*await night.fleet_of(3))
    await night.watch.look()
    night.clock.advance(MINUTE)
    night.stores.database.faults.fail("give", DOWN)
    with pytest.raises(RefusalError):
        await night.watch.look()
    assert (await night.only()).rollout_id == ""
    night.begin()
    await night.watch.look()
    assert list(night.rollouts.started) == [f"{DAY_OF_IT}.1"]
    assert (await night.only()).rollout_id == f"rollout of {DAY_OF_IT}.1"


async def test_what_comes_after_such_a_kill_is_in_the_next_rollout(night: Night) -> None:
    """Not in the first one, which was begun without it: its host would renew in no ring."""
    night.rules = replace(night.rules, rollout=IncidentRollout.RINGS)
    records = await night.fleet_of(4)
    await night.move(*records[:3])
    await night.watch.look()
    night.clock.advance(MINUTE)
    night.stores.database.faults.fail("give", DOWN)
    with pytest.raises(RefusalError):
        await night.watch.look()
    await night.move(records[3])
    night.begin()
    for _ in range(3):
        night.clock.advance(MINUTE)
        await night.watch.look()
    assert night.rollouts.started == {
        f"{DAY_OF_IT}.1": tuple(each.certificate_id for each in records[:3]),
        f"{DAY_OF_IT}.2": (records[3].certificate_id,),
    }


async def test_what_an_operator_s_rollout_has_stays_there(night: Night) -> None:
    """Halted, with new keys, to be revoked: a newer one would take it over. The incident names it."""
    night.rules = replace(night.rules, rollout=IncidentRollout.RINGS)
    records = await night.fleet_of(4)
    night.rollouts.others = {each.certificate_id: "r-mine" for each in records[:3]}
    await night.move(*records[:3])
    await night.watch.look()
    night.clock.advance(MINUTE)
    await night.watch.look()
    incident = await night.only()
    assert (night.rollouts.started, incident.rollout_id, incident.rollout_count) == ({}, "r-mine", 0)
    assert "rollout watch r-mine" in remedy(incident)
    await night.move(records[3])
    night.clock.advance(MINUTE)
    await night.watch.look()
    assert night.rollouts.started == {f"{DAY_OF_IT}.1": (records[3].certificate_id,)}


@pytest.mark.parametrize("how", ["the policy wants none", "its hosts have renewed by themselves"])
async def test_why_no_rollout_began_is_said_while_one_is_wanted(night: Night, how: str) -> None:
    """Then it is critical no more."""
    night.rules = replace(night.rules, rollout=IncidentRollout.RINGS)
    night.rollouts.fault = RefusalError(Reason.REQUEST_INVALID, "no")
    records = await night.fleet_of(3)
    await night.move(*records)
    night.clock.advance(MINUTE)
    await night.watch.look()
    assert (await night.only()).trouble == "REQUEST_INVALID: no"
    if how == "the policy wants none":
        night.rules = replace(night.rules, rollout=IncidentRollout.NONE)
    else:
        for record in records:
            await night.replace(record, used=False)
    await night.watch.look()
    incident = await night.only()
    assert (incident.trouble, trouble(incident).severity) == ("", Severity.WARNING)


async def test_two_brokers_that_look_at_once_make_one(night: Night) -> None:
    """For a second both may have the role."""
    await night.move(*await night.fleet_of(3))
    first = night.watch
    night.begin()
    await asyncio.gather(first.look(), night.watch.look())
    incident = await night.only()
    assert incident.figures.certificate_count == 3
    assert len(night.events) == 1


async def test_it_looks_when_a_plan_changes_and_while_one_is_open(night: Night) -> None:
    """Nothing is read in a quiet night; an outage of the database is waited out."""
    records = await night.fleet_of(3)
    async with night.watching():
        reads = night.stores.database.faults.count("unassigned")
        await night.pass_time(timedelta(minutes=30))
        await night.pass_time(timedelta(minutes=20))
        assert night.stores.database.faults.count("unassigned") == reads
        night.stores.database.faults.fail("open_incidents", DOWN)
        await night.move(*records)
        await night.pass_time(timedelta(seconds=2))
        await night.pass_time(timedelta(seconds=2))
        await night.pass_time(timedelta(seconds=15))
        assert (await night.only()).figures.open_count == 3
        for record in records:
            await night.replace(record)
        await night.pass_time(timedelta(seconds=2))
        await night.pass_time(timedelta(seconds=15))
        assert night.known.open == []


async def test_another_broker_hears_of_it(night: Night) -> None:
    """Through the change feed, or by reading all."""
    await night.move(*await night.fleet_of(3))
    await night.watch.look()
    known = KnownIncidents(night.stores.incidents)
    await known.reread(night.clock.now())
    assert [each.incident_id for each in known.open] == [DAY_OF_IT]
    await known.changed([DAY_OF_IT])
    assert [each.incident_id for each in known.open] == [DAY_OF_IT]


async def test_what_is_old_is_dropped(night: Night) -> None:
    """A window of no incident after two days; that of an incident stays with it."""
    records = await night.fleet_of(5)
    await night.move(*records[:2])
    await night.watch.look()
    night.clock.advance(2 * TOGETHER + HOUR)
    await night.watch.look()
    assert await night.stores.incidents.unassigned() == []
