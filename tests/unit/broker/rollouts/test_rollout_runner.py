"""What is done about rollouts: in which order it is written and told, and what a kill or another broker leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from certplane.broker import metrics
from certplane.broker.events import AuditEventType
from certplane.broker.model import IdentityKind, RevocationReason
from certplane.broker.renewal.model import Selection
from certplane.broker.rollouts import revoking as revoking_module
from certplane.broker.rollouts import runner as runner_module
from certplane.broker.rollouts.desk import Word
from certplane.broker.rollouts.facts import Successor
from certplane.broker.rollouts.known import KnownRollouts
from certplane.broker.rollouts.model import (
    Finish,
    ItemState,
    Revoke,
    RingSpec,
    RolloutAction,
    RolloutSpec,
    RolloutState,
)
from certplane.broker.standing_rules import Approval, RolloutRules
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import CertificateState, RenewalCause
from tests.support.memory_store import MemoryStores
from tests.support.rollout_world import DAY, MINUTE, SECOND, TWO_RINGS, RolloutWorld, operator
from tests.support.waiting import until_in_time

REVOKING: dict[str, Any] = {"revoke": Revoke.AFTER_SERVED, "revocation_reason": RevocationReason.SUPERSEDED}


@pytest.fixture
def world() -> RolloutWorld:
    return RolloutWorld()


@asynccontextmanager
async def running(world: RolloutWorld) -> AsyncIterator[None]:
    """The broker has the role."""
    task = asyncio.create_task(world.runner.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), task.exception()


async def test_all_order_at_once_and_activate_in_turn(world: RolloutWorld) -> None:
    """The first ring's hosts may use what they get; the others hold it until their turn comes, and are told then."""
    rollout = await world.start()
    await world.look()
    assert {plan.host: plan.hold_activation for plan in world.plans} == {
        "h0.test": False,
        "h1.test": True,
        "h2.test": True,
    }
    assert {plan.rollout_id for plan in world.plans} == {rollout.rollout_id}
    for name in world.names:
        world.issue(name)
    await world.look()
    assert world.states(rollout) == [ItemState.RELEASED, ItemState.HELD, ItemState.HELD]
    assert ("tell", "h1.test") not in world.done

    world.activate("h0.test")
    await world.look()
    assert world.states(rollout) == [ItemState.DONE, ItemState.RELEASED, ItemState.RELEASED]
    assert {("tell", "h1.test"), ("tell", "h2.test")} <= {*world.done}

    world.activate("h1.test")
    world.activate("h2.test")
    ended = await world.look()
    assert ended.state is RolloutState.COMPLETED
    assert [event.event_type.value for event in world.store.events] == [
        "rollout_created",
        "rollout_started",
        "rollout_ring_released",
        "rollout_ring_baking",
        "rollout_ring_done",
        "rollout_ring_released",
        "rollout_ring_baking",
        "rollout_ring_done",
        "rollout_completed",
    ]
    assert {event.rollout_id for event in world.store.events} == {rollout.rollout_id}
    assert world.known.open == ()


async def test_a_held_certificate_is_used_before_the_old_one_ends(world: RolloutWorld) -> None:
    """Whatever becomes of the rollout, a day before; of a short life with a tenth left."""
    await world.start()
    await world.look()
    held = next(plan for plan in world.plans if plan.hold_activation)
    assert held.activate_by_time == world.records["old-h1.test"].not_after - DAY
    item = replace(world.store.kept[held.rollout_id]["old-h1.test"], not_after=world.clock.now() + 10 * MINUTE)
    rollout = world.store.rollouts[held.rollout_id]
    plan = runner_module.plan_of(rollout, item, world.clock.now())
    assert plan.activate_by_time == world.clock.now() + 9 * MINUTE


async def test_a_host_that_fails_halts_it_and_no_other_is_told(world: RolloutWorld) -> None:
    """It is named with its own words; resumed, it goes on where it was."""
    rollout = await world.start()
    await world.look()
    for name in world.names:
        world.issue(name)
    await world.look()
    world.done.clear()
    world.fail("h0.test")
    halted = await world.look()
    assert halted.state is RolloutState.HALTED
    assert "RELOAD nginx.service" in halted.state_reason
    assert world.states(rollout) == [ItemState.FAILED, ItemState.HELD, ItemState.HELD]
    assert not [each for each in world.done if each[1] in {"h1.test", "h2.test"}]
    (event,) = world.events(AuditEventType.ROLLOUT_CERTIFICATE_FAILED)
    assert (event.identity, event.certificate_id, event.reason) == ("h0.test", "old-h0.test", "RELOAD nginx.service")
    assert world.meter.labelled[metrics.ROLLOUTS, (("state", "halted"),)] == 1
    for _ in range(3):
        world.clock.advance(MINUTE)
        await world.look()
    assert len(world.events(AuditEventType.ROLLOUT_HALTED, AuditEventType.ROLLOUT_CERTIFICATE_FAILED)) == 2

    await world.desk.say(Word.RESUME, operator(), "r", rollout.rollout_id, "mended")
    world.activate("h0.test")
    await world.look()
    assert world.states(rollout) == [ItemState.DONE, ItemState.RELEASED, ItemState.RELEASED]


@pytest.mark.parametrize("word", [Word.ABORT, Word.FINISH])
async def test_plans_of_what_has_ended_are_taken_back_whoever_was_killed(world: RolloutWorld, word: Word) -> None:
    """Also what the CA has refused; at the next try where the store is away, and by the next holder of the role."""
    rollout = await world.start(rings=())
    await world.look()
    world.issue("h0.test")
    world.activate("h0.test")
    world.hold("h1.test", state=CertificateState.FAILED, for_a_person=True, next_attempt_time=world.clock.now())
    await world.look()
    assert world.states(rollout) == [ItemState.DONE, ItemState.FAILED, ItemState.REQUESTED]
    await world.desk.say(word, operator(), "r", rollout.rollout_id, "enough")
    successor = world.new_runner()
    count = len(world.plans)
    world.plan_errors = [RefusalError(Reason.STORE_UNAVAILABLE, "away")]
    with pytest.raises(RefusalError, match="away"):
        await successor.look()
    await successor.look()
    again = {plan.host: (plan.cause, plan.rollout_id, plan.hold_activation) for plan in world.plans[count:]}
    assert again == dict.fromkeys(["h1.test", "h2.test"], (RenewalCause.LIFETIME, "", False))
    count = len(world.plans)
    await world.look()
    await world.new_runner().look()
    assert len(world.plans) == count, "what was taken back is nobody's"


@pytest.mark.parametrize("replaced", ["old-h1.test", "new-h1.test"])
async def test_what_a_host_holds_counts_whatever_was_known_before(world: RolloutWorld, replaced: str) -> None:
    """Ordered anew, or renewed while it was held: that is what is released, and halts the rollout where it fails."""
    rollout = await world.start(rings=(RingSpec("rest", rest=True),))
    await world.look()
    for name in world.names:
        world.issue(name)
    await world.look()
    newer = world.records["newer"] = world.record("newer", "h1.test")
    world.found[replaced] = Successor(replaced, "newer", newer.serial_number, "acme", same_key=False)
    world.hold("h1.test", state=CertificateState.ISSUED, issued_serial_number=newer.serial_number)
    await world.look()
    assert world.store.kept[rollout.rollout_id]["old-h1.test"].new_certificate_id == "newer"
    world.hold(
        "h1.test",
        state=CertificateState.DEGRADED,
        issued_serial_number=newer.serial_number,
        next_attempt_time=world.clock.now() + MINUTE,
        error_cause="RELOAD nginx.service",
    )
    assert (await world.look()).state is RolloutState.HALTED


async def test_what_another_broker_has_written_counts(world: RolloutWorld) -> None:
    """Nothing of the step is told that could not be written; the next look goes on from what is durable."""
    rollout = await world.start()
    await world.look()
    for name in world.names:
        world.issue(name)
    await world.look()
    world.done.clear()

    def pause() -> None:
        now = world.store.rollouts[rollout.rollout_id]
        world.store.rollouts[rollout.rollout_id] = replace(
            now, state=RolloutState.PAUSED, version=now.version + 1, state_reason="elsewhere"
        )

    world.store.overtaken = pause
    world.activate("h0.test")
    after = await world.look()
    assert after.state is RolloutState.PAUSED
    assert world.done == []
    await world.look()
    assert world.states(rollout) == [ItemState.DONE, ItemState.HELD, ItemState.HELD]
    assert world.done == []


@pytest.mark.parametrize(
    "point", ["rollout.plans.before", "rollout.plans.after", "rollout.step.before", "rollout.step.after"]
)
async def test_a_kill_between_any_two_writes_changes_nothing(world: RolloutWorld, point: str) -> None:
    """Whoever has the role next finds the rows, and what was told is told again."""

    class KilledError(Exception):
        pass

    def kill(name: str) -> None:
        if name == point:
            raise KilledError

    rollout = await world.start()
    with mock.patch.object(runner_module, "failpoint", kill), pytest.raises(KilledError):
        await world.look()
    world.runner = world.new_runner()
    await world.look()
    assert world.states(rollout) == [ItemState.REQUESTED] * 3
    assert {(plan.host, plan.hold_activation) for plan in world.plans} == {
        ("h0.test", False),
        ("h1.test", True),
        ("h2.test", True),
    }


async def test_a_rekey_blocks_the_keys_of_hosts_that_are_away(world: RolloutWorld) -> None:
    """From its start, and not when they come; said once, though whoever takes it over sees to it again."""
    for name in world.names:
        world.change(name, connected=False)
    await world.start(action=RolloutAction.REKEY)
    await world.look()
    assert (world.plans, {*world.blocked}) == ([], {f"old-{name}" for name in world.names})
    world.change("h0.test", connected=True)
    await world.look()
    world.blocked.clear()
    await world.new_runner().look()
    assert len(world.blocked) == len(world.names)
    (event,) = world.events(AuditEventType.ROLLOUT_KEYS_BLOCKED)
    assert event.count == len(world.names)


async def test_a_rekey_blocks_the_old_keys_first(world: RolloutWorld) -> None:
    """Before any host is told; and the new certificate must have another key."""
    rollout = await world.start(action=RolloutAction.REKEY)
    await world.look()
    assert {*world.blocked} == {f"old-{name}" for name in world.names}
    kinds = [kind for kind, _ in world.done]
    assert kinds == sorted(kinds)  # block before plan
    assert all(plan.new_key for plan in world.plans)
    world.issue("h0.test", same_key=True)
    halted = await world.look()
    assert halted.state is RolloutState.HALTED
    assert "for the same key" in halted.state_reason
    assert world.states(rollout)[0] is ItemState.FAILED


async def test_a_move_says_where_to(world: RolloutWorld) -> None:
    """What was issued elsewhere isn't moved."""
    rollout = await world.start(action=RolloutAction.MOVE, issuer="second")
    await world.look()
    assert {plan.to_issuer for plan in world.plans} == {"second"}
    world.issue("h0.test", issuer="second")
    world.issue("h1.test")
    await world.look()
    assert world.states(rollout)[:2] == [ItemState.RELEASED, ItemState.FAILED]


async def test_what_is_replaced_is_revoked_once_its_ring_is_done(world: RolloutWorld) -> None:
    """And nobody uses it any more; the rollout ends with the last one."""
    rollout = await world.start(**REVOKING)
    async with running(world):
        await until_in_time(world.clock, lambda: len(world.plans) == 3)
        world.issue("h0.test")
        await until_in_time(world.clock, lambda: world.states(rollout)[0] is ItemState.RELEASED)
        assert world.revoked == []
        world.activate("h0.test")
        await until_in_time(world.clock, lambda: world.revoked == ["old-h0.test"])
        for name in world.names[1:]:
            world.issue(name)
            world.activate(name)
        await until_in_time(
            world.clock, lambda: world.store.rollouts[rollout.rollout_id].state is RolloutState.COMPLETED
        )
    assert {*world.revoked} == {f"old-{name}" for name in world.names}
    assert len(world.revoked) == 3
    assert world.store.rollouts[rollout.rollout_id].revoked_count == 3


async def test_what_is_served_is_not_revoked(world: RolloutWorld) -> None:
    """Under another name on its host, say: the rollout waits, and an operator's word decides."""
    rollout = await world.start(**REVOKING)
    async with running(world):
        for name in world.names:
            world.issue(name)
            world.activate(name)
        other = world.index.known["h0.test"].certificates[0]
        old = world.records["old-h0.test"].serial_number
        values = {each: getattr(other, each) for each in other.__struct_fields__}
        beside = type(other)(**{**values, "name": "mail", "served_serial_number": old})
        world.change("h0.test", certificates=(other, beside))
        await until_in_time(world.clock, lambda: len(world.revoked) == 2)
        for _ in range(5):
            world.clock.advance(MINUTE)
            await asyncio.sleep(0)
        assert "old-h0.test" not in world.revoked
        assert world.store.rollouts[rollout.rollout_id].state is RolloutState.FINISHING
        await world.desk.say(Word.FINISH, operator(), "r", rollout.rollout_id, "gone", revoke_remaining=True)
        await until_in_time(world.clock, lambda: "old-h0.test" in world.revoked)


async def test_a_paused_rollout_revokes_nothing(world: RolloutWorld) -> None:
    """What the CA has refused is tried again only once it goes on."""
    rollout = await world.start(**REVOKING)
    world.revocation_errors = [RefusalError(Reason.ISSUER_UNAVAILABLE, "the CA doesn't answer")] * 3
    async with running(world):
        for name in world.names:
            world.issue(name)
            world.activate(name)
        await until_in_time(world.clock, lambda: not world.revocation_errors)
        await world.desk.say(Word.PAUSE, operator(), "r", rollout.rollout_id, "wait")
        await until_in_time(world.clock, lambda: world.known.open and world.known.open[0].state is RolloutState.PAUSED)
        for _ in range(10):
            world.clock.advance(timedelta(hours=1))
            await asyncio.sleep(0)
        assert world.revoked == []
        await world.desk.say(Word.RESUME, operator(), "r", rollout.rollout_id, "go on")
        await until_in_time(world.clock, lambda: len(world.revoked) == 3, step=SECOND)


async def test_what_a_service_had_is_left_to_an_operators_word(world: RolloutWorld) -> None:
    """Nobody sees what it uses."""
    world.change("h2.test", kind=IdentityKind.SERVICE, connected=False)
    rollout = await world.start(**REVOKING)
    async with running(world):
        for name in world.names:
            world.issue(name)
            world.activate(name)
        world.change("h2.test", kind=IdentityKind.SERVICE, connected=False)
        await until_in_time(world.clock, lambda: len(world.revoked) == 2)
        for _ in range(5):
            world.clock.advance(MINUTE)
            await asyncio.sleep(0)
        assert world.revoked == ["old-h0.test", "old-h1.test"]
        said = await world.desk.say(Word.FINISH, operator(), "r", rollout.rollout_id, "it is", revoke_remaining=True)
        assert said.finish is Finish.REVOKE
        await until_in_time(world.clock, lambda: "old-h2.test" in world.revoked)


async def test_of_two_rollouts_the_newer_has_a_certificate(world: RolloutWorld) -> None:
    """The older one passes it over, and says why."""
    older = await world.start()
    await world.look()
    world.clock.advance(SECOND)
    newer = await world.start(RolloutSpec(Selection(hosts=("h1.test",)), "newer"))
    await world.look()
    await world.look()
    assert world.states(older)[1] is ItemState.SKIPPED
    (event,) = world.events(AuditEventType.ROLLOUT_CERTIFICATE_SKIPPED)
    assert event.reason == f"the newer rollout {newer.rollout_id} has it"
    assert world.plans[-1].rollout_id == newer.rollout_id


async def test_a_host_without_a_place_of_its_own_to_hold_it_is_told_in_its_turn(world: RolloutWorld) -> None:
    """An older agent would use it at once: it is told when its ring is released."""
    world.change("h1.test", can_hold=False)
    rollout = await world.start()
    await world.look()
    assert {plan.host for plan in world.plans} == {"h0.test", "h2.test"}
    world.issue("h0.test")
    world.activate("h0.test")
    await world.look()
    assert [(plan.host, plan.hold_activation) for plan in world.plans][-1] == ("h1.test", False)
    assert world.states(rollout)[1] is ItemState.REQUESTED


async def test_a_store_that_fails_is_tried_again(world: RolloutWorld, caplog: pytest.LogCaptureFixture) -> None:
    """Said once; nothing is told meanwhile."""
    rollout = await world.start()
    world.store.errors = [RefusalError(Reason.STORE_UNAVAILABLE, "the disk is full")] * 3
    async with running(world):
        await until_in_time(world.clock, lambda: world.states(rollout) == [ItemState.REQUESTED] * 3)
    assert caplog.text.count("could not go on with rollouts") == 1
    assert [each for each in world.done if each[0] == "tell"] == []


async def test_a_rollout_that_waits_for_approval_does_nothing() -> None:
    """Until somebody else has approved it."""
    world = RolloutWorld(rules=RolloutRules(Approval.REQUIRED))
    rollout = await world.start()
    assert rollout.state is RolloutState.AWAITING_APPROVAL
    await world.look()
    assert world.plans == []
    await world.desk.say(Word.APPROVE, operator("bob.test"), "r", rollout.rollout_id, "fine")
    await world.look()
    assert len(world.plans) == 3


@pytest.mark.parametrize("point", ["rollout.revoke.before", "rollout.revoke.after"])
async def test_a_kill_around_a_revocation_has_it_done_once_more(world: RolloutWorld, point: str) -> None:
    """What the CA has revoked and nobody wrote down is asked for again, and comes to its end."""
    rollout = await world.start(RolloutSpec(Selection(hosts=("h0.test",)), "drill"), **REVOKING)
    passed: list[str] = []

    def kill(name: str) -> None:
        if name == point and not passed:
            passed.append(name)
            raise RuntimeError("killed")

    world.issue("h0.test")
    world.activate("h0.test")
    with mock.patch.object(revoking_module, "failpoint", kill):
        async with running(world):
            await until_in_time(world.clock, lambda: passed)
    world.runner = world.new_runner()
    async with running(world):
        await until_in_time(
            world.clock, lambda: world.store.rollouts[rollout.rollout_id].state is RolloutState.COMPLETED
        )
    assert {*world.revoked} == {"old-h0.test"}
    assert world.store.rollouts[rollout.rollout_id].revoked_count == 1


async def test_over_the_database_it_is_the_same(world: RolloutWorld) -> None:
    """Each step is there after it, and another broker goes on from it: a new runner for each look."""
    stores = MemoryStores.open(world.clock)
    world.known = KnownRollouts(stores.rollouts, world.watchers)
    world.store = stores.rollouts  # type: ignore[assignment] # the port is the same
    world.desk = world.new_desk()
    rollout = await world.desk.create(operator(), "r", RolloutSpec(Selection(all=True), "drill", rings=TWO_RINGS))

    async def look() -> list[ItemState]:
        world.runner = world.new_runner()
        await world.runner.look()
        return [item.state for item in await stores.rollouts.items(rollout.rollout_id)]

    assert await look() == [ItemState.REQUESTED] * 3
    for name in world.names:
        world.issue(name)
    assert await look() == [ItemState.RELEASED, ItemState.HELD, ItemState.HELD]
    assert [each.host for each in await stores.rollouts.activations_of(world.names)] == ["h0.test"]
    world.activate("h0.test")
    assert await look() == [ItemState.DONE, ItemState.RELEASED, ItemState.RELEASED]
    assert {each.host for each in await stores.rollouts.activations_of(world.names)} == {"h1.test", "h2.test"}
    for name in world.names:
        world.activate(name)
    assert await look() == [ItemState.DONE] * 3
    ended = await stores.rollouts.get(rollout.rollout_id)
    assert ended is not None
    assert ended.state is RolloutState.COMPLETED
    assert stores.database.events[-1].event_type is AuditEventType.ROLLOUT_COMPLETED
    assert stores.database.events[-1].rollout_id == rollout.rollout_id
