"""What operators may say of a rollout, in each of its states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

import pytest

from certplane.broker.rollouts import words
from certplane.broker.rollouts.model import (
    Finish,
    ItemState,
    Revoke,
    RingState,
    Rollout,
    RolloutState,
    StateCount,
)
from certplane.errors import Reason, RefusalError
from tests.support.rollouts import MINUTE, START, a_rollout, a_spec

S = RolloutState
NOW: Final = START + MINUTE
SAY: Final[dict[str, Callable[[Rollout, datetime], Rollout]]] = {
    "pause": lambda rollout, now: words.pause(rollout, "op-2", "why", now),
    "resume": lambda rollout, now: words.resume(rollout, "op-2", "why", now),
    "abort": lambda rollout, now: words.abort(rollout, "op-2", "why", now),
    "approve": lambda rollout, now: words.approve(rollout, "op-2", now),
    "finish": lambda rollout, now: words.finish(rollout, "op-2", "why", now, revoke_remaining=False),
    "revoke": lambda rollout, now: words.finish(rollout, "op-2", "why", now, revoke_remaining=True),
}
REFUSED: Final = None
TABLE: Final[dict[RolloutState, dict[str, RolloutState | None]]] = {
    S.AWAITING_APPROVAL: {
        "pause": REFUSED, "resume": REFUSED, "abort": S.ABORTED, "approve": S.RUNNING, "finish": REFUSED, "revoke": REFUSED,
    },
    S.RUNNING: {
        "pause": S.PAUSED, "resume": S.RUNNING, "abort": S.ABORTED, "approve": REFUSED, "finish": S.COMPLETED,
        "revoke": S.FINISHING,
    },
    S.PAUSED: {
        "pause": S.PAUSED, "resume": S.RUNNING, "abort": S.ABORTED, "approve": REFUSED, "finish": S.COMPLETED,
        "revoke": S.FINISHING,
    },
    S.HALTED: {
        "pause": S.HALTED, "resume": S.RUNNING, "abort": S.ABORTED, "approve": REFUSED, "finish": S.COMPLETED,
        "revoke": S.FINISHING,
    },
    S.FINISHING: {
        "pause": S.PAUSED, "resume": S.FINISHING, "abort": S.ABORTED, "approve": REFUSED, "finish": S.COMPLETED,
        "revoke": S.FINISHING,
    },
    S.COMPLETED: dict.fromkeys(SAY, REFUSED),
    S.ABORTED: dict.fromkeys(SAY, REFUSED) | {"abort": S.ABORTED},
}  # fmt: skip
"""What comes of each word, where all rings are released and something is to be revoked."""


def in_state(state: RolloutState) -> Rollout:
    """A rollout whose rings are all released."""
    rollout, _ = a_rollout(2, 3, spec=a_spec(revoke=Revoke.AFTER_SERVED))
    rings = tuple(replace(ring, state=RingState.DONE, release_time=START) for ring in rollout.rings)
    return replace(rollout, state=state, rings=rings)


@pytest.mark.parametrize("word", [*SAY])
@pytest.mark.parametrize("state", [*S])
def test_each_word_in_each_state(state: RolloutState, word: str) -> None:
    """It comes to that, or is refused with what to do; repeated it changes nothing more."""
    before, wanted = in_state(state), TABLE[state][word]
    if wanted is REFUSED:
        with pytest.raises(RefusalError, match=r"rollout r1 can't be .*: ") as refused:
            SAY[word](before, NOW)
        assert refused.value.refusal.reason is Reason.REQUEST_INVALID
        return
    after = SAY[word](before, NOW)
    assert after.state is wanted
    if after is before:
        return
    assert (after.version, after.update_time) == (before.version + 1, NOW)
    assert (after.end_time is not None) is after.state.has_ended
    if word not in ("finish", "approve"):
        assert SAY[word](after, NOW + MINUTE) is after
    if word != "approve":
        assert "op-2: why" in after.state_reason


def test_whoever_created_it_cannot_approve_it() -> None:
    """And whoever has approved it may repeat that."""
    waiting = in_state(S.AWAITING_APPROVAL)
    with pytest.raises(RefusalError, match="needs another operator's approval") as refused:
        words.approve(waiting, "operator-1", NOW)
    assert refused.value.refusal.reason is Reason.ROLE_REQUIRED
    approved = words.approve(waiting, "op-2", NOW)
    assert (approved.state, approved.approved_by, approved.start_time) == (S.RUNNING, "op-2", NOW)
    assert words.approve(approved, "op-2", NOW) is approved
    with pytest.raises(RefusalError, match="nothing is to be done"):
        words.approve(approved, "op-3", NOW)


def test_what_has_unreleased_rings_is_not_finished() -> None:
    """With revocation it would cut off hosts that were never told."""
    rollout, _ = a_rollout(2, 3)
    for revoke in (False, True):
        with pytest.raises(RefusalError, match="can't be finished"):
            words.finish(rollout, "op-2", "why", NOW, revoke_remaining=revoke)
    with pytest.raises(RefusalError, match="the rings canary, rest weren't released yet: resume it, or abort it"):
        words.finish(rollout, "op-2", "why", NOW, revoke_remaining=False)


def test_what_never_revokes_is_not_finished_with_revocation() -> None:
    """That is another decision than the one that was approved."""
    rollout = in_state(S.FINISHING)
    rollout = replace(rollout, spec=replace(rollout.spec, revoke=Revoke.NEVER))
    with pytest.raises(RefusalError, match="it was created without revocation: finish it without"):
        words.finish(rollout, "op-2", "why", NOW, revoke_remaining=True)


def test_finishing_with_nothing_to_revoke_ends_it() -> None:
    """There is nothing to wait for."""
    done = words.finish(replace(in_state(S.FINISHING), unrevoked_count=0), "op-2", "why", NOW, revoke_remaining=True)
    assert (done.state, done.finish, done.end_time) == (S.COMPLETED, Finish.REVOKE, NOW)


def test_revocation_of_the_rest_may_be_paused_and_goes_on() -> None:
    """Nothing is tried again by that."""
    revoking = words.finish(in_state(S.FINISHING), "op-2", "why", NOW, revoke_remaining=True)
    paused = words.pause(revoking, "op-2", "stop", NOW)
    assert paused.state is S.PAUSED
    resumed = words.resume(paused, "op-2", "go", NOW)
    assert (resumed.state, resumed.finish, resumed.attempt) == (S.FINISHING, Finish.REVOKE, 0)
    assert words.resume(resumed, "op-2", "go", NOW) is resumed
    stopped = words.finish(revoking, "op-2", "leave them", NOW, revoke_remaining=False)
    assert (stopped.state, stopped.finish) == (S.COMPLETED, Finish.PLAIN)


def test_a_resume_releases_the_ring_that_halted() -> None:
    """Though its turn had not come: the operator's word is what it waited for."""
    rollout, _ = a_rollout(2, 3)
    rings = (replace(rollout.rings[0], state=RingState.FAILED), rollout.rings[1])
    resumed = words.resume(replace(rollout, state=S.HALTED, rings=rings), "op-2", "why", NOW)
    assert [ring.state for ring in resumed.rings] == [RingState.RELEASED, RingState.WAITING]
    assert resumed.rings[0].release_time == NOW
    assert resumed.attempt == 1


def test_what_is_about_to_end_is_resumed_where_something_failed() -> None:
    """It is tried again."""
    rollout = in_state(S.FINISHING)
    assert words.resume(rollout, "op-2", "why", NOW) is rollout
    failed = replace(rollout.rings[0], counts=(StateCount(ItemState.FAILED, 1),))
    resumed = words.resume(replace(rollout, rings=(failed, rollout.rings[1])), "op-2", "why", NOW)
    assert (resumed.state, resumed.attempt) == (S.RUNNING, 1)
