"""What operators ask of rollouts: who may, what is refused, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from certplane.broker.events import AuditEventType
from certplane.broker.model import Grant, IdentityKind, Profile, RevocationReason
from certplane.broker.renewal.model import Selection
from certplane.broker.rollouts import desk as desk_module
from certplane.broker.rollouts.desk import Word
from certplane.broker.rollouts.model import (
    ItemState,
    Revoke,
    RingSpec,
    RolloutAction,
    RolloutSpec,
    RolloutState,
)
from certplane.broker.standing_rules import Approval, RingRule, RolloutRules
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
from tests.fakes.policy import FakePolicy
from tests.support.rollout_world import MINUTE, TWO_RINGS, RolloutWorld, operator

ONE = RolloutSpec(Selection(hosts=("h1.test",)), "ticket 4711")
CANT_BE_TOLD = "can't be told and renew when they ask; what they had is revoked by `certplanectl rollout finish` alone"
APPROVED = RolloutRules(Approval.REQUIRED, 2)


@pytest.fixture
def world() -> RolloutWorld:
    return RolloutWorld()


def without_role(world: RolloutWorld, name: str) -> None:
    """The policy no longer gives this operator a role."""
    policy = world.policy.current
    assert isinstance(policy, FakePolicy)
    grant = replace(policy.grants[name], roles=())
    world.policy.policy = replace(policy, grants={**policy.grants, name: grant})


async def test_a_rollout_is_frozen_when_it_is_created(world: RolloutWorld) -> None:
    """With each certificate's name at its host, and its ring; the audit log says what and why."""
    rollout = await world.start()
    assert [(item.host, item.certificate_name, item.ring) for item in await world.store.items(rollout.rollout_id)] == [
        ("h0.test", "shop", 0),
        ("h1.test", "shop", 1),
        ("h2.test", "shop", 1),
    ]
    (event,) = world.events(AuditEventType.ROLLOUT_CREATED)
    assert (event.identity, event.selection, event.count) == ("alice.test", "all", 3)
    assert event.reason == "renew: 3 certificates of 3 hosts, rings first, rest: drill"
    assert len(rollout.rollout_id) <= 12
    assert [ring.host_count for ring in rollout.rings] == [1, 2]


async def test_asked_again_with_an_id_that_was_chosen_it_is_the_same(world: RolloutWorld) -> None:
    """Whatever has become of it, and whatever the selection is by now."""
    first = await world.desk.create(operator(), "drill-1", ONE, chosen_id=True)
    await world.desk.say(Word.PAUSE, operator(), "r", first.rollout_id, "wait")
    world.names.clear()
    again = await world.desk.create(operator(), "drill-1", ONE, chosen_id=True)
    assert (again.rollout_id, again.state) == (first.rollout_id, RolloutState.PAUSED)
    assert len(world.events(AuditEventType.ROLLOUT_CREATED)) == 1
    with pytest.raises(RefusalError):
        await world.desk.create(operator("bob.test"), "drill-1", ONE, chosen_id=True)  # his own: of nothing


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        pytest.param(replace(ONE, selection=Selection()), "spec.selection selects nothing", id="no selection"),
        pytest.param(
            replace(ONE, selection=Selection(hosts=("h9.test",))), "selects no certificate in force", id="none"
        ),
        pytest.param(
            replace(ONE, rings=(RingSpec("a", ("ring=none",)), RingSpec("rest", rest=True))),
            "no host of the rollout has ring=none",
            id="a ring of nobody",
        ),
        pytest.param(
            replace(ONE, selection=Selection(all=True), rings=TWO_RINGS[:1]), "2 hosts are in no ring", id="left out"
        ),
        pytest.param(
            replace(ONE, action=RolloutAction.MOVE, issuer="third"),
            "is 'third', which the broker's",
            id="no such issuer",
        ),
        pytest.param(replace(ONE, reason=" "), "spec.reason is required", id="no reason"),
        pytest.param(
            replace(ONE, revoke=Revoke.AFTER_SERVED, revocation_reason=RevocationReason.KEY_COMPROMISE),
            "says that keys are out: replace them too",
            id="keys that are out stay",
        ),
    ],
)
async def test_what_can_not_be_created(world: RolloutWorld, spec: RolloutSpec, words: str) -> None:
    """A plan says the same beforehand, with what to do."""
    with pytest.raises(RefusalError, match=words) as caught:
        await world.desk.create(operator(), "r", spec)
    assert caught.value.refusal.reason is Reason.REQUEST_INVALID
    planned = await world.desk.plan(operator(), spec)
    assert planned.refusal is not None
    assert planned.refusal.refusal.message == caught.value.refusal.message
    assert world.store.rollouts == {}


@pytest.mark.parametrize("issuers", [("acme",), ()])
async def test_an_issuer_that_a_profile_does_not_let_issue(world: RolloutWorld, issuers: tuple[str, ...]) -> None:
    """The refusal says where to add it; a profile without a list has the first issuer of the configuration alone."""
    policy = world.policy.current
    assert isinstance(policy, FakePolicy)
    shop = Profile("shop", "multi_san", ("shop.test",), "hash", issuers=issuers)
    world.policy.policy = replace(policy, profiles={"shop": shop})
    with pytest.raises(
        RefusalError, match=r"is second, which profiles don't let issue: add it to acme\.issuers of shop"
    ):
        await world.start(action=RolloutAction.MOVE, issuer="second")


@pytest.mark.parametrize(
    "change", [{"revoke": Revoke.AFTER_SERVED}, {"selection": Selection(all=True)}], ids=["revokes", "all"]
)
async def test_what_takes_away_from_a_fleet_takes_an_admin(world: RolloutWorld, change: dict[str, Any]) -> None:
    """An operator is told so, by a plan too; of some hosts, and without revocation, the role operator is enough."""
    spec = replace(ONE, **change)
    with pytest.raises(RefusalError, match="the role admin is needed for a rollout") as caught:
        await world.desk.create(operator("carol.test", "operator"), "r", spec)
    assert caught.value.refusal.reason is Reason.ROLE_REQUIRED
    planned = await world.desk.plan(operator("carol.test", "operator"), spec)
    assert planned.refusal is not None
    assert planned.frozen is not None
    looking = await world.desk.plan(operator("dave.test", "viewer"), ONE)
    assert looking.refusal is not None
    assert looking.refusal.refusal.message.startswith("the role operator is needed")
    assert (await world.desk.create(operator("carol.test", "operator"), "r", ONE)).state is RolloutState.RUNNING
    assert (await world.desk.create(operator(), "r", spec)).state is RolloutState.RUNNING


@pytest.mark.parametrize(
    ("rules", "change", "waits"),
    [
        pytest.param(RolloutRules(), {}, "", id="nobody asks"),
        pytest.param(RolloutRules(Approval.REQUIRED), {}, "", id="without a number"),
        pytest.param(APPROVED, {}, "", id="of few hosts"),
        pytest.param(APPROVED, {"revoke": Revoke.AFTER_SERVED}, "it revokes", id="revokes"),
        pytest.param(APPROVED, {"selection": Selection(all=True)}, "it is of all certificates", id="all"),
        pytest.param(
            APPROVED,
            {"selection": Selection(hosts=("h0.test", "h1.test", "h2.test"))},
            "above 2 hosts",
            id="many hosts",
        ),
    ],
)
async def test_when_another_operator_is_asked(rules: RolloutRules, change: dict[str, Any], waits: str) -> None:
    """As the policy says; a plan tells it beforehand."""
    world = RolloutWorld(rules=rules)
    spec = replace(ONE, **change)
    planned = await world.desk.plan(operator(), spec)
    assert waits in planned.approval
    assert bool(planned.approval) == bool(waits)
    rollout = await world.desk.create(operator(), "r", spec)
    assert (rollout.state is RolloutState.AWAITING_APPROVAL) == bool(waits)
    assert (rollout.start_time is None) == bool(waits)


async def test_whoever_created_it_can_not_approve_it() -> None:
    """Another one with the role that it needs can; said again, nothing more happens."""
    world = RolloutWorld(rules=APPROVED)
    rollout = await world.start()
    with pytest.raises(RefusalError, match="needs another operator's approval"):
        await world.desk.say(Word.APPROVE, operator(), "r", rollout.rollout_id, "fine")
    with pytest.raises(RefusalError, match="the role admin is needed"):
        await world.desk.say(Word.APPROVE, operator("carol.test", "operator"), "r", rollout.rollout_id, "fine")
    for _ in range(2):
        approved = await world.desk.say(Word.APPROVE, operator("bob.test"), "r", rollout.rollout_id, "fine")
        assert (approved.state, approved.approved_by) == (RolloutState.RUNNING, "bob.test")
    assert [event.identity for event in world.events(AuditEventType.ROLLOUT_APPROVED)] == ["bob.test"]
    assert len(world.events(AuditEventType.ROLLOUT_STARTED)) == 1


async def test_a_role_that_was_taken_away_while_approval_was_open() -> None:
    """What its creator may no longer begin nobody lets begin: it can be aborted alone."""
    world = RolloutWorld(rules=APPROVED)
    rollout = await world.start()
    without_role(world, "alice.test")
    with pytest.raises(RefusalError, match=r"alice\.test, who created the rollout .*, no longer has the role"):
        await world.desk.say(Word.APPROVE, operator("bob.test"), "r", rollout.rollout_id, "fine")
    aborted = await world.desk.say(Word.ABORT, operator("bob.test"), "r", rollout.rollout_id, "no")
    assert aborted.state is RolloutState.ABORTED


async def test_words_are_audited_once(world: RolloutWorld) -> None:
    """Each with who and why; what changes nothing is no event."""
    rollout = await world.start()
    for word in (Word.PAUSE, Word.PAUSE, Word.RESUME, Word.ABORT, Word.ABORT):
        await world.desk.say(word, operator("bob.test"), "r", rollout.rollout_id, "ticket 7")
    said = [(event.event_type.value, event.identity, event.reason) for event in world.store.events[2:]]
    assert said == [
        ("rollout_paused", "bob.test", "ticket 7"),
        ("rollout_resumed", "bob.test", "ticket 7"),
        ("rollout_aborted", "bob.test", "ticket 7"),
    ]


async def test_a_word_is_said_over_what_the_runner_writes(world: RolloutWorld) -> None:
    """It is written on the version that there is by then."""
    rollout = await world.start()

    def step() -> None:
        now = world.store.rollouts[rollout.rollout_id]
        world.store.rollouts[rollout.rollout_id] = replace(now, version=now.version + 1)

    world.store.overtaken = step
    paused = await world.desk.say(Word.PAUSE, operator(), "r", rollout.rollout_id, "wait")
    assert (paused.state, paused.version) == (RolloutState.PAUSED, 3)


async def test_hosts_that_hold_are_told_of_an_abort(world: RolloutWorld) -> None:
    """They keep it, and need not use it."""
    rollout = await world.start()
    await world.look()
    for name in world.names:
        world.issue(name)
    await world.look()
    world.done.clear()
    await world.desk.say(Word.ABORT, operator(), "r", rollout.rollout_id, "no")
    await world.look()
    assert {("tell", "h1.test"), ("tell", "h2.test")} <= {*world.done}
    world.activate("h1.test")
    await world.look()
    assert world.states(rollout)[1] is ItemState.HELD  # nothing becomes of it any more


async def test_what_nobody_has_ordered_is_planned_as_before_an_abort(world: RolloutWorld) -> None:
    """By its lifetime, or by the CA's window; what somebody else has planned since stays."""
    rollout = await world.start()
    await world.look()
    world.issue("h0.test")
    await world.look()
    plans = {plan.host: plan for plan in world.plans}
    opened = world.clock.now() - MINUTE
    world.plans.append(replace(plans["h2.test"], window_start=opened, window_end=opened + MINUTE))
    await world.desk.say(Word.ABORT, operator(), "r", rollout.rollout_id, "no")
    await world.look()
    again = {plan.host: (plan.renew_time, plan.cause, plan.rollout_id) for plan in world.plans[4:]}
    assert again == {
        "h1.test": (world.clock.now() + timedelta(days=30), RenewalCause.LIFETIME, ""),
        "h2.test": (opened, RenewalCause.ISSUER, ""),
    }
    other = await world.start()
    await world.look()
    world.plans.append(replace(world.plans[-1], host="h1.test", rollout_id="", renewal_request_id="drill"))
    count = len(world.plans)
    await world.desk.say(Word.ABORT, operator(), "r", other.rollout_id, "no")
    await world.look()
    assert "h1.test" not in [plan.host for plan in world.plans[count:]]


async def test_to_revoke_what_is_left_takes_an_admin(world: RolloutWorld) -> None:
    """Also where the rollout was an admin's."""
    rollout = await world.start(revoke=Revoke.AFTER_SERVED)
    caller = operator("carol.test", "operator")
    with pytest.raises(RefusalError, match="the role admin is needed to revoke what is in use"):
        await world.desk.say(Word.FINISH, caller, "r", rollout.rollout_id, "gone", revoke_remaining=True)


@pytest.mark.parametrize("word", Word)
async def test_an_unknown_rollout_is_refused(world: RolloutWorld, word: Word) -> None:
    """And where those that there are stand."""
    with pytest.raises(RefusalError, match="no such rollout; ListRollouts") as caught:
        await world.desk.say(word, operator(), "r", "r-9", "why")
    assert caught.value.refusal.reason is Reason.ORDER_NOT_FOUND


async def test_a_plan_says_what_is_in_its_way(world: RolloutWorld) -> None:
    """Hosts of another rollout, without a stream, whose agents can't hold; a profile that is gone, a service, a denial."""
    other = await world.desk.create(operator(), "r", ONE)
    world.change("h1.test", connected=False)
    world.change("h2.test", can_hold=False, blocked="an operator has denied it")
    world.change("h0.test", kind=IdentityKind.SERVICE, connected=False)
    policy = world.policy.current
    assert isinstance(policy, FakePolicy)
    gone = Grant("h1.test", IdentityKind.HOST, "h1", ())
    world.policy.policy = replace(policy, grants={**policy.grants, "h1.test": gone})
    planned = await world.desk.plan(operator(), RolloutSpec(Selection(all=True), "drill"))
    assert (planned.disconnected_count, planned.unable_count) == (1, 1)
    assert planned.refusal is None
    assert list(planned.warnings) == [
        f"the rollout {other.rollout_id} has 1 certificate of it: this one, the newer, takes over",
        "the policy no longer gives the profile shop to the holders of 1 certificate: passed over",
        "passed over, since they get no certificates: h2.test (1 host)",
        f"services {CANT_BE_TOLD}: h0.test (1 service)",
    ]


async def test_an_incident_begins_one_in_the_standing_rings() -> None:
    """Those that pick somebody; once for each request, by whichever broker. The policy's word is enough for it."""
    rings = (
        RingRule("lab", {"ring": "lab"}, bake=MINUTE),
        RingRule("first", {"ring": "first"}),
        RingRule("half", {}, percent=50),
    )
    world = RolloutWorld(rules=RolloutRules(Approval.REQUIRED, 2, rings))
    ids = [f"old-{name}" for name in world.names]
    deadline = world.clock.now() + timedelta(hours=5)
    first, begun_for = await world.desk.start_for_incident("i-1", ids[:-1], "i-1:1", "the CA wants it", deadline)
    again, found_for = await world.new_desk().start_for_incident("i-1", ids, "i-1:1", "the CA wants it", deadline)
    assert again.rollout_id == first.rollout_id
    assert ({*begun_for}, {*found_for}) == ({*ids[:-1]}, {*ids[:-1]})
    assert [ring.name for ring in first.rings] == ["first", "half"]
    assert (first.created_by, first.incident_id, first.spec.deadline) == ("incident i-1", "i-1", deadline)
    assert first.spec.selection == Selection(incident_id="i-1")
    assert (first.state, first.approved_by) == (RolloutState.RUNNING, ""), "while it waited, its hosts would renew"
    late, _ = await world.desk.start_for_incident("i-2", ids[:1], "i-2:1", "late", world.clock.now() - MINUTE)
    assert (late.spec.deadline, late.state) == (None, RolloutState.RUNNING)


async def test_what_a_rollout_has_that_has_begun() -> None:
    """Paused or halted too; of two the newer; not of one that waits for approval, or passes it over, or has ended."""
    world = RolloutWorld(rules=RolloutRules(Approval.REQUIRED, 0))
    ids = [f"old-{name}" for name in world.names]
    waiting = await world.desk.create(operator(), "a", RolloutSpec(Selection(certificate_ids=(ids[0],)), "first"))
    assert await world.desk.under_way(ids) == {}
    await world.desk.say(Word.APPROVE, operator("bob.test"), "b", waiting.rollout_id, "go")
    await world.desk.say(Word.PAUSE, operator(), "c", waiting.rollout_id, "a look")
    assert await world.desk.under_way(ids) == {ids[0]: waiting.rollout_id}
    world.clock.advance(MINUTE)
    newer = await world.desk.create(operator(), "d", RolloutSpec(Selection(certificate_ids=tuple(ids[:2])), "next"))
    assert await world.desk.under_way(ids) == {ids[0]: waiting.rollout_id}
    await world.desk.say(Word.APPROVE, operator("bob.test"), "d", newer.rollout_id, "go")
    assert await world.desk.under_way(ids) == dict.fromkeys(ids[:2], newer.rollout_id)
    await world.desk.say(Word.ABORT, operator(), "e", newer.rollout_id, "no")
    assert await world.desk.under_way(ids) == {ids[0]: waiting.rollout_id}


@pytest.mark.parametrize("point", ["rollout.create.before", "rollout.create.after"])
async def test_a_kill_around_a_creation(world: RolloutWorld, point: str) -> None:
    """All of it is there, or nothing; asked again with its id there is one."""

    def kill(name: str) -> None:
        if name == point:
            raise RuntimeError("killed")

    with mock.patch.object(desk_module, "failpoint", kill), pytest.raises(RuntimeError):
        await world.desk.create(operator(), "drill-1", ONE, chosen_id=True)
    assert len(world.store.rollouts) == (point == "rollout.create.after")
    again = await world.desk.create(operator(), "drill-1", ONE, chosen_id=True)
    assert list(world.store.rollouts) == [again.rollout_id]
    assert len(world.events(AuditEventType.ROLLOUT_CREATED)) == 1


@pytest.mark.parametrize("point", ["rollout.word.before", "rollout.word.after"])
async def test_a_kill_around_a_word(world: RolloutWorld, point: str) -> None:
    """Said again it holds, and is audited once."""
    rollout = await world.start()

    def kill(name: str) -> None:
        if name == point:
            raise RuntimeError("killed")

    with mock.patch.object(desk_module, "failpoint", kill), pytest.raises(RuntimeError):
        await world.desk.say(Word.PAUSE, operator(), "r", rollout.rollout_id, "wait")
    paused = await world.desk.say(Word.PAUSE, operator(), "r", rollout.rollout_id, "wait")
    assert paused.state is RolloutState.PAUSED
    assert len(world.events(AuditEventType.ROLLOUT_PAUSED)) == 1
