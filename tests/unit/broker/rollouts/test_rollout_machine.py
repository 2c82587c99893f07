"""What a rollout does next, rule by rule."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from certplane.broker.rollouts import words
from certplane.broker.rollouts.machine import AT_ONCE
from certplane.broker.rollouts.model import (
    Finish,
    Halt,
    Happened,
    ItemFacts,
    ItemState,
    Revoke,
    RingSpec,
    RingState,
    RolloutState,
    Success,
)
from tests.support.rollouts import CANARY_THEN_REST, MINUTE, NOT_AFTER, START, Campaign, a_spec

HOUR = timedelta(hours=1)


def until_canary_is_let_activate(*sizes: int, **changes: Any) -> Campaign:
    """A rollout whose hosts have all asked and have their certificates, and whose first ring may activate."""
    campaign = Campaign.of(*sizes, **changes)
    campaign.step()
    campaign.issue()
    campaign.step(MINUTE)
    return campaign


def until_canary_bakes(*sizes: int, **changes: Any) -> Campaign:
    """And it has activated."""
    campaign = until_canary_is_let_activate(*sizes, **changes)
    campaign.activate()
    campaign.step(MINUTE)
    assert campaign.ring_states[0] is RingState.BAKING
    return campaign


def resume(campaign: Campaign) -> None:
    """An operator resumes."""
    campaign.rollout = words.resume(campaign.rollout, "operator-1", "looked at it", campaign.now)


def test_all_goes_well() -> None:
    """Everything is ordered at once; rings activate one after the other, the first one watched in between."""
    campaign = Campaign.of(2, 3)
    first = campaign.step()
    assert {item.certificate_id for item in first.told} == set(campaign.items)
    assert [item.release_time is None for item in first.told] == [False, False, True, True, True]
    assert [(each.what, each.ring) for each in first.happened] == [(Happened.RING_RELEASED, "canary")]
    campaign.issue()
    held = campaign.step(MINUTE)
    assert campaign.in_state(ItemState.RELEASED) == [0, 1]
    assert campaign.in_state(ItemState.HELD) == [2, 3, 4]
    assert held.released == ()  # those of the ring were never held: it was released when they were told
    campaign.activate()
    baking = campaign.step(MINUTE)
    assert [(each.what, each.detail) for each in baking.happened] == [(Happened.RING_BAKING, "for 0:10:00")]
    assert baking.next_time == campaign.now + 10 * MINUTE
    assert campaign.step(9 * MINUTE).changed is False
    rest = campaign.step(MINUTE)
    assert [each.what for each in rest.happened] == [Happened.RING_DONE, Happened.RING_RELEASED]
    assert [item.certificate_id for item in rest.released] == ["c002", "c003", "c004"]
    campaign.activate()
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.COMPLETED)
    assert campaign.rollout.end_time == campaign.now
    assert campaign.rollout.version == 1 + sum(made.changed for made in campaign.steps)


def test_nothing_is_done_before_approval_or_after_the_end() -> None:
    """Whatever is known."""
    for state in (RolloutState.AWAITING_APPROVAL, RolloutState.COMPLETED, RolloutState.ABORTED):
        campaign = Campaign.of(1, 1)
        campaign.rollout = replace(campaign.rollout, state=state)
        campaign.know(new_certificate_id="n", installed=True)
        assert campaign.step().changed is False


def test_what_is_not_known_changes_nothing() -> None:
    """A broker that has just begun to look takes nobody for failed, silent or done."""
    campaign = until_canary_bakes(1, 1)
    campaign.facts.clear()
    campaign.watched_since = campaign.now
    assert campaign.step(HOUR * 0).changed is False


@pytest.mark.parametrize("state", [RolloutState.PAUSED, RolloutState.HALTED])
def test_while_it_does_not_run_nobody_is_told_or_let_activate(state: RolloutState) -> None:
    """What hosts do all the same is seen."""
    campaign = until_canary_is_let_activate(1, 2)
    campaign.rollout = replace(campaign.rollout, state=state)
    campaign.activate()
    for _ in range(30):
        made = campaign.step(MINUTE)
        assert (made.told, made.released, made.revoke) == ((), (), ())
    assert campaign.in_state(ItemState.DONE) == [0]
    assert campaign.in_state(ItemState.HELD) == [1, 2]


def test_a_failure_halts_it_and_names_the_host() -> None:
    """In the host's own words; no other ring begins."""
    campaign = until_canary_is_let_activate(2, 3)
    campaign.know(1, failure="nginx: unknown directive", failure_mark="1")
    made = campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.HALTED)
    assert campaign.rollout.state_reason == "ring canary: 1 of 2 hosts failed: web001: nginx: unknown directive"
    assert [(each.what, each.ring) for each in made.happened] == [(Happened.HALTED, "canary")]
    assert campaign.ring_states == [RingState.FAILED, RingState.WAITING]
    campaign.activate()
    campaign.step(HOUR)
    assert campaign.in_state(ItemState.HELD) == [2, 3, 4]


def test_a_failure_while_a_ring_is_watched_halts_it() -> None:
    """That is what it is watched for."""
    for changes in (
        {"failure": "verify: serves the old one", "failure_mark": "9"},
        {"served": False},
        {"installed": False},
    ):
        campaign = until_canary_bakes(1, 1)
        campaign.know(0, **changes)
        campaign.step(MINUTE)
        assert campaign.is_in(RolloutState.HALTED), changes
        assert campaign.in_state(ItemState.FAILED) == [0]


def test_a_host_that_goes_silent_counts_as_failed() -> None:
    """After it was let activate, whether it has said that it did or not."""
    for begin in (until_canary_is_let_activate, until_canary_bakes):
        campaign = begin(1, 1)
        campaign.know(0, is_there=False, heard_time=campaign.now)
        made = campaign.step(9 * MINUTE)
        assert campaign.is_in(RolloutState.RUNNING)
        assert made.next_time == campaign.now + MINUTE
        campaign.step(MINUTE)
        assert campaign.is_in(RolloutState.HALTED)
        assert campaign.items["c000"].reason == "not heard for 10m since it was let activate"


def test_a_host_that_comes_once_in_a_while_may_be_silent_for_longer() -> None:
    """By two of its intervals."""
    campaign = until_canary_is_let_activate(1, 1)
    campaign.know(0, is_there=False, heard_time=campaign.now, interval=HOUR)
    campaign.step(2 * HOUR)
    assert campaign.is_in(RolloutState.RUNNING)
    campaign.step(10 * MINUTE)
    assert campaign.is_in(RolloutState.HALTED)


def test_silence_while_nobody_listened_proves_nothing() -> None:
    """Brokers were away, or a clock jumped: it counts from when they listened again."""
    campaign = until_canary_bakes(1, 1)
    campaign.know(0, is_there=False, heard_time=campaign.now)
    campaign.watched_since = campaign.now + 5 * HOUR
    campaign.step(5 * HOUR)
    assert campaign.is_in(RolloutState.RUNNING)
    assert campaign.ring_states[0] is RingState.BAKING  # its ten minutes begin again, since nobody watched them
    campaign.step(10 * MINUTE)
    assert campaign.is_in(RolloutState.HALTED)


def test_a_clock_that_is_put_back_makes_a_ring_bake_anew() -> None:
    """And no longer than that."""
    campaign = until_canary_bakes(1, 1)
    campaign.now -= 3 * HOUR
    campaign.watched_since = campaign.now
    made = campaign.step()
    assert made.next_time == campaign.now + 10 * MINUTE
    campaign.step(9 * MINUTE)
    assert campaign.ring_states[0] is RingState.BAKING
    campaign.step(MINUTE)
    assert campaign.ring_states == [RingState.DONE, RingState.RELEASED]


def test_a_clock_that_is_put_back_hides_no_silence() -> None:
    """A time that is still to come isn't when a host was heard."""
    campaign = until_canary_is_let_activate(1, 1)
    campaign.know(0, is_there=False, heard_time=campaign.now)
    campaign.now -= 3 * HOUR
    campaign.watched_since = campaign.now
    campaign.step(10 * MINUTE)
    assert campaign.is_in(RolloutState.HALTED)


def test_what_failed_before_a_resume_is_tried_again_and_does_not_halt_again() -> None:
    """An operator has seen it; another host still does."""
    campaign = until_canary_is_let_activate(3, 1)
    campaign.know(0, failure="reload failed", failure_mark="1")
    campaign.step(MINUTE)
    resume(campaign)
    made = campaign.step(MINUTE)
    assert [item.certificate_id for item in made.released] == ["c000"]  # what was issued is used
    campaign.know(0, failure="reload failed", failure_mark="2")
    campaign.step(MINUTE)
    assert campaign.in_state(ItemState.FAILED) == [0]
    assert campaign.is_in(RolloutState.RUNNING)
    campaign.know(1, failure="reload failed", failure_mark="1")
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.HALTED)


def test_a_resumed_ring_goes_on_without_the_host_that_fails_again() -> None:
    """It is done when all others are, and is seen as what is left at the end."""
    campaign = until_canary_is_let_activate(2, 1)
    campaign.know(0, failure="reload failed", failure_mark="1")
    campaign.step(MINUTE)
    resume(campaign)
    campaign.step()
    campaign.know(0, failure="reload failed", failure_mark="2")
    for _ in range(30):
        campaign.activate(1, 2)
        campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.FINISHING)
    assert campaign.in_state(ItemState.FAILED) == [0]
    assert campaign.in_state(ItemState.DONE) == [1, 2]


def test_a_ring_in_which_all_fail_again_halts_it_again() -> None:
    """Else the whole fleet were the first that tries what no host of the first ring could use."""
    campaign = until_canary_is_let_activate(2, 2)
    for mark in ("1", "2", "3"):
        campaign.know(0, 1, failure="reload failed", failure_mark=mark)
        campaign.step(MINUTE)
        assert campaign.is_in(RolloutState.HALTED)
        assert campaign.in_state(ItemState.HELD) == [2, 3]
        resume(campaign)
        campaign.step(MINUTE)
    campaign.know(0, 1, failure="reload failed", failure_mark="4")
    campaign.step(MINUTE)
    assert "none of its hosts has the new certificate in use: " in campaign.rollout.state_reason
    resume(campaign)
    campaign.step()
    campaign.know(0, 1, failure="", failure_mark="")
    campaign.run()
    assert campaign.is_in(RolloutState.COMPLETED)


def test_the_last_ring_may_fail_as_a_whole() -> None:
    """Nobody comes after it."""
    campaign = Campaign.of(1, 1)
    campaign.step()
    for _ in range(14):
        campaign.issue()
        campaign.activate(0)
        campaign.step(MINUTE)
    campaign.know(1, failure="reload failed", failure_mark="1")
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.HALTED)
    resume(campaign)
    campaign.step()
    campaign.know(1, failure="reload failed", failure_mark="2")
    for _ in range(10):
        campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.FINISHING)


def test_a_request_that_failed_is_made_again_after_a_resume() -> None:
    """Its failure of before is none of the new try."""
    campaign = Campaign.of(1, 1)
    campaign.step()
    campaign.know(0, failure="CAA forbids it", failure_mark="1")
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.HALTED)
    resume(campaign)
    made = campaign.step(MINUTE)
    assert [item.certificate_id for item in made.told] == ["c000"]
    campaign.step(MINUTE)
    assert campaign.in_state(ItemState.REQUESTED) == [0, 1]


def test_failures_after_a_resume_are_counted_up_to_the_bound() -> None:
    """None of them is tried again by the word that was said before it."""
    campaign = until_canary_is_let_activate(5, 1, spec=a_spec(halt=Halt(failed_hosts=2)))
    campaign.know(0, 1, failure="reload failed", failure_mark="1")
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.HALTED)
    resume(campaign)
    campaign.step()
    campaign.know(2, failure="reload failed", failure_mark="1")
    for _ in range(3):
        assert campaign.step(MINUTE).released == ()
    assert campaign.in_state(ItemState.FAILED) == [2]
    assert campaign.is_in(RolloutState.RUNNING)
    campaign.know(3, failure="reload failed", failure_mark="1")
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.HALTED)


def test_what_is_excused_is_the_order_that_had_failed_and_no_reload_after_it() -> None:
    """Nobody has seen that one before: half of a fleet that the CA refused for a while must not be let break."""
    campaign = Campaign.of(1, 1)
    campaign.step()
    campaign.know(0, failure="CAA forbids it", failure_mark="1")
    campaign.step(MINUTE)
    resume(campaign)
    campaign.step(MINUTE)
    campaign.know(0, failure="", failure_mark="")
    campaign.issue(0)
    campaign.step(MINUTE)
    campaign.step(MINUTE)
    assert campaign.in_state(ItemState.RELEASED) == [0]
    campaign.know(0, failure="reload failed", failure_mark="2")
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.HALTED)


def test_what_can_not_be_tried_again_is_waited_for_by_nobody() -> None:
    """A certificate of another CA than the rollout moves to was issued: the old one is in force no more."""
    campaign = Campaign.of(1, 1)
    campaign.step()
    campaign.know(0, failure="issued by another one", failure_mark="n", is_final=True)
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.HALTED)
    resume(campaign)
    for _ in range(5):
        assert "c000" not in [item.certificate_id for item in campaign.step(MINUTE).told]
        campaign.issue(1)
        campaign.activate(1)
    assert campaign.in_state(ItemState.FAILED) == [0]
    assert campaign.in_state(ItemState.DONE) == [1]
    assert campaign.is_in(RolloutState.FINISHING)


def test_nobody_waits_for_a_service() -> None:
    """It renews when it asks: its ring goes on without it, and the rollout ends when it has come."""
    campaign = Campaign.of(2, 1)
    campaign.know(0, can_be_told=False, can_hold=False)
    for _ in range(20):
        campaign.step(MINUTE)
        campaign.issue(1, 2)
        campaign.activate(1, 2)
    assert campaign.is_in(RolloutState.FINISHING)
    assert campaign.in_state(ItemState.REQUESTED) == [0]
    campaign.know(0, new_certificate_id="n", installed=True)
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.COMPLETED)


def test_a_ring_of_services_alone_is_tried_by_nobody() -> None:
    """It halts as one whose hosts are all away does."""
    campaign = Campaign.of(1, 1)
    campaign.know(0, can_be_told=False, can_hold=False)
    campaign.step()
    campaign.step(10 * MINUTE)
    assert campaign.is_in(RolloutState.HALTED)
    assert "nothing was tried" in campaign.rollout.state_reason


def test_a_failure_of_before_the_rollout_is_none_of_it() -> None:
    """A host that fails to renew anyway is told like the others."""
    campaign = Campaign.of(1, 1)
    campaign.know(0, failure="CAA forbids it", failure_mark="1")
    campaign.step()
    campaign.step(MINUTE)
    assert campaign.in_state(ItemState.REQUESTED) == [0, 1]


def test_failures_of_a_later_ring_halt_it_when_its_turn_comes() -> None:
    """The rings before aren't held up by it, and nobody of it is let activate."""
    campaign = until_canary_is_let_activate(1, 2)
    campaign.know(2, failure="the CA refuses", failure_mark="1")
    campaign.activate()
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.RUNNING)
    campaign.step(11 * MINUTE)
    assert campaign.is_in(RolloutState.HALTED)
    assert campaign.ring_states == [RingState.DONE, RingState.FAILED]
    assert campaign.in_state(ItemState.HELD) == [1]
    resume(campaign)
    campaign.step()
    assert campaign.in_state(ItemState.RELEASED) == [1, 2]


@pytest.mark.parametrize(
    ("halt", "failed", "halts"),
    [
        (Halt(), 1, True),
        (Halt(failed_hosts=3), 2, False),
        (Halt(failed_hosts=3), 3, True),
        (Halt(failed_hosts=0, failed_percent=30), 2, False),
        (Halt(failed_hosts=0, failed_percent=30), 3, True),
        (Halt(failed_hosts=2, failed_percent=30), 2, True),
        (Halt(failed_hosts=9, failed_percent=100), 9, True),
        (Halt(failed_hosts=10, failed_percent=100), 9, False),
    ],
)
def test_how_many_failures_halt_it(halt: Halt, failed: int, halts: bool) -> None:
    """Whichever bound is reached first."""
    campaign = until_canary_is_let_activate(10, 1, spec=a_spec(halt=halt))
    campaign.know(*range(failed), failure="no", failure_mark="1")
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.HALTED) is halts


def test_hosts_that_are_away_are_told_when_they_come() -> None:
    """They hold nobody up, and are what the rollout waits for at its end."""
    campaign = Campaign.of(2, 2)
    campaign.know(1, 3, is_there=False)
    campaign.step()
    assert campaign.in_state(ItemState.WAITING) == [1, 3]
    for _ in range(30):
        campaign.issue()
        campaign.activate()
        campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.FINISHING)
    assert campaign.in_state(ItemState.WAITING) == [1, 3]
    campaign.know(1, 3, is_there=True)
    assert all(item.release_time is not None for item in campaign.step().told)
    campaign.run()
    assert campaign.is_in(RolloutState.COMPLETED)


def test_a_host_that_goes_away_with_a_held_certificate_is_let_activate_when_it_comes_back() -> None:
    """It isn't let activate while nobody would see what comes of it."""
    campaign = until_canary_bakes(1, 2)
    campaign.know(2, is_there=False)
    campaign.step(10 * MINUTE)
    assert campaign.in_state(ItemState.RELEASED) == [1]
    assert campaign.in_state(ItemState.HELD) == [2]
    campaign.activate()
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.FINISHING)
    campaign.know(2, is_there=True)
    campaign.run()
    assert campaign.is_in(RolloutState.COMPLETED)


def test_a_ring_of_which_no_host_is_there_halts_it() -> None:
    """Else the next ring were the first that tries the new certificates. An operator may go on without."""
    campaign = Campaign.of(2, 2)
    campaign.know(0, 1, is_there=False)
    assert campaign.step().next_time == START + 10 * MINUTE
    campaign.step(10 * MINUTE)
    assert campaign.is_in(RolloutState.HALTED)
    assert campaign.rollout.state_reason == ("ring canary: 0 of 2 hosts there, so that nothing was tried on any")
    assert campaign.in_state(ItemState.REQUESTED) == [2, 3]
    resume(campaign)
    for _ in range(10):
        campaign.issue()
        campaign.activate()
        campaign.step(MINUTE)
    assert campaign.in_state(ItemState.DONE) == [2, 3]
    assert campaign.is_in(RolloutState.FINISHING)


def test_a_last_ring_of_hosts_that_are_away_just_waits_for_them() -> None:
    """Nobody comes after it."""
    campaign = Campaign.of(1, 1)
    campaign.know(1, is_there=False)
    for _ in range(40):
        campaign.issue()
        campaign.activate()
        campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.FINISHING)


def test_agents_that_cannot_hold_are_told_when_their_ring_is_released() -> None:
    """And activate at once."""
    campaign = Campaign.of(1, 2)
    campaign.know(can_hold=False)
    assert [item.certificate_id for item in campaign.step().told] == ["c000"]
    campaign.issue()
    campaign.step(MINUTE)
    campaign.activate()
    campaign.step(MINUTE)
    assert campaign.in_state(ItemState.WAITING) == [1, 2]
    made = campaign.step(10 * MINUTE)
    assert [item.certificate_id for item in made.told] == ["c001", "c002"]
    assert all(item.release_time == campaign.now for item in made.told)


def test_an_agent_that_can_no_longer_hold_is_told_in_its_turn() -> None:
    """Its host went back to an older release before it had ordered: of a plan that holds it never hears."""
    campaign = Campaign.of(1, 2)
    assert [item.certificate_id for item in campaign.step().told] == ["c000", "c001", "c002"]
    campaign.know(1, can_hold=False)
    campaign.issue(0, 2)
    campaign.step(MINUTE)
    campaign.activate(0)
    campaign.step(MINUTE)
    assert campaign.items["c001"].state is ItemState.REQUESTED
    made = campaign.step(10 * MINUTE)
    assert [(item.certificate_id, item.release_time) for item in made.told] == [("c001", campaign.now)]
    assert not campaign.step(MINUTE).told


def test_items_that_have_nothing_to_do_any_more_are_passed_over() -> None:
    """A ring of nothing else is passed at once."""
    campaign = Campaign.of(1, 1)
    campaign.know(0, gone="its host was forgotten")
    campaign.step()
    assert campaign.items["c000"].state is ItemState.SKIPPED
    assert campaign.items["c000"].reason == "its host was forgotten"
    assert campaign.ring_states == [RingState.DONE, RingState.RELEASED]
    campaign.run()
    assert campaign.is_in(RolloutState.COMPLETED)


def test_all_gone_completes_it() -> None:
    """A policy change took the profile away in the middle."""
    campaign = until_canary_is_let_activate(2, 2)
    campaign.know(gone="policy doesn't give it the profile web any more")
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.COMPLETED)


def test_an_operator_may_activate_by_hand() -> None:
    """What is in use is done, whatever its ring."""
    campaign = until_canary_is_let_activate(1, 2)
    campaign.know(1, installed=True, served=True)
    campaign.step(MINUTE)
    assert campaign.in_state(ItemState.DONE) == [1]
    assert campaign.items["c001"].release_time == campaign.now


@pytest.mark.parametrize(
    ("success", "served", "done"),
    [
        (Success.SERVED, True, True),
        (Success.SERVED, None, True),
        (Success.SERVED, False, False),
        (Success.INSTALLED, False, True),
    ],
)
def test_what_counts_as_done(success: Success, served: bool | None, done: bool) -> None:
    """Served where the host looks, else installed."""
    campaign = until_canary_is_let_activate(1, 1, spec=a_spec(success=success))
    campaign.know(0, installed=True, served=served)
    campaign.step(MINUTE)
    assert (campaign.items["c000"].state is ItemState.DONE) is done


def test_only_so_many_hosts_of_a_name_activate_at_a_time() -> None:
    """Here a quarter of ten, who all serve one name."""
    spec = a_spec(rings=(RingSpec("all", rest=True),), max_percent_of_name=25)
    campaign = Campaign.of(10, spec=spec)
    activating = []
    for _ in range(60):
        campaign.step(MINUTE)
        under_way = [
            item
            for item in campaign.items.values()
            if item.state is ItemState.RELEASED or (item.state is ItemState.REQUESTED and item.release_time is not None)
        ]
        activating.append(len(under_way))
        campaign.issue()
        campaign.activate()
        if campaign.is_in(RolloutState.COMPLETED):
            break
    assert campaign.is_in(RolloutState.COMPLETED)
    assert max(activating) == 2


def test_silent_hosts_that_leave_no_room_for_others_of_their_names_halt_it() -> None:
    """Nobody knows what they serve. An operator who has looked goes on."""
    spec = a_spec(rings=(RingSpec("all", rest=True),), max_percent_of_name=1, halt=Halt(failed_hosts=3))
    campaign = Campaign.of(3, spec=spec)
    campaign.step()
    campaign.issue()
    campaign.step(MINUTE)
    assert campaign.in_state(ItemState.RELEASED) == [0]
    campaign.know(0, is_there=False, heard_time=campaign.now)
    campaign.step(9 * MINUTE)
    assert campaign.is_in(RolloutState.RUNNING)
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.HALTED)
    assert campaign.rollout.state_reason == (
        "ring all: silent hosts leave no room by max_percent_of_name for others of their names: web001, web002"
    )
    resume(campaign)
    for _ in range(10):
        campaign.issue()
        campaign.activate()
        campaign.step(MINUTE)
    assert campaign.in_state(ItemState.DONE) == [1, 2]


def test_failures_while_it_is_paused_halt_it() -> None:
    """Else whoever resumes it would go on with what nobody has seen."""
    campaign = until_canary_is_let_activate(2, 3)
    campaign.rollout = words.pause(campaign.rollout, "operator-1", "lunch", campaign.now)
    campaign.know(1, failure="reload failed", failure_mark="1")
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.HALTED)
    assert campaign.rollout.rings[0].state is RingState.FAILED


def test_one_host_of_a_name_may_always_activate() -> None:
    """Else a name of few hosts would never get through."""
    campaign = Campaign.of(3, spec=a_spec(rings=(RingSpec("all", rest=True),), max_percent_of_name=1))
    campaign.run()
    assert campaign.is_in(RolloutState.COMPLETED)


def test_what_is_told_at_a_time_is_bounded() -> None:
    """The next step goes on at once."""
    campaign = Campaign.of(1, AT_ONCE + 10)
    made = campaign.step()
    assert len(made.told) == AT_ONCE
    assert made.next_time == campaign.now
    assert len(campaign.step().told) == 11


def test_a_ring_is_done_only_when_all_that_are_there_are() -> None:
    """One that waits for a place at the CA is waited for."""
    campaign = Campaign.of(2, 1)
    campaign.step()
    campaign.issue(0)
    campaign.step(MINUTE)
    campaign.activate()
    campaign.step(HOUR)
    assert campaign.ring_states[0] is RingState.RELEASED
    assert campaign.is_in(RolloutState.RUNNING)


def test_what_was_replaced_is_revoked_once_its_ring_is_done() -> None:
    """Each stays among what may be revoked until it is."""
    campaign = until_canary_bakes(1, 1, spec=a_spec(revoke=Revoke.AFTER_SERVED))
    assert campaign.rollout.unrevoked_count == 2
    assert campaign.step(9 * MINUTE).revoke == ()
    for _ in range(2):
        made = campaign.step(MINUTE)
        assert [item.certificate_id for item in made.revoke] == ["c000"]
    campaign.know(0, revoke_time=campaign.now)
    campaign.activate()
    campaign.step(MINUTE)
    assert (campaign.rollout.revoked_count, campaign.rollout.unrevoked_count) == (1, 1)
    assert campaign.is_in(RolloutState.FINISHING)
    campaign.know(1, revoke_time=campaign.now)
    assert campaign.step(MINUTE).revoke == ()
    assert campaign.is_in(RolloutState.COMPLETED)


@pytest.mark.parametrize(
    "changes", [{"served": False}, {"installed": False}, {"failure": "rolled back", "failure_mark": "7"}]
)
def test_what_is_in_use_again_is_not_revoked(changes: dict[str, Any]) -> None:
    """Whenever that is seen, and however long it had been done."""
    campaign = until_canary_bakes(1, 1, spec=a_spec(revoke=Revoke.AFTER_SERVED))
    campaign.step(10 * MINUTE)
    campaign.know(0, **changes)
    assert campaign.step(MINUTE).revoke == ()


def test_nothing_is_revoked_of_which_nothing_is_known() -> None:
    """A broker that has just begun to look waits for the hosts' word."""
    campaign = until_canary_bakes(1, 1, spec=a_spec(revoke=Revoke.AFTER_SERVED))
    campaign.step(10 * MINUTE)
    del campaign.facts["c000"]
    assert campaign.step(MINUTE).revoke == ()


@pytest.mark.parametrize("success", [*Success])
def test_where_the_old_one_is_seen_served_it_is_not_revoked(success: Success) -> None:
    """Though installed is enough to be done."""
    campaign = until_canary_is_let_activate(1, 1, spec=a_spec(revoke=Revoke.AFTER_SERVED, success=success))
    campaign.know(0, installed=True, served=False)
    for _ in range(20):
        assert campaign.step(MINUTE).revoke == ()


def test_what_was_passed_over_waits_for_an_operators_word() -> None:
    """It may be in use anywhere; until it expires there is something to be revoked."""
    campaign = until_canary_bakes(1, 1, spec=a_spec(revoke=Revoke.AFTER_SERVED))
    campaign.know(1, gone="its host was forgotten")
    campaign.step(10 * MINUTE)
    campaign.know(0, revoke_time=campaign.now)
    made = campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.FINISHING)
    assert made.next_time == NOT_AFTER
    campaign.now = NOT_AFTER
    campaign.step()
    assert campaign.is_in(RolloutState.COMPLETED)


def test_an_operators_word_revokes_what_is_left() -> None:
    """In use or not; then it is completed, and nobody is told anything any more."""
    campaign = Campaign.of(1, 2, spec=a_spec(revoke=Revoke.AFTER_SERVED))
    campaign.know(2, is_there=False)
    for _ in range(15):
        campaign.step(MINUTE)
        campaign.issue()
        campaign.activate()
    campaign.know(0, 1, revoke_time=campaign.now)
    campaign.step()
    assert campaign.is_in(RolloutState.FINISHING)
    finished = words.finish(campaign.rollout, "admin-1", "it is gone", campaign.now, revoke_remaining=True)
    assert (finished.state, finished.finish) == (RolloutState.FINISHING, Finish.REVOKE)
    campaign.rollout = finished
    campaign.know(2, is_there=True)
    made = campaign.step()
    assert [item.certificate_id for item in made.revoke] == ["c002"]
    assert made.told == ()
    campaign.know(2, revoke_time=campaign.now)
    campaign.step()
    assert campaign.is_in(RolloutState.COMPLETED)


def test_a_deadline_cuts_bake_times_openly_and_leaves_no_ring_out() -> None:
    """Three rings that would be watched for two hours each, and three hours."""
    rings = tuple(RingSpec(f"r{n}", percent=30, rest=False, bake=2 * HOUR) for n in range(3))
    spec = a_spec(rings=rings, deadline=START + 3 * HOUR)
    campaign = Campaign.of(1, 1, 1, spec=spec)
    seen = []
    for _ in range(400):
        campaign.step(MINUTE)
        campaign.issue()
        campaign.activate()
        seen.append(tuple(campaign.ring_states))
        if campaign.is_in(RolloutState.COMPLETED):
            break
    assert campaign.is_in(RolloutState.COMPLETED)
    assert campaign.now <= START + 3 * HOUR
    assert all(ring.bake_cut > 30 * MINUTE for ring in campaign.rollout.rings)
    assert any(
        "less than asked for, for the deadline" in each.detail for made in campaign.steps for each in made.happened
    )
    order = (RingState.WAITING, RingState.RELEASED, RingState.BAKING, RingState.DONE)
    for states in seen:
        begun = [order.index(state) for state in states]
        assert all(second == 0 or first == 3 for first, second in pairwise(begun)), states


def test_a_deadline_that_is_past_leaves_no_bake_time_but_every_ring() -> None:
    """Each still waits for the one before it to be done."""
    campaign = until_canary_is_let_activate(1, 1, spec=a_spec(deadline=START + MINUTE))
    campaign.step(HOUR)
    assert campaign.ring_states == [RingState.RELEASED, RingState.WAITING]
    campaign.activate()
    campaign.step(MINUTE)
    assert campaign.ring_states == [RingState.DONE, RingState.RELEASED]
    assert campaign.rollout.rings[0].bake_cut == CANARY_THEN_REST[0].bake


def test_a_host_that_fails_late_halts_what_was_about_to_end() -> None:
    """It comes back after all others, and fails."""
    campaign = Campaign.of(1, 2)
    campaign.know(2, is_there=False)
    for _ in range(20):
        campaign.step(MINUTE)
        campaign.issue()
        campaign.activate()
    assert campaign.is_in(RolloutState.FINISHING)
    campaign.know(2, is_there=True)
    campaign.step()
    campaign.know(2, failure="reload failed", failure_mark="1")
    campaign.step(MINUTE)
    assert campaign.is_in(RolloutState.HALTED)


def test_one_whose_request_had_failed_goes_on_when_it_is_issued_after_all() -> None:
    """Its host tried again by itself."""
    campaign = Campaign.of(1, 1)
    campaign.step()
    campaign.know(1, failure="the CA is down", failure_mark="1")
    campaign.step(MINUTE)
    assert campaign.in_state(ItemState.FAILED) == [1]
    campaign.know(1, failure="", failure_mark="", new_certificate_id="n")
    campaign.step(MINUTE)
    assert campaign.in_state(ItemState.HELD) == [1]


def test_the_same_arguments_make_the_same_step() -> None:
    """Nothing is kept between steps, and nothing that is handed in is changed."""
    campaign = until_canary_is_let_activate(2, 2)
    before = (campaign.rollout, dict(campaign.items), dict(campaign.facts))
    one = replace(campaign).step(MINUTE)
    campaign.rollout, campaign.items, campaign.now = before[0], dict(before[1]), campaign.now
    assert before[2] == campaign.facts
    campaign.activate()
    assert one.rollout == before[0] or one.changed


def test_the_unknown_fact_is_of_nobody() -> None:
    """What a fact says by default lets nothing happen."""
    assert not ItemFacts().is_there
    assert not ItemFacts().in_use
