"""The audit log's contract with its readers: which events each story leaves, and exactly what each of them says.

`tests/cases/audit/events.json` holds the records as the broker of 452d001 wrote them, but for the words of some reasons,
which are for people; ids and hashes are replaced by what they are. A field may be added, and none may change or go.
An answer from the cache was three events until ADR 0023: `answer-from-the-cache-70820d2.json` holds them.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock, patch

import pytest

from certplane import __version__
from certplane.broker import account_commands, copy_command, identity_commands
from certplane.broker.announced import start_events
from certplane.broker.audit import DenialCoalescer, RepeatCoalescer
from certplane.broker.control import ReloadRequest
from certplane.broker.enrolling.tokens import IdentityCa
from certplane.broker.enrollment_desk import enrollment_service
from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditTrail
from certplane.broker.fleet.events import report_events
from certplane.broker.fleet.forgetting import HostForgetting
from certplane.broker.fleet.requests import RenewalRequest, RenewalRequests
from certplane.broker.fleet.watching import Watchers
from certplane.broker.identity.activation import FirstUse
from certplane.broker.identity.admission import Call
from certplane.broker.identity.authentication import AuthenticationError, Peer
from certplane.broker.identity.denials import Denials
from certplane.broker.identity.first_use import Settlement
from certplane.broker.identity.standing import shut_out
from certplane.broker.incidents.model import Figures, Incident
from certplane.broker.incidents.watch import IncidentWatch
from certplane.broker.issuance.events import denied_order
from certplane.broker.members.requests import BrokerCommand, BrokerRequest
from certplane.broker.model import DenyEntry, Grant, IdentityKind, IdentityUse, KnownIdentity, RevocationReason
from certplane.broker.out_of_service import OutOfService
from certplane.broker.reload import Reloader
from certplane.broker.renewal.model import InForce, RenewalPlan, Selection
from certplane.broker.renewal.planner import RenewalPlanner
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.rollouts.events import RolloutEvents, happened_events, item_events
from certplane.broker.rollouts.model import (
    Happened,
    Happening,
    ItemState,
    Ring,
    Rollout,
    RolloutItem,
    RolloutSpec,
    RolloutState,
    StateCount,
    Step,
)
from certplane.broker.services.calls import serving
from certplane.broker.soundness import SoundnessWatch
from certplane.broker.stopping import Stopping
from certplane.broker.store.copying import CopiedTable
from certplane.errors import ConfigurationError, ConfigurationProblem, Reason, RefusalError
from certplane.fleet_report.model import (
    CertificateState,
    CertificateStatus,
    HeldCertificate,
    RenewalCause,
    RenewalStep,
    Report,
)
from certplane.sandbox.tokens import ProvisionerKey
from certplane.v1 import enrollment_pb2 as pb
from tests.fakes.audit import FakeDenialRecorder, FakeEventRecorder, FakeMeter
from tests.fakes.clock import ManualClock
from tests.fakes.issuer import FakeIssuer
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.fakes.secrets import FakeSecretSource
from tests.support.issuance import NO_WAIT, World, caller, issue, kill_all, lose_order, unavailable
from tests.support.memory_store import MemoryStores

GOLDEN = json.loads(Path("tests/cases/audit/events.json").read_text())
THREE = json.loads(Path("tests/cases/audit/answer-from-the-cache-70820d2.json").read_text())
"""Request, decision and hand-out of `issuance`'s second call, as they were written each."""
_IDS = re.compile(r"\b(id[0-9a-f]+-\d{6}|order-\d{6}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_HASHES = re.compile(r"\b[0-9a-f]{64}\b")
_SERIALS = re.compile(r"\b[0-9a-f]{35,40}\b")

Story = Callable[[], Awaitable[list[AuditEvent]]]
STORIES: dict[str, Story] = {}


def story(tell: Story) -> Story:
    STORIES[tell.__name__] = tell
    return tell


def records(events: list[AuditEvent]) -> list[Any]:
    """What is written of the events, without what differs from run to run."""
    text = json.dumps([event.record() for event in events])
    for pattern, name in ((_IDS, "<id>"), (_HASHES, "<sha256>"), (_SERIALS, "<serial>")):
        text = pattern.sub(name, text)
    return list(json.loads(text.replace(f"version {__version__}", "version <version>")))


@story
async def issuance() -> list[AuditEvent]:
    """Issued, asked again, fetched, and revoked."""
    world = World()
    authority = await world.started()
    result = await authority.issue(caller(), issue())
    assert result.certificate is not None
    certificate_id = result.certificate.certificate_id
    await authority.issue(caller(), issue(request_id="req-2"))
    await authority.get_certificate(caller(), "req-3", certificate_id)
    await authority.revoke(caller(), "req-4", certificate_id, RevocationReason.SUPERSEDED)
    return world.database.events


@story
async def renewal() -> list[AuditEvent]:
    """A certificate in the place of another, and a second call that joins its order."""
    world = World()
    authority = await world.started()
    first = await authority.issue(caller(), issue())
    assert first.certificate is not None
    world.clock.advance(timedelta(days=70))
    command = issue("two", wait=NO_WAIT, replaces=first.certificate.certificate_id)
    await authority.issue(caller(), command)
    await authority.issue(caller(), replace(command, request_id="req-2"))
    await world.run_on()
    return world.database.events


@story
async def refusals() -> list[AuditEvent]:
    """A profile that isn't granted, one that isn't there, a CSR that can't be read, an order that isn't there."""
    world = World()
    authority = await world.started()
    refused = [
        authority.issue(replace(caller(), name="web9.test"), issue()),
        authority.issue(caller(), issue(profile="nowhere")),
        authority.issue(caller(), issue(csr_pem="junk")),
        authority.get_order(caller(), "req-2", "order-of-nobody"),
        authority.revoke(caller(), "req-3", "certificate-of-nobody", RevocationReason.UNSPECIFIED),
    ]
    for call in refused:
        with pytest.raises(RefusalError):
            await call
    world.contest()
    with pytest.raises(RefusalError):
        await authority.issue(caller(), issue())
    return world.database.events


@story
async def failures() -> list[AuditEvent]:
    """An order that the CA refuses, one that moves to another issuer, one that an operator's denial ends."""
    world = World()
    world.issuer.faults.fail("create_order", RefusalError(Reason.ISSUER_REJECTED, "no"))
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await world.run_on()
    moving = World()
    moving.policies.policy = replace_issuers(moving)
    moving.others.append(FakeIssuer(moving.ca, name="second"))
    moving.issuer.faults.fail_always("create_order", unavailable(retry_after=timedelta(minutes=5)))
    authority = await moving.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await moving.run_on()
    ended = denied_order(moving.order, shut_out(), moving.clock.now())
    return [*world.database.events, *moving.database.events, ended]


def replace_issuers(world: World) -> Any:
    world.change_profile(issuers=("fake-ca", "second"))
    return world.policies.policy


@story
async def abandoned() -> list[AuditEvent]:
    """The CA forgets an order before its CSR is sent: another is made."""
    world = World()
    await lose_order(world)
    return world.database.events


@story
async def coalesced() -> list[AuditEvent]:
    """Denials and hand-outs that repeat are counted."""
    world = World(coalesces=True)
    authority = await world.started()
    assert isinstance(world.repeats, RepeatCoalescer)
    numbers = count(1)
    world.denials = DenialCoalescer(  # type: ignore[assignment]  # the real one
        world.stores.audit, world.clock, lambda: f"denials-{next(numbers)}"
    )
    authority = world.authority()
    await authority.start(list(world.policies.policy.profiles))
    async with world.repeats.running(), world.denials.running():  # type: ignore[attr-defined]
        for _ in range(4):
            await authority.issue(caller(), issue())
            with pytest.raises(RefusalError):
                await authority.issue(caller(), issue(profile="nowhere"))
    return world.database.events


@story
async def edge() -> list[AuditEvent]:
    """What the edge records: a first use, a retired certificate, a refused call, an enrollment, a token, a replacement."""
    clock, stores, numbers = ManualClock(), MemoryStores.open(ManualClock()), count(1)

    trail = AuditTrail(clock, lambda: f"event-{next(numbers)}")
    first_use = FirstUse(ledger=stores.identities, clock=clock, trail=trail)
    peer = Peer(b"", b"", "TLSv1.3", session_reused=False, source_ip="192.0.2.9", user_agent="test/2")
    control = SimpleNamespace(clock=clock)
    call = Call(control, "/certplane.v1.Service/Method", None, peer, "req-1", is_stream=False)  # type: ignore[arg-type]
    call.caller = caller()
    old, new = caller(), replace(caller(), serial_number="b2", not_before=clock.now())
    for host in (old, new):
        decided = first_use.begin(host, call.named)
        assert decided is not None
        await decided
        clock.advance(timedelta(minutes=10))
    retired = first_use.begin(old, call.named)
    assert retired is not None
    with pytest.raises(AuthenticationError) as caught:
        await retired
    denied = FakeDenialRecorder()
    await Denials(denied, trail).note(call, caught.value, by_edge=False)
    unknown = Call(control, call.method, None, peer, "req-1", is_stream=False)  # type: ignore[arg-type]
    await Denials(denied, trail).note(unknown, RefusalError(Reason.RATE_LIMITED, "too fast"), by_edge=False)
    grant = Grant("web9.test", IdentityKind.HOST, "web9")
    ca = IdentityCa("https://ca.test", "ab" * 32, "broker", "key", timedelta(minutes=5))
    servicer = enrollment_service(
        stores,
        FakeSecretSource({"key": json.dumps(ProvisionerKey.generate().private_jwk)}),
        ca,
        trust=SimpleNamespace(),  # type: ignore[arg-type]  # not asked
        policy=FakePolicySource(FakePolicy.of([grant])),
        repeats=FakeEventRecorder(stores.audit),
        clock=clock,
        trail=trail,
    )
    token = serving.set(call)
    await servicer.ReportEnrollment(
        pb.ReportEnrollmentRequest(agent_version="1.2", identity_serial_number="a1"),
        None,  # type: ignore[arg-type]  # not used
    )
    call.caller = caller("admin.test")
    context: Any = None  # not used
    await servicer.CreateBootstrapToken(pb.CreateBootstrapTokenRequest(identity="web9.test"), context)
    shut = pb.DenyIdentityRequest(
        identity="web1.test", scope=pb.DenyIdentityRequest.SCOPE_CERTIFICATES, reason="replaced"
    )
    await servicer.DenyIdentity(shut, context)
    serving.reset(token)
    return [*stores.database.events, *denied.events]


@story
async def fleet() -> list[AuditEvent]:
    """What hosts report of their certificates, and a renewal that an operator asks for."""
    clock, numbers = ManualClock(), count(1)
    now = clock.now()

    trail = AuditTrail(clock, lambda: f"event-{next(numbers)}")
    held = HeldCertificate("0a", now, now + timedelta(days=90), "c-1")
    serving_it = CertificateStatus(
        name="web", profile="shop", state=CertificateState.SERVING, issued=held, installed=held, served=held
    )
    failed = replace(
        serving_it, state=CertificateState.FAILED, failed_step=RenewalStep.INSTALL, last_error="no space", served=None
    )
    degraded = replace(serving_it, state=CertificateState.DEGRADED, last_error="the probe saw another")
    reports = [Report(number, status) for number, status in enumerate((serving_it, failed, degraded), 1)]
    told = report_events(caller(), "req-1", reports, trail)
    stores = MemoryStores.open(clock)
    requests = RenewalRequests(
        RenewalPlans(stores.renewal_plans), stores.fleet, clock, trail, why_none=lambda _host: ""
    )
    order = RenewalRequest(selection=Selection(all=True), reason="drill", request_id="r-1", spread=timedelta(hours=1))
    requested = await requests.request(caller("admin.test"), order)
    assert requested
    last_known = AsyncMock(return_value=SimpleNamespace(record=SimpleNamespace(stream=object()), broker=None))
    forgetting = HostForgetting(
        view=SimpleNamespace(last_known=last_known),  # type: ignore[arg-type]  # all that is asked of it
        store=SimpleNamespace(forget_host=AsyncMock(return_value=True)),  # type: ignore[arg-type]  # its event is told here
        plans=stores.renewal_plans,
        policy=FakePolicySource(FakePolicy.of([])),
        watchers=Watchers(1, FakeMeter()),
        clock=clock,
        trail=trail,
    )
    await forgetting.forget(caller("admin.test"), "r-2", "web9.test", "it was sold")
    ((*_, [forgotten]),) = (call.args for call in forgetting._store.forget_host.call_args_list)  # type: ignore[attr-defined]
    return [*(each.event for each in told.values()), *stores.database.events, forgotten]


@story
async def planning() -> list[AuditEvent]:
    """A CA's window that moves a renewal."""
    clock = ManualClock()
    now = clock.now()
    plan = RenewalPlan("c-1", "web1.test", now + timedelta(days=60), RenewalCause.LIFETIME)
    certificate = InForce(
        "c-1", "web1.test", "shop", "acme", ("www.test",), now, now + timedelta(days=90), plan.renew_time, plan
    )
    planner = SimpleNamespace(_clock=clock, _trail=AuditTrail(clock, lambda: "event-1"))
    moved = replace(
        plan,
        renew_time=now,
        reason="the CA's window",
        window_end=now - timedelta(days=1),
        explanation_url="https://ca.test/why",
    )
    return [
        RenewalPlanner._moved(planner, certificate, moved),  # type: ignore[arg-type]  # all that it asks
        RenewalPlanner._moved(planner, certificate, replace(plan, renew_time=now + timedelta(days=30))),  # type: ignore[arg-type]
    ]


@story
async def incidents() -> list[AuditEvent]:
    """A CA that wants many certificates replaced, and gets what it wants, mostly."""
    clock, numbers = ManualClock(), count(1)
    watch: Any = SimpleNamespace(_trail=AuditTrail(clock, lambda: f"event-{next(numbers)}"))
    watch._event = partial(IncidentWatch._event, watch)
    figures = Figures(certificate_count=333, holder_count=300)
    incident = Incident("acme-20260319", "acme", clock.now(), explanation_url="https://ca.test/why", figures=figures)
    end = replace(figures, in_use_count=331, withdrawn_count=1, hurt_count=1)
    return [IncidentWatch._opened(watch, incident), IncidentWatch._closed(watch, replace(incident, figures=end))]


@story
async def operators() -> list[AuditEvent]:
    """What an operator's commands record, and the broker of itself."""
    clock = ManualClock()
    now = clock.now()
    trail = AuditTrail(clock)
    use = IdentityUse("CN=Test CA", "a1", now, now)
    entry = DenyEntry(issuer="CN=Test CA", serial_number="b2", reason="stolen", create_time=now)
    settlement = Settlement(KnownIdentity("web1.test", use, now), (entry,))
    ca: Any = SimpleNamespace(name="acme", acme=SimpleNamespace(directory_url="https://ca.test/dir"))
    world = World()
    issued = await (await world.started()).issue(caller(), issue())
    assert issued.certificate is not None
    prepared: Any = SimpleNamespace(
        policy=SimpleNamespace(current=SimpleNamespace(hash="policy"), path="policy.yml"),
        trust=SimpleNamespace(server=SimpleNamespace(serial_number="0c"), bundle=SimpleNamespace(hash="bundle")),
        settings=SimpleNamespace(hash="settings"),
    )
    reloads: list[AuditEvent] = []
    reloader = MagicMock(
        _trail=AuditTrail(clock, lambda: "event-1"),
        _record=AsyncMock(side_effect=reloads.append),
        _pool=MagicMock(run=AsyncMock(return_value=SimpleNamespace(hash="policy"))),
        _policy=SimpleNamespace(
            current=SimpleNamespace(hash="before"),
            path="policy.yml",
            reload=MagicMock(),
            loaded=SimpleNamespace(summary=""),
        ),
        _unconfirmed=False,
        on_policy=AsyncMock(),
    )
    wrong = ConfigurationError([ConfigurationProblem("policy.yml", None, "", "no such key")])
    with patch("certplane.broker.reload.trust_fields"):
        await Reloader._reload_policy(reloader, ReloadRequest("SIGHUP"))
        await Reloader._reject(reloader, "trust", AuditEventType.TRUST_REJECTED, wrong)
        await Reloader._reject(reloader, "policy", AuditEventType.POLICY_REJECTED, wrong)
        await Reloader._drop_ended(reloader)
    stores = MemoryStores.open(clock)
    stopped: Any = [AsyncMock(), AsyncMock(), AsyncMock(), MagicMock()]
    damaged: Any = SimpleNamespace(damage=AsyncMock(return_value=["the index uq_orders_open is invalid"]))
    trail_4 = AuditTrail(clock, lambda: "event-4")
    await SoundnessWatch(damaged, audit=stores.audit, trail=trail_4, clock=clock, meter=FakeMeter())._look()
    trail_3 = AuditTrail(clock, lambda: "event-3")
    await Stopping(*stopped, stores.audit, trail_3, "broker machine1 [::]:8443 (b1)", timedelta()).stop()
    numbers = count(6)
    service = OutOfService(
        server=AsyncMock,
        authority=MagicMock(rest=AsyncMock(), running_count=0),
        hub=MagicMock(registry=[]),
        membership=AsyncMock(),
        members=AsyncMock(living=AsyncMock(return_value=[SimpleNamespace(draining=False)])),
        audit=stores.audit,
        trail=AuditTrail(clock, lambda: f"event-{next(numbers)}"),
        called="broker machine1 [::]:8443 (b1)",
    )
    asked = ("the operator alice.test", False, "alice.test", "r-1", "a new kernel", clock.now())
    await service.drain(BrokerRequest("k1", "b1", BrokerCommand.DRAIN, *asked))
    await service.serve(BrokerRequest("k2", "b1", BrokerCommand.SERVE, *asked))
    return [
        identity_commands._event(
            trail, DenyEntry(name="web1.test"), AuditEventType.IDENTITY_DENIED, AuditDecision.DENY
        ),
        identity_commands._event(trail, entry, AuditEventType.IDENTITY_ALLOWED, AuditDecision.ALLOW),
        *identity_commands._settlement_events(settlement, trail),
        account_commands.key_event(trail, ca.name, ca.acme.directory_url, "the account's key was replaced"),
        account_commands._revocation_event(
            trail, AuditEventType.CERTIFICATE_REVOKED, issued.certificate, RevocationReason.KEY_COMPROMISE, None
        ),
        *reloads,
        *start_events(prepared, AuditTrail(clock, lambda: "event-2"), "broker machine1 [::]:8443 (b1)"),
        *stores.database.events,
        copy_command._event(AuditTrail(clock, lambda: "event-5"), "broker.db", [CopiedTable("orders", 7, "0c")]),
    ]


@story
async def rollouts() -> list[AuditEvent]:
    """Created, approved, halted by a host and resumed, passed over, finished; and words about it."""
    clock, numbers = ManualClock(), count(1)
    trail = AuditTrail(clock, lambda: f"event-{next(numbers)}")
    events = RolloutEvents(trail, "r261123-k7qx")
    alice = caller("alice.test")
    item = RolloutItem("r261123-k7qx", "c-1", "web1.test", "shop", "acme", ("shop.test",), clock.now(), 0)
    spec = RolloutSpec(Selection(all=True), "drill")
    ring = Ring("canary", host_count=1, counts=(StateCount(ItemState.DONE, 1),))
    rollout = Rollout("r261123-k7qx", "alice.test", "r-1", spec, clock.now(), clock.now(), rings=(ring,))
    finishing = replace(rollout, state=RolloutState.FINISHING, state_reason="some hosts are away")
    happened = [Happening(what, "canary", "1 host") for what in Happened]
    failed = replace(item, state=ItemState.FAILED, reason="reload: exit status 1", failure_mark="1")
    skipped = replace(item, state=ItemState.SKIPPED, reason="its host no longer has it")
    return [
        events.created(alice, "r-1", "renew: 1 certificate of 1 host, rings canary: drill", "all", 1),
        *(events.said(word, alice, "r-2", "ticket 7") for word in ("approve", "pause", "resume", "abort", "finish")),
        events.started("approved by bob.test", 1),
        events.keys_blocked(1),
        *happened_events(events, Step(finishing, happened=tuple(happened))),
        *item_events(events, {"c-1": item}, [failed]),
        *item_events(events, {"c-1": item}, [skipped]),
    ]


@pytest.fixture(autouse=True)
async def _nothing_runs_on() -> AsyncIterator[None]:
    yield
    await kill_all()


@pytest.mark.parametrize("told", STORIES)
async def test_every_event_says_what_it_said(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same keys and values, in the same order of events."""
    monkeypatch.setenv("LOGNAME", "root")  # who gives the commands
    monkeypatch.delenv("SUDO_USER", raising=False)
    assert records(await STORIES[told]()) == GOLDEN[told]


def test_the_stories_meet_every_kind_of_event() -> None:
    """A type that no story meets could change unnoticed."""
    met = {record["event_type"] for told in GOLDEN.values() for record in told}
    assert {str(kind) for kind in AuditEventType} - met == set()


async def test_one_event_of_an_answer_from_the_cache_says_all_that_three_said() -> None:
    """Every field of the old three with the same value; only what tells events apart, and `allow`, is said by it."""
    (one,) = (record for record in records(await issuance()) if record["request_id"] == "req-2")

    said: dict[str, Any] = {}
    for record in THREE:
        for name, value in record.items():
            said.setdefault(name, []).append(value)
    assert said.pop("event_type") == [
        "certificate_request_received",
        "certificate_authorized",
        "certificate_cache_hit",
    ]
    assert one["event_type"] == "certificate_cache_hit"
    assert said.pop("decision") == ["allow", "cache_hit"]
    assert one["decision"] == "cache_hit"
    assert {name: {json.dumps(value) for value in values} for name, values in said.items()} == {
        name: {json.dumps(one[name])} for name in said
    }
    assert one.keys() == said.keys() | {"event_type", "decision"}


async def test_a_log_of_before_shows_the_three_events_of_an_answer_as_they_stand() -> None:
    """Rows that an older broker wrote are read as they are, and those of a spill file are taken in."""
    stores = MemoryStores.open(ManualClock())
    before = [json.dumps(record | {"event_id": f"event-{n}"}) for n, record in enumerate(THREE)]

    assert await stores.audit.import_records(before) == len(THREE)

    assert [json.dumps(record) for record in await stores.audit.tail(10)] == before
