"""How a lineage's status changes with each event: pure.

Counts are saved before the act that they count, so that they survive the agent's end in the middle of it. No wait is
shorter than what the CA, a limit or a lock asked for.
"""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum

from certplane.agent.model import LineageState, LineageStatus, Version
from certplane.agent.renewal.failures import Failure, activation_backoff, request_backoff
from certplane.agent.renewal.plan import Plan, RenewReason, Request, Wait

__all__ = [
    "activated",
    "activating",
    "activation_failed",
    "new_status",
    "planned",
    "reloading",
    "request_failed",
    "request_succeeded",
    "requesting",
    "settle_clock",
]

_PATIENCE = 3
"""Activations in a row that ended with the agent's own end before the next one waits: the hook may be the cause."""

_TOLERANCE = timedelta(minutes=1)


def new_status(name: str, now: datetime) -> LineageStatus:
    """The status of a lineage of which nothing is known."""
    return LineageStatus(name, LineageState.ABSENT, now)


def settle_clock(status: LineageStatus, now: datetime) -> LineageStatus:
    """The status by this clock: a record from the future moves back with it, so that its waits keep their length.

    Without it a clock that was wrong by years once, and is right again, would hold renewals back for years.
    """
    shift = now - status.update_time
    if shift > -_TOLERANCE:
        return status

    def moved(moment: datetime | None) -> datetime | None:
        return None if moment is None else moment + shift

    return replace(
        status,
        update_time=now,
        next_attempt_time=moved(status.next_attempt_time),
        retry_time=moved(status.retry_time),
        next_activation_time=moved(status.next_activation_time),
    )


def planned(status: LineageStatus, plan: Plan, now: datetime) -> LineageStatus:
    """What a plan shows; the same object if that is nothing new."""
    state, reason = status.state, status.renew_reason
    match plan.step:
        case Request(reason=because):
            state, reason = LineageState.DUE, str(because)
        case Wait(held_back=RenewReason() as because):
            state, reason = LineageState.FAILED if status.failures else LineageState.DUE, str(because)
        case Wait():
            rejected = status.rejected_version is not None or status.activation_failures > 0
            state, reason = LineageState.DEGRADED if rejected else LineageState.WAITING, ""
    if (state, reason, plan.renew_time) == (status.state, status.renew_reason, status.renew_time):
        return status
    return replace(status, state=state, renew_reason=reason, renew_time=plan.renew_time, update_time=now)


def requesting(status: LineageStatus, reason: StrEnum, now: datetime) -> LineageStatus:
    """A request is about to be sent."""
    return replace(status, state=LineageState.REQUESTING, renew_reason=str(reason), update_time=now)


def request_failed(
    status: LineageStatus, failure: Failure, now: datetime, rng: random.Random, newest: Version | None
) -> LineageStatus:
    """A request failed: when the next one may be made."""
    failures = status.failures + 1
    wait = request_backoff(failure.kind, newest, now).wait(failures, rng)
    return replace(
        status,
        state=LineageState.FAILED,
        update_time=now,
        failures=failures,
        next_attempt_time=max(now + wait, failure.retry_time or now),
        retry_time=failure.retry_time,
        last_error=failure.message,
    )


def request_succeeded(status: LineageStatus, version: Version, now: datetime) -> LineageStatus:
    """A certificate came and is staged: whatever the activation of an older one had to wait for is past."""
    return replace(
        status,
        state=LineageState.INSTALLING,
        update_time=now,
        renew_time=version.renew_time,
        failures=0,
        next_attempt_time=None,
        retry_time=None,
        last_error="",
        activation_failures=0,
        next_activation_time=None,
    )


def activating(status: LineageStatus, now: datetime, rng: random.Random) -> LineageStatus:
    """An activation is about to begin; it counts as failed until it has succeeded.

    An agent that its own hook ends (by restarting it, say) finds the count after its start, and waits from the third
    time on.
    """
    failures = status.activation_failures + 1
    wait = None if failures < _PATIENCE else now + activation_backoff(None, now).wait(failures, rng)
    return replace(
        status,
        state=LineageState.INSTALLING,
        update_time=now,
        activation_failures=failures,
        next_activation_time=wait,
    )


def reloading(status: LineageStatus, now: datetime) -> LineageStatus:
    """The version is installed and the reload is about to begin."""
    return replace(status, state=LineageState.RELOADING, update_time=now)


def activated(status: LineageStatus, version: Version, now: datetime) -> LineageStatus:
    """The reload succeeded: this version is what a later failure goes back to."""
    return replace(
        status,
        state=LineageState.WAITING,
        update_time=now,
        renew_reason="",
        last_error="",
        rejected_version=None,
        confirmed_version=version.number,
        activation_failures=0,
        next_activation_time=None,
    )


def activation_failed(
    status: LineageStatus,
    error: str,
    now: datetime,
    rng: random.Random,
    *,
    rejected_version: int | None,
    current: Version | None,
) -> LineageStatus:
    """The activation failed: when the next one may begin.

    Args:
        status: As `activating` left it.
        error: What failed, for `status`.
        now: When.
        rng: For the jitter.
        rejected_version: The version that was rolled back; None if it stays, or never was installed.
        current: What is shown now; the less life it has left, the sooner the next try.
    """
    wait = activation_backoff(current, now).wait(status.activation_failures, rng)
    return replace(
        status,
        state=LineageState.DEGRADED,
        update_time=now,
        last_error=error,
        rejected_version=rejected_version,
        next_activation_time=now + wait,
    )
