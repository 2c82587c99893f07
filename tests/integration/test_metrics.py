"""Every metric is seen to move by what its row in docs/monitoring.md says that it tells of: none is declared in vain."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import random
import signal
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.app import open_broker
from certplane.broker.audit.fallback import SpillFallback
from certplane.broker.budget.model import IssuerLimits, Limit, LimitScope
from certplane.broker.budget.overview import IssuerView, LimitView
from certplane.broker.events import AuditEvent, AuditEventType, AuditTrail
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.incidents.known import KnownIncidents
from certplane.broker.incidents.watch import IncidentWatch
from certplane.broker.issuance.budget import BudgetWatch
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.issuing import messages
from certplane.broker.issuing.child import ChildEndedError
from certplane.broker.issuing.measured import MeasuredCalls
from certplane.broker.issuing.remote import Calls, RemoteIssuer, RemoteRenewalInfo, RemoteSolver
from certplane.broker.issuing.supervision import Bounds, IssuingProcess
from certplane.broker.members.drift import DriftWatch
from certplane.broker.members.membership import Membership
from certplane.broker.members.model import Member
from certplane.broker.members.ports import LastingLease
from certplane.broker.members.roles import Roles, SoleRoleStore
from certplane.broker.metrics import Metric
from certplane.broker.model import Grant, IdentityKind, Profile, RevocationReason
from certplane.broker.notify.delivery import Delivery
from certplane.broker.notify.model import Message, MessageKind
from certplane.broker.notify.ports import Records
from certplane.broker.ports import DurableLimits, PruneBefore, Soundness, Upkeep
from certplane.broker.prepared import prepare
from certplane.broker.proof.sealing import Sealing
from certplane.broker.renewal.model import RenewalInfo, RenewalInfoUnsupportedError, RenewalPlan, WindowMove
from certplane.broker.renewal.planner import RenewalPlanner
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.retention import Retention
from certplane.broker.rollouts.figures import SHOWN as SHOWN_OF_ROLLOUTS
from certplane.broker.rollouts.model import Revoke
from certplane.broker.settings import load_settings
from certplane.broker.sinks.forwarding import Forwarding
from certplane.broker.sinks.gate import SinkGate
from certplane.broker.sinks.ports import SinkError
from certplane.broker.soundness import SoundnessWatch
from certplane.broker.standing_rules import IncidentRules
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import channel_credentials
from certplane.runtime.pool import BlockingPool
from certplane.v1 import enrollment_pb2, enrollment_pb2_grpc, renewal_pb2, renewal_pb2_grpc
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.fakes.issuer import FakeCa, FakeIssuer
from tests.fakes.notify import FakeNotifier
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.fakes.renewal import FakeRenewalInfoSource, plan_on
from tests.fakes.sinks import FakeSink
from tests.support.broker_files import BrokerFiles
from tests.support.ca import Leaf
from tests.support.edge import HOST, OPERATOR, SERVICE, ShiftedClock, serve_edge
from tests.support.fleet_index import IndexWorld
from tests.support.issuance import NO_WAIT, World, caller, issue, kill_all, lose_order, settle, unavailable
from tests.support.memory_store import MemoryStores
from tests.support.rollout_world import RolloutWorld
from tests.support.service_watch import watching
from tests.support.stores import StoreHarness, StorePlace
from tests.support.streams import HostStreamClient
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.integration

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


async def order(world: World, name: str = "one") -> None:
    authority = await world.started()
    await authority.issue(caller(), issue(name, wait=NO_WAIT))
    await world.run_on(timedelta(seconds=2), turns=400)


async def an_order(_folder: Path) -> Collection[Metric]:
    """A certificate is ordered, delivered and revoked."""
    world = World()
    authority = await world.started()
    result = await authority.issue(caller(), issue())
    assert result.certificate is not None
    await authority.revoke(caller(), "r", result.certificate.certificate_id, RevocationReason.SUPERSEDED)
    profile = Profile("web", "multi_san", result.certificate.dns_names, "h")
    limits = DurableLimits(certificates_per_name_set_per_week=4)
    views: list[IssuerView] = []

    async def overview() -> list[IssuerView]:
        return views

    budget = BudgetWatch(
        world.stores.order_listing, lambda: [profile], lambda: limits, overview, clock=world.clock, meter=world.meter
    )
    places = LimitView(Limit("orders", LimitScope.ACCOUNT, 300, timedelta(hours=3)))
    of_ca = IssuerLimits("ca", "https://ca.test", "configuration", (places.limit,))
    in_an_hour = world.clock.now() + timedelta(hours=1)
    views = [IssuerView(of_ca, [places], 2, in_an_hour), IssuerView(replace(of_ca, issuer="other"), [], 1, None, 1)]
    await budget.look()
    assert world.meter.tables[metrics.BUDGET_LEFT] == {("ca", "orders"): 300}
    assert world.meter.tables[metrics.BUDGET_PLACES] == {("ca", "orders"): 300}
    assert world.meter.tables[metrics.BUDGET_WAITING] == {("ca",): 2, ("other",): 1}
    assert world.meter.tables[metrics.BUDGET_WAIT] == {("ca",): 3600, ("other",): math.inf}
    await budget.count()
    assert world.meter.tables[metrics.CERTIFICATES_LEFT] == {("web",): 3}
    other = replace(profile, dns_names=("other.example.org",))
    issued = [other, profile, replace(profile, name="fresh", dns_names=("fresh.example.org",))]
    of_hosts = BudgetWatch(
        world.stores.order_listing, lambda: issued, lambda: limits, overview, clock=world.clock, meter=world.meter
    )
    issued += [replace(profile, name="many", dns_names=(f"h{number}.example.org",)) for number in range(501)]
    await of_hosts.count()  # of names that differ from host to host, those that have least left; of very many none
    assert world.meter.tables[metrics.CERTIFICATES_LEFT] == {("web",): 3, ("fresh",): 4}
    limits = DurableLimits()
    await budget.count()
    assert world.meter.tables[metrics.CERTIFICATES_LEFT] == {}
    return world.meter.moved


async def a_member(_folder: Path) -> Collection[Metric]:
    """A broker joins one that has another policy, and a clock that the database's isn't."""
    clock, meter, stores = ManualClock(), FakeMeter(), MemoryStores.open(ShiftedClock())
    me = Member("", "machine", "[::]:8443", "1", clock.now(), "policy", "trust", "configuration")
    await MemoryStores.over(stores.database).members.renew(replace(me, policy_hash="another"), timedelta(minutes=1))
    membership = Membership(stores.members, lambda: me, clock, meter)
    DriftWatch(membership.known, meter, clock)
    await membership.join()
    await membership.known.read()
    return meter.moved


async def an_issuer_out_of_reach(_folder: Path) -> Collection[Metric]:
    """The order goes on at another one."""
    world = World()
    world.others.append(FakeIssuer(FakeCa(world.clock, world.dns), name="second", directory="https://second.test/dir"))
    world.change_profile(issuers=("fake-ca", "second"))
    world.issuer.faults.fail_always("create_order", unavailable())
    await order(world)
    return world.meter.moved


async def an_order_lost_by_its_ca(_folder: Path) -> Collection[Metric]:
    """It is given up, and another one made."""
    world = World()
    await lose_order(world)
    return world.meter.moved


async def a_store_and_a_dns_in_trouble(_folder: Path) -> Collection[Metric]:
    """The journal is written again, a name server is silent, records stay."""
    world = World()
    world.database.faults.fail("change_order", unavailable(Reason.STORE_UNAVAILABLE))
    world.solver.silent = ("ns2.test can't be asked",)
    world.solver.faults.fail_always("remove", unavailable(Reason.DNS_UNAVAILABLE))
    await order(world)
    return world.meter.moved


class Answers(Calls):
    """An issuing process that has one answer."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    @override
    async def ask(self, call: messages.Call[Any], tell: Callable[[str], object] | None = None) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


async def calls_of_the_issuing_process(_folder: Path) -> Collection[Metric]:
    """A CA and the DNS are asked; they answer, refuse, and their process ends."""
    clock, meter = ManualClock(), FakeMeter()
    calls = MeasuredCalls(answers := Answers(()), clock, meter)
    await RemoteSolver(calls, clock).present([], HOUR)
    answers.answer = ChildEndedError("killed")
    with pytest.raises(RefusalError):
        await RemoteSolver(calls, clock).present([], HOUR)
    answers.answer = unavailable()
    with pytest.raises(RefusalError):
        await RemoteIssuer(calls, "ca", "https://ca.test/dir").get_order("https://ca.test/1", HOUR)
    answers.answer = RenewalInfoUnsupportedError("no renewalInfo")
    with pytest.raises(RenewalInfoUnsupportedError):
        await RemoteRenewalInfo(calls, "ca").renewal_info("", HOUR)
    assert [tuple(value for _, value in labels) for metric, labels in meter.timed if metric is metrics.DNS_CALLS] == [
        ("present", "ok"), ("present", "cut_off"),
    ]  # fmt: skip
    assert [dict(labels) for metric, labels in meter.timed if metric is metrics.CA_CALLS] == [
        {"issuer": "ca", "call": "get_order", "result": "ISSUER_UNAVAILABLE"},
        {"issuer": "ca", "call": "renewal_info", "result": "unsupported"},
    ]
    return meter.moved


async def a_revoked_dns_token(_folder: Path) -> Collection[Metric]:
    """The profile waits for a person."""
    world = World()
    world.solver.faults.fail("present", RefusalError(Reason.DNS_REJECTED, "the token was revoked"))
    await order(world)
    return world.meter.moved


async def a_host_in_a_loop(_folder: Path) -> Collection[Metric]:
    """It meets a limit of new keys."""
    world = World(settings=IssuanceSettings(limits=DurableLimits(new_keys_per_identity_profile_per_day=1)))
    authority = await world.started()
    await authority.issue(caller(), issue("one"))
    with pytest.raises(RefusalError):
        await authority.issue(caller(), issue("two"))
    return world.meter.moved


async def a_ca_that_moves_a_renewal(_folder: Path) -> Collection[Metric]:
    """It is asked, and asked again."""
    clock, meter, numbers = ManualClock(), FakeMeter(), itertools.count(1)
    stores = MemoryStores.open(clock)
    harness = StoreHarness(StorePlace("fake", None), clock, stores)  # type: ignore[arg-type]  # a fake
    record = await harness.issue()
    plans = RenewalPlans(stores.renewal_plans)
    plans.note_issued(record)
    await plans.refresh()
    source = FakeRenewalInfoSource(RenewalInfo(clock.now() + 60 * DAY, clock.now() + 61 * DAY))
    planner = RenewalPlanner(
        plans,
        {record.issuer: source},
        FakePolicySource(FakePolicy.of()),
        clock=clock,
        rng=random.Random(7),
        trail=AuditTrail(clock, lambda: f"planned-{next(numbers)}"),
        meter=meter,
    )
    async with beside(plan_on(planner)):
        await settle()
        source.answer = RenewalInfo(clock.now(), clock.now() + HOUR)
        for _ in range(24):
            clock.advance(HOUR)
            await settle()
    return meter.moved


async def a_ca_that_wants_many_replaced(_folder: Path) -> Collection[Metric]:
    """At once."""
    meter, clock = FakeMeter(), ManualClock()
    stores = MemoryStores.open(clock)
    harness = StoreHarness(StorePlace("fake", None), clock, stores)  # type: ignore[arg-type]  # a fake
    world = IndexWorld("web1")
    watch = IncidentWatch(
        store=stores.incidents,
        index=world.index,
        known=KnownIncidents(stores.incidents),
        rules=lambda: IncidentRules(at_least=1),
        rollouts=None,
        keep=DAY,
        clock=clock,
        meter=meter,
        trail=AuditTrail(clock),
    )
    record = await harness.issue(identity="web1")
    plan = RenewalPlan(record.certificate_id, "web1", clock.now(), RenewalCause.ISSUER)
    end = clock.now() - HOUR
    move = WindowMove(record.certificate_id, "web1", "acme", clock.now(), end - HOUR, end, record.renew_time)
    await stores.renewal_plans.replace_plan(None, plan, move=move)
    await watch.look()
    return meter.moved


async def a_stream(_folder: Path) -> Collection[Metric]:
    """A host reports and is told to renew, answers what was never asked, and its identity comes again from elsewhere."""
    settings = StreamSettings(tick=timedelta(milliseconds=50), figures_interval=timedelta(milliseconds=50))
    policy = FakePolicySource(
        FakePolicy.of(
            [
                Grant(HOST, IdentityKind.HOST, "web1", profiles=("web",), labels={"ring": "canary"}),
                Grant(OPERATOR, IdentityKind.OPERATOR, "admin", roles=("operator",)),
                Grant(SERVICE, IdentityKind.SERVICE, "builder", profiles=("web",)),
            ],
            [Profile("web", "multi_san", ("www.example",), "hash")],
        )
    )
    async with (
        serve_edge(streams=settings, policy=policy) as edge,
        edge.host() as channel,
        edge.channel(edge.ca.issue([OPERATOR])) as operators,
        watching(edge),
    ):
        watch: Any = renewal_pb2_grpc.RenewalServiceStub(operators).WatchRenewals(
            renewal_pb2.WatchRenewalsRequest(), timeout=HANG
        )
        host = HostStreamClient(channel)
        await host.hello()
        held = renewal_pb2.CertificateStatus.Held(serial_number="3e7", not_after_time=datetime.now(UTC) + DAY)
        holds = dict.fromkeys(("issued", "installed", "served"), held)
        await host.acknowledged(await host.report(profile="web", **holds))
        edge.hub.plans_changed([RenewalPlan("certificate-1", HOST, datetime.now(UTC), RenewalCause.OPERATOR)])
        await host.answer((await host.directive()).nonce)
        await host.answer("never-asked")
        awaited = {metrics.WATCHERS, metrics.STREAM_MISUSES, metrics.CERTIFICATES, metrics.HEALTH, metrics.SOONEST_END}
        awaited |= {metrics.SERVICE_WATCHES, metrics.ENDING, metrics.NOT_AFTER, metrics.HOSTS, metrics.LABEL_HEALTH}
        await until(lambda: awaited <= edge.meter.moved)
        watch.cancel()
        other = HostStreamClient(channel)
        await other.hello()
        await until(lambda: metrics.STREAMS_ENDED in edge.meter.moved)
        return edge.meter.moved


class GrowingStore(Upkeep):
    """A database that grows by two gigabytes a look, and has one row that may go."""

    def __init__(self) -> None:
        self.sizes = itertools.count(1 << 30, 2 << 30)
        self.rows = 1

    @override
    async def prune(self, before: PruneBefore, most: int) -> Mapping[str, int]:
        rows, self.rows = self.rows, 0
        return {"audit_events": rows}

    @override
    async def size(self) -> int:
        return next(self.sizes)


async def a_full_disk(folder: Path) -> Collection[Metric]:
    """The database grows, old rows go, and there is little room."""
    clock, meter, files = ManualClock(), FakeMeter(), BlockingPool("files", 1)
    retention = Retention(
        GrowingStore(),
        keep_audit=30 * DAY,
        keep_ended=None,
        places={"store": folder},
        clock=clock,
        meter=meter,
        files=files,
    )
    async with beside(retention.prune()), beside(retention.watch()):
        await until(lambda: metrics.STORE_SIZE in meter.moved)
        await until(lambda: clock.sleepers == 2)
        clock.advance(timedelta(minutes=1))
        await until(lambda: metrics.SPACE_LOW in meter.moved)
    files.close()
    return meter.moved


class DamagedStore(Soundness):
    """A page is broken."""

    @override
    async def damage(self) -> Sequence[str]:
        return ["Tree 9 page 12: btreeInitPage() returns error code 11"]


async def a_damaged_database(_folder: Path) -> Collection[Metric]:
    """The look from end to end finds a page that can't be read."""
    clock, meter = ManualClock(), FakeMeter()
    stores = MemoryStores.open(clock)
    watch = SoundnessWatch(DamagedStore(), audit=stores.audit, trail=AuditTrail(clock), clock=clock, meter=meter)
    async with beside(watch.run()):
        await until(lambda: clock.sleepers == 1)
        clock.advance(HOUR)
        await until(lambda: metrics.STORE_DAMAGED in meter.moved)
    return meter.moved


async def an_issuing_process_that_ends(folder: Path) -> Collection[Metric]:
    """It is asked, killed, and another one takes its place."""
    settings, meter, again = load_settings(BrokerFiles(folder).config), FakeMeter(), asyncio.Event()
    begin = messages.Begin(settings.source.file, settings.source.text, "info")
    process = IssuingProcess(
        begin,
        meter=meter,
        secret_changed=lambda _: None,
        started_again=again.set,
        bounds=Bounds(beat=timedelta(milliseconds=100), most_unanswered=1000),
    )
    async with process.running() as starting, asyncio.timeout(HANG):
        await starting
        asking = asyncio.create_task(process.ask(messages.NoteDirectory(HOUR, issuer=settings.issuer.name)))
        await asyncio.sleep(0)
        assert metrics.ISSUING_CALLS in meter.moved
        await asking
        await until(lambda: metrics.ISSUING_MEMORY in meter.moved)
        os.kill(process.pid, signal.SIGKILL)
        await again.wait()
    return meter.moved


async def an_event_without_a_database(folder: Path) -> Collection[Metric]:
    """It goes to the spill file."""
    meter = FakeMeter()
    SpillFallback("fail_open", folder / "spill", meter=meter).rescue(["{}"], OSError("the disk is full"))
    return meter.moved


async def a_broker(folder: Path) -> Collection[Metric]:
    """It starts, serves, meets a retired identity, reloads and stops."""
    files, clock = BrokerFiles(folder), ShiftedClock()
    async with open_broker(prepare(load_settings(files.config)), clock=clock) as broker:

        async def report(leaf: Leaf) -> None:
            credentials = channel_credentials(files.ca.root_pem, leaf.pair)
            async with open_channel(f"https://localhost:{broker.port}", credentials) as channel:
                stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
                request = enrollment_pb2.ReportEnrollmentRequest(agent_version="0.1.0", identity_serial_number="1f")
                for _ in range(2):
                    await stub.ReportEnrollment(request, timeout=HANG)

        began = datetime.now(UTC) - HOUR
        retired, active = (files.ca.issue([files.host], not_before=began + timedelta(minutes=nth)) for nth in range(2))
        await report(retired)
        await report(active)
        clock.shift += HOUR
        with pytest.raises(grpc.aio.AioRpcError):
            await report(retired)
        await broker.reloader.request()
        await until(lambda: metrics.FREE_SPACE in exported(broker.meter.registry))
        assert metrics.DRAINING not in exported(broker.meter.registry)
    return exported(broker.meter.registry)


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> Any:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def exported(registry: CollectorRegistry) -> set[Metric]:
    """The metrics that have moved."""
    values = {sample.name for metric in registry.collect() for sample in metric.samples if sample.value}
    return {metric for metric in metrics.METRICS if values & {metric.name, f"{metric.name}_count"}}


async def a_role(_folder: Path) -> Collection[Metric]:
    """A broker that has its database alone has all roles."""
    meter, clock = FakeMeter(), ManualClock()
    roles = Roles(SoleRoleStore(), LastingLease(), clock, meter)
    roles.add("upkeep", lambda: clock.sleep(HOUR))
    async with beside(roles.run()):
        await until(lambda: roles.holds("upkeep"))
    return meter.moved


async def a_rollout(_folder: Path) -> Collection[Metric]:
    """One that runs, is to revoke, and whose hosts do nothing until its deadline has gone by."""
    world = RolloutWorld()
    await world.start(revoke=Revoke.AFTER_SERVED, deadline=world.clock.now() + timedelta(hours=1))
    await world.look()
    world.clock.advance(timedelta(hours=2))
    await world.look()
    return world.meter.moved


async def a_notification(_folder: Path) -> Collection[Metric]:
    """One that waits, and is delivered."""
    meter, clock = FakeMeter(), ManualClock()
    outbox = MemoryStores.open(clock).outbox
    await outbox.record(Records([Message("1", "oncall", MessageKind.TEST, clock.now())]), "")
    delivery = Delivery(outbox, {"oncall": FakeNotifier()}, clock=clock, rng=random.Random(1), meter=meter)
    async with beside(delivery.run()):
        await until(lambda: meter.total(metrics.NOTIFICATIONS, result="delivered"))
    return meter.moved


async def a_copy_of_the_audit_log(_folder: Path) -> Collection[Metric]:
    """A sink that is away at first."""
    meter, clock = FakeMeter(), ManualClock()
    stores, sink = MemoryStores.open(clock), FakeSink()
    sink.faults.fail("send", SinkError("away"))
    forwarding = Forwarding(stores.stored_events, {"copy": sink}, clock=clock, rng=random.Random(1), meter=meter)
    async with beside(forwarding.run()):
        await until(lambda: clock.sleepers)
        await stores.audit.append([AuditEvent("1", clock.now(), AuditEventType.BROKER_STARTED)])
        await until(lambda: sink.events or clock.advance(timedelta(seconds=5)))
        await until(lambda: meter.total(metrics.SINK_EVENTS))
    return meter.moved


async def a_secret_that_signs_nothing(_folder: Path) -> Collection[Metric]:
    """The audit log gets no checkpoint."""
    meter, clock = FakeMeter(), ManualClock()

    async def secret() -> str:
        return "none"

    stores = MemoryStores.open(clock)
    await stores.audit.append([AuditEvent("1", clock.now(), AuditEventType.BROKER_STARTED)])
    await Sealing(stores.audit_proof, clock, secret, meter).seal_own()
    return meter.moved


async def a_required_sink_that_nobody_copies_to(_folder: Path) -> Collection[Metric]:
    """Decisions are held up."""
    meter, clock = FakeMeter(), ManualClock()
    gate = SinkGate(MemoryStores.open(clock).stored_events, {"copy": HOUR}, clock, meter)
    async with beside(gate.run()):
        await until(lambda: clock.sleepers)
        clock.advance(2 * HOUR)
        await until(lambda: meter.levels[metrics.SINK_HOLDS_UP])
    return meter.moved


Scenario = Callable[[Path], Awaitable[Collection[Metric]]]

MOVED: dict[Scenario, set[Metric]] = {
    an_order: {
        metrics.BUDGET_LEFT, metrics.BUDGET_PLACES, metrics.BUDGET_WAITING, metrics.BUDGET_WAIT,
        metrics.REQUESTS, metrics.DELIVERIES, metrics.REVOCATIONS, metrics.ORDERS_OPENED, metrics.ORDERS_OPEN,
        metrics.ORDERS_ENDED, metrics.ORDER_DURATION, metrics.STEP_DURATION, metrics.CERTIFICATES_LEFT,
    },
    a_member: {metrics.LEASE, metrics.CLOCK_SKEW, metrics.BROKERS, metrics.BROKERS_DIFFER},
    a_role: {metrics.ROLES_HELD},
    a_rollout: set(SHOWN_OF_ROLLOUTS),
    a_copy_of_the_audit_log: {metrics.SINK_EVENTS, metrics.SINK_FAILURES, metrics.SINK_LAG},
    a_secret_that_signs_nothing: {metrics.AUDIT_UNPROVEN},
    a_required_sink_that_nobody_copies_to: {metrics.SINK_HOLDS_UP},
    a_notification: {metrics.NOTIFICATIONS, metrics.NOTIFICATIONS_WAITING},
    an_issuer_out_of_reach: {metrics.FAILOVERS, metrics.STEP_FAILURES},
    an_order_lost_by_its_ca: {metrics.ORDERS_ABANDONED},
    a_store_and_a_dns_in_trouble: {metrics.JOURNAL_RETRIES, metrics.SERVERS_SILENT, metrics.RECORDS_LEFT},
    calls_of_the_issuing_process: {metrics.CA_CALLS, metrics.DNS_CALLS},
    a_revoked_dns_token: {metrics.PROFILES_BLOCKED},
    a_host_in_a_loop: {metrics.LIMITS_REACHED},
    a_ca_that_moves_a_renewal: {metrics.RENEWAL_CHECKS, metrics.RENEWAL_PLANS_MOVED},
    a_ca_that_wants_many_replaced: {
        metrics.INCIDENTS, metrics.INCIDENT_CERTIFICATES, metrics.INCIDENT_DEADLINE,
    },
    a_stream: {
        metrics.STREAMS, metrics.STREAMS_ENDED, metrics.STREAM_MISUSES, metrics.REPORTS, metrics.DIRECTIVES,
        metrics.DIRECTIVE_SECONDS, metrics.CERTIFICATES, metrics.HEALTH, metrics.SOONEST_END, metrics.WATCHERS,
        metrics.SERVICE_WATCHES, metrics.ENDING, metrics.NOT_AFTER, metrics.HOSTS, metrics.LABEL_HEALTH, metrics.RPC_IN_FLIGHT,
    },
    a_full_disk: {
        metrics.ROWS_PRUNED, metrics.STORE_SIZE, metrics.STORE_GROWTH, metrics.SPACE_LOW,
    },
    a_damaged_database: {metrics.STORE_CHECKED, metrics.STORE_DAMAGED},
    an_issuing_process_that_ends: {
        metrics.ISSUING_UP, metrics.ISSUING_RESTARTS, metrics.ISSUING_MEMORY, metrics.ISSUING_CALLS,
    },
    an_event_without_a_database: {metrics.EVENTS_RESCUED},
    a_broker: {
        metrics.RPC_CALLS, metrics.RPC_SECONDS, metrics.LOOP_LAG, metrics.DRAINING,
        metrics.RELOADS, metrics.CERTIFICATE_NOT_AFTER, metrics.IDENTITIES_CONTESTED, metrics.IDENTITY_ACTIVATIONS,
        metrics.STORE_GROUP, metrics.FREE_SPACE, metrics.EVENTS_COALESCED, metrics.BUILD_INFO,
    },
}  # fmt: skip


@pytest.mark.parametrize("scenario", MOVED, ids=lambda scenario: scenario.__name__)
async def test_metrics_move(scenario: Scenario, tmp_path: Path) -> None:
    """What happens is measured."""
    try:
        moved = await scenario(tmp_path)
    finally:
        await kill_all()
    assert {metric.name for metric in MOVED[scenario] - set(moved)} == set()


def test_each_metric_moves_in_some_scenario() -> None:
    """A metric that is added is added here too."""
    assert set().union(*MOVED.values()) == set(metrics.METRICS)
