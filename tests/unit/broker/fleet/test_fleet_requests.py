"""Renewals that an operator asks for: their times, and that asking again changes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from certplane.broker.events import AuditEventType, AuditTrail
from certplane.broker.fleet.knowledge import unknown_identity_plan, unknown_plans
from certplane.broker.fleet.model import HostRecord, HostStream
from certplane.broker.fleet.requests import RenewalRequest, RenewalRequests, spread_renewals
from certplane.broker.model import IdentityKind
from certplane.broker.renewal.model import HeldUp, RenewalPlan, Selection
from certplane.broker.renewal.plans import RenewalPlans
from certplane.fleet_report.model import (
    CertificateState,
    CertificateStatus,
    HeldCertificate,
    HostFacts,
    RenewalCause,
    Report,
)
from tests.fakes.clock import ManualClock
from tests.support.callers import caller
from tests.support.memory_store import MemoryStores
from tests.support.stores import StoreHarness, StorePlace

OPERATOR = caller(name="admin.example", kind=IdentityKind.OPERATOR)
HOUR = timedelta(hours=1)


class Desk:
    """Requests over fakes."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.stores = MemoryStores.open(self.clock)
        self.harness = StoreHarness(StorePlace("memory", None), self.clock, self.stores)  # type: ignore[arg-type]  # no path
        self.told: list[RenewalPlan] = []
        self.plans = RenewalPlans(self.stores.renewal_plans)
        self.plans.subscribe(self.told.extend)
        numbers = count()
        self.why_none: dict[str, str] = {}
        self.requests = RenewalRequests(
            self.plans,
            self.stores.fleet,
            self.clock,
            AuditTrail(self.clock, lambda: f"event-{next(numbers)}"),
            why_none=lambda host: self.why_none.get(host, ""),
        )

    async def issue(self, number: int) -> None:
        names = (f"www{number}.example.org",)
        await self.harness.issue(identity=f"web{number}.example", dns_names=names)


@pytest.fixture
async def desk() -> Desk:
    made = Desk()
    for number in range(4):
        await made.issue(number)
    return made


def order(**changes: object) -> RenewalRequest:
    values = {"selection": Selection(all=True), "reason": "drill", "request_id": "r-1", "chosen_id": True}
    return RenewalRequest(**{**values, **changes})  # type: ignore[arg-type]  # each test names its own


async def test_renewals_are_spread_evenly_and_told(desk: Desk) -> None:
    """From now on, over the time that was asked for; durable, audited once, and the hosts are told."""
    requested, hosts = await desk.requests.request(OPERATOR, order(spread=HOUR))
    assert (requested.certificate_count, requested.changed_count) == (4, 4)
    assert requested.last_renew_time == desk.clock.now() + HOUR * 3 / 4
    assert hosts == {f"web{number}.example" for number in range(4)}
    assert sorted(plan.renew_time - desk.clock.now() for plan in desk.told) == [HOUR * n / 4 for n in range(4)]
    assert {(plan.cause, plan.reason, plan.renewal_request_id) for plan in desk.told} == {
        (RenewalCause.OPERATOR, "drill", "r-1")
    }
    (event,) = desk.stores.database.events
    assert (event.event_type, event.identity, event.count) == (AuditEventType.RENEWAL_REQUESTED, "admin.example", 4)
    assert event.reason == "4 of 4 certificates, spread over 1:00:00: drill"


async def test_asked_again_it_changes_nothing(desk: Desk) -> None:
    """The answer is the first one's, also after all of them were renewed."""
    first, _ = await desk.requests.request(OPERATOR, order())
    desk.clock.advance(HOUR)
    await desk.issue(9)
    again, _ = await desk.requests.request(OPERATOR, order())
    assert again == first
    assert len(desk.told) == 4
    another, _ = await desk.requests.request(caller(name="other.example"), order())
    assert another.certificate_count == 5


async def test_asked_twice_at_once_it_is_one_request(desk: Desk) -> None:
    """Both have the same answer; nobody is told twice, and it is audited once."""
    (first, hosts), (second, others) = await asyncio.gather(
        *(desk.requests.request(OPERATOR, order(spread=HOUR * number)) for number in (1, 2))
    )
    assert first == second
    assert len(hosts) + len(others) == 4
    assert len(desk.told) == 4
    assert len(desk.stores.database.events) == 1


async def test_asked_again_when_its_record_is_gone(desk: Desk) -> None:
    """Removed for its age, or never made by an older broker that was killed: what was planned keeps its time."""
    await desk.requests.request(OPERATOR, order(spread=HOUR))
    desk.stores.database.forget("renewal_requests")
    desk.clock.advance(timedelta(minutes=1))
    again, _ = await desk.requests.request(OPERATOR, order(spread=HOUR))
    assert again.changed_count == 0
    assert len(desk.told) == 4


async def test_a_dry_run_does_nothing(desk: Desk) -> None:
    """It says what would be."""
    requested, _ = await desk.requests.request(OPERATOR, order(dry_run=True))
    assert requested.changed_count == 4
    assert (desk.told, desk.stores.database.events, desk.stores.database.request_count) == ([], [], 0)


async def test_what_is_due_earlier_keeps_its_time(desk: Desk) -> None:
    """It takes no place in the spread either."""
    picked = await desk.plans.select(Selection(all=True), desk.clock.now())
    soon = desk.clock.now() + timedelta(minutes=1)
    early = RenewalPlan(picked[0].certificate_id, picked[0].host, soon, RenewalCause.ISSUER)
    past = RenewalPlan(picked[1].certificate_id, picked[1].host, desk.clock.now() - HOUR, RenewalCause.REVOKED)
    await desk.plans.set_plans([early, past])
    picked = await desk.plans.select(Selection(all=True), desk.clock.now())
    spread = spread_renewals(picked, 3, 3 * HOUR, desk.clock.now(), reason="x", request_id="r-2")
    plans = [plan for plan in spread if plan is not None]
    assert past.certificate_id not in {plan.certificate_id for plan in plans}
    times = {plan.certificate_id: plan.renew_time for plan in plans}
    assert times.get(early.certificate_id, soon) <= soon
    assert max(times.values()) == desk.clock.now() + 2 * HOUR


async def test_an_empty_selection_picks_nothing(desk: Desk) -> None:
    """Nobody renews a fleet by leaving something out."""
    requested, hosts = await desk.requests.request(OPERATOR, order(selection=Selection()))
    assert (requested.certificate_count, requested.last_renew_time, hosts) == (0, None, frozenset())


async def report(desk: Desk, number: int, *, again: timedelta, failures: int = 3) -> None:
    """The host has its certificate, and waits after a failure."""
    (certificate,) = await desk.plans.in_force(f"web{number}.example", desk.clock.now())
    now = desk.clock.now()
    status = CertificateStatus(
        "web",
        CertificateState.FAILED,
        installed=HeldCertificate("1", certificate_id=certificate.certificate_id),
        renew_time=certificate.renew_time,
        last_error="RATE_LIMITED: the broker's limit is reached",
        request_failures=failures,
        next_attempt_time=now + again,
        update_time=now,
    )
    host = f"web{number}.example"
    stream = HostStream(host, HostFacts("1"), "a1", now + HOUR, "192.0.2.1", now, now)
    await desk.stores.fleet.record_reports(host, "e", [Report(1, status)], names=["web"], stream=stream)


async def due(desk: Desk, number: int) -> str:
    (certificate,) = await desk.plans.in_force(f"web{number}.example", desk.clock.now())
    past = RenewalPlan(certificate.certificate_id, certificate.host, desk.clock.now() - HOUR, RenewalCause.OPERATOR)
    await desk.plans.set_plans([past])
    return certificate.certificate_id


async def test_a_host_that_waits_with_what_is_due_is_told_to_try_now(desk: Desk) -> None:
    """It isn't "due earlier anyway": the answer says until when it waited and why, and the host hears of the request."""
    waiting, trying = await due(desk, 0), await due(desk, 1)
    await report(desk, 0, again=23 * HOUR)
    await report(desk, 1, again=-HOUR)
    desk.told.clear()

    requested, hosts = await desk.requests.request(
        OPERATOR, order(selection=Selection(hosts=("web0.example", "web1.example")))
    )

    assert (requested.certificate_count, requested.changed_count) == (2, 1)
    assert [(plan.certificate_id, plan.renew_time, plan.renewal_request_id) for plan in desk.told] == [
        (waiting, desk.clock.now(), "r-1")
    ]
    assert hosts == {"web0.example"}
    assert trying not in {one.certificate_id for one in requested.held_up}
    assert requested.held_up == (
        HeldUp(
            "web0.example",
            waiting,
            "RATE_LIMITED: the broker's limit is reached",
            "web",
            desk.clock.now() + 23 * HOUR,
        ),
    )


async def test_who_gets_no_certificate_before_a_person_has_acted_is_named(desk: Desk) -> None:
    """The renewal is ordered all the same, and the answer doesn't promise it."""
    desk.why_none["web2.example"] = "two holders use its identity"
    requested, _ = await desk.requests.request(OPERATOR, order())
    assert requested.changed_count == 4
    assert [(one.host, one.reason, one.next_attempt_time) for one in requested.held_up] == [
        ("web2.example", "two holders use its identity", None)
    ]
    assert requested.held_up_count == 1


@pytest.mark.parametrize(
    ("cause", "failed", "told"),
    [
        pytest.param(RenewalCause.OPERATOR, -HOUR, True, id="asked for since it failed"),
        pytest.param(RenewalCause.OPERATOR, HOUR, False, id="it has failed again since"),
        pytest.param(RenewalCause.LIFETIME, -HOUR, False, id="nobody has asked"),
    ],
)
async def test_a_host_that_comes_back_hears_what_was_asked_for_while_it_waited(
    desk: Desk, cause: RenewalCause, failed: timedelta, told: bool
) -> None:
    """Though it means to renew that certificate already: the wait is what it should give up."""
    (certificate,) = await desk.plans.in_force("web0.example", desk.clock.now())
    now = desk.clock.now()
    plan = RenewalPlan(certificate.certificate_id, certificate.host, now, cause)
    status = CertificateStatus(
        "web",
        CertificateState.FAILED,
        installed=HeldCertificate("1", certificate_id=certificate.certificate_id),
        renew_time=now - 2 * HOUR,
        request_failures=1,
        next_attempt_time=now + 20 * HOUR,
        update_time=now + failed,
    )
    assert bool(unknown_plans([replace(certificate, plan=plan)], [status])) is told


async def test_identities_are_asked_for(desk: Desk) -> None:
    """Each host's at its place in the spread, whatever certificates it has; those that can't be told are named."""
    now = desk.clock.now()
    able = HostFacts("0.2.0", features=("identity",))
    for name, facts in (("a.example", able), ("b.example", able), ("c.example", HostFacts("0.1.0"))):
        stream = HostStream(name, facts, f"{name[0]}1", now, "192.0.2.1", now, now, now)
        await desk.stores.fleet.record_stream(stream)
    desk.why_none["b.example"] = "an operator has denied its identity"
    wanted: list[str] = []
    desk.plans.subscribe_identities(wanted.extend)
    requested, hosts = await desk.requests.request(
        OPERATOR, order(selection=Selection(all=True, identities=True), spread=HOUR)
    )
    assert (requested.certificate_count, requested.changed_count) == (3, 3)
    assert requested.last_renew_time == now + HOUR * 2 / 3
    assert [(each.host, each.name) for each in requested.held_up] == [
        ("b.example", "identity"),
        ("c.example", "identity"),
    ]
    assert sorted(wanted) == sorted(hosts) == ["a.example", "b.example", "c.example"]
    found = await desk.stores.renewal_plans.identity_renewals(["a.example", "c.example"])
    assert [(serial, plan.renew_time - now) for serial, plan in found] == [("a1", HOUR * 0), ("c1", HOUR * 2 / 3)]
    (event,) = desk.stores.database.events
    assert event.reason == "3 of 3 identities, spread over 1:00:00: drill"
    again, others = await desk.requests.request(
        OPERATOR, order(selection=Selection(hosts=("a.example", "typo"), identities=True), request_id="r-2")
    )
    assert (again.certificate_count, others) == (1, {"a.example"})


async def test_an_identity_that_is_due_earlier_keeps_its_time(desk: Desk) -> None:
    """Its host renews it before its place in the spread comes."""
    now, able = desk.clock.now(), HostFacts("0.2.0", features=("identity",))
    for number, name in enumerate(("a.example", "b.example")):
        stream = HostStream(name, able, "a1", now, "192.0.2.1", now, now, now)
        own = CertificateStatus(
            "identity", CertificateState.WAITING, issued=HELD, renew_time=now + HOUR * (9 - 8 * number)
        )
        await desk.stores.fleet.record_reports(name, "e", [Report(1, own)], stream=stream)
    wanted = order(selection=Selection(all=True, identities=True), spread=4 * HOUR)
    requested, hosts = await desk.requests.request(OPERATOR, wanted)
    assert (requested.certificate_count, requested.changed_count, hosts) == (2, 1, {"a.example"})
    assert requested.last_renew_time == now
    recorded = await desk.plans.get_request("r-1", "")
    assert recorded is not None
    items = [each.item for each in await desk.plans.follow_items(recorded, 0, 9)]
    assert [(item.planned, item.renew_time - now) for item in items] == [(True, HOUR * 0), (False, HOUR)]


NOW = ManualClock().now()
WANTED = ("a1", RenewalPlan("", "a.example", NOW, RenewalCause.OPERATOR, "drill", renewal_request_id="r-1"))
HELD = HeldCertificate("a1")


@pytest.mark.parametrize(
    ("status", "features", "told"),
    [
        pytest.param(None, ("identity",), True, id="has-said-nothing-of-it"),
        pytest.param({"renew_time": NOW + HOUR}, ("identity",), True, id="means-to-renew-later"),
        pytest.param({"renew_time": NOW}, ("identity",), False, id="knows"),
        pytest.param({"renew_time": NOW + HOUR}, (), False, id="its-agent-is-older"),
        pytest.param({"issued": HeldCertificate("a2")}, ("identity",), False, id="has-the-next-one"),
        pytest.param(
            {
                "renew_time": NOW - HOUR,
                "request_failures": 1,
                "update_time": NOW - HOUR,
                "next_attempt_time": NOW + HOUR,
            },
            ("identity",),
            True,
            id="waits-after-a-failure",
        ),
    ],
)
def test_who_is_told_of_its_identity(status: dict[str, Any] | None, features: tuple[str, ...], *, told: bool) -> None:
    """By what its host has reported alone, after any restart."""
    stream = HostStream("a.example", HostFacts("0.2.0", features=features), "a1", NOW, "192.0.2.1", NOW, NOW, NOW)
    fields = {"issued": HELD, "installed": HELD, **(status or {})}
    statuses = () if status is None else (CertificateStatus("identity", CertificateState.WAITING, **fields),)
    found = unknown_identity_plan(WANTED, HostRecord("a.example", stream, statuses))
    assert found == (WANTED[1] if told else None)
