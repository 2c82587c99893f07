"""What operators say of a rollout: pause, resume, abort, approve, finish. Pure: what comes of it, or why it can't be.

| | pause | resume | abort | approve | finish |
|---|---|---|---|---|---|
| AWAITING_APPROVAL | refused | refused | ABORTED | RUNNING | refused |
| RUNNING | PAUSED | nothing | ABORTED | refused | refused, unless all rings are released |
| PAUSED | nothing | RUNNING | ABORTED | refused | likewise |
| HALTED | nothing | RUNNING | ABORTED | refused | likewise |
| FINISHING | PAUSED | what failed is tried again | ABORTED | refused | COMPLETED, or revokes first |
| COMPLETED | refused | refused | refused | refused | nothing, if it was finished so |
| ABORTED | refused | refused | nothing | refused | refused |

*Nothing* is the same rollout again: who repeats a call that had come through learns that it has. So may whoever has
approved a rollout that is under way. One that is being finished with revocation goes on with that when it is resumed.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from certplane.broker.rollouts.model import Finish, ItemState, Revoke, RingState, Rollout, RolloutState
from certplane.errors import Reason, RefusalError

_CAN_RESUME = frozenset({RolloutState.PAUSED, RolloutState.HALTED})
_FAILED = frozenset({ItemState.FAILED, ItemState.SILENT})


def pause(rollout: Rollout, who: str, reason: str, now: datetime) -> Rollout:
    """No further host is released.

    Raises:
        RefusalError: REQUEST_INVALID, it hasn't begun or has ended.
    """
    _check_under_way(rollout, "paused")
    if rollout.state in _CAN_RESUME:
        return rollout
    return _in(rollout, RolloutState.PAUSED, f"paused by {who}: {reason}", now)


def resume(rollout: Rollout, who: str, reason: str, now: datetime) -> Rollout:
    """It goes on, and what failed is tried again. A ring that halted it before its turn is released by that.

    Raises:
        RefusalError: REQUEST_INVALID, it hasn't begun or has ended.
    """
    _check_under_way(rollout, "resumed")
    why = f"resumed by {who}: {reason}"
    if rollout.finish is not Finish.NONE:
        return _in(rollout, RolloutState.FINISHING, why, now) if rollout.state in _CAN_RESUME else rollout
    if rollout.state not in _CAN_RESUME and not _retries(rollout):
        return rollout
    rings = tuple(
        replace(ring, state=RingState.RELEASED, release_time=ring.release_time or now, bake_until=None)
        if ring.state is RingState.FAILED
        else ring
        for ring in rollout.rings
    )
    resumed = replace(rollout, rings=rings, attempt=rollout.attempt + 1)
    return _in(resumed, RolloutState.RUNNING, why, now)


def abort(rollout: Rollout, who: str, reason: str, now: datetime) -> Rollout:
    """It ends, and each host stays with what works there.

    Raises:
        RefusalError: REQUEST_INVALID, it was completed.
    """
    if rollout.state is RolloutState.ABORTED:
        return rollout
    _check_open(rollout, "aborted")
    return replace(_in(rollout, RolloutState.ABORTED, f"aborted by {who}: {reason}", now), end_time=now)


def approve(rollout: Rollout, who: str, now: datetime) -> Rollout:
    """It begins.

    Raises:
        RefusalError: ROLE_REQUIRED, `who` has created it; REQUEST_INVALID, it doesn't wait for approval.
    """
    _check_open(rollout, "approved")
    if rollout.approved_by == who:
        return rollout
    if rollout.state is not RolloutState.AWAITING_APPROVAL:
        raise _refusal(rollout, "approved", "it doesn't wait for approval: nothing is to be done")
    if rollout.created_by == who:
        message = f"rollout {rollout.rollout_id} was created by {who} and needs another operator's approval"
        raise RefusalError(Reason.ROLE_REQUIRED, message)
    return replace(_in(rollout, RolloutState.RUNNING, "", now), approved_by=who, start_time=now)


def finish(rollout: Rollout, who: str, reason: str, now: datetime, *, revoke_remaining: bool) -> Rollout:
    """It ends without the hosts that don't come.

    Raises:
        RefusalError: REQUEST_INVALID, there are rings whose hosts weren't let activate, it has nothing to revoke though
            that was asked for, or it has ended.
    """
    wanted = Finish.REVOKE if revoke_remaining else Finish.PLAIN
    if rollout.finish is wanted:
        return rollout
    _check_under_way(rollout, "finished")
    if revoke_remaining and rollout.spec.revoke is Revoke.NEVER:
        remedy = "it was created without revocation: finish it without, and revoke certificates by themselves"
        raise _refusal(rollout, "finished with revocation", remedy)
    waiting = [ring.name for ring in rollout.rings if ring.release_time is None]
    if waiting:
        remedy = f"the rings {', '.join(waiting)} weren't released yet: resume it, or abort it"
        raise _refusal(rollout, "finished", remedy)
    finished = replace(rollout, finish=wanted)
    why = f"finished by {who}: {reason}"
    if revoke_remaining and rollout.unrevoked_count:
        return _in(finished, RolloutState.FINISHING, f"{why}; what is left is revoked", now)
    return replace(_in(finished, RolloutState.COMPLETED, why, now), end_time=now)


def _retries(rollout: Rollout) -> bool:
    """Whether there is anything to be tried again where it is about to end."""
    failed = any(count.state in _FAILED for ring in rollout.rings for count in ring.counts)
    return rollout.state is RolloutState.FINISHING and failed


def _in(rollout: Rollout, state: RolloutState, why: str, now: datetime) -> Rollout:
    return replace(rollout, state=state, state_reason=why, update_time=now, version=rollout.version + 1)


def _check_under_way(rollout: Rollout, what: str) -> None:
    _check_open(rollout, what)
    if rollout.state is RolloutState.AWAITING_APPROVAL:
        raise _refusal(rollout, what, "it waits for approval: approve it, or abort it")


def _check_open(rollout: Rollout, what: str) -> None:
    if rollout.state.has_ended:
        raise _refusal(rollout, what, f"it was {rollout.state} already: create another one for what is left")


def _refusal(rollout: Rollout, what: str, why: str) -> RefusalError:
    return RefusalError(Reason.REQUEST_INVALID, f"rollout {rollout.rollout_id} can't be {what}: {why}")
