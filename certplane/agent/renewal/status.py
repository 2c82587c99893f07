"""How a lineage's status changes with each event: pure. `renewal.machine` draws which state may follow which.

Counts are saved before the act that they count, so that they survive the agent's end in the middle of it. No wait is
shorter than what the CA, a limit or a lock asked for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum

from certplane.agent.model import LineageStatus, ServedLeaf, ServiceView, Version
from certplane.agent.renewal.due import RenewReason
from certplane.agent.renewal.failures import Failure, activation_backoff, half_of, request_backoff
from certplane.agent.renewal.plan import Plan, Request, Verify, Wait
from certplane.fleet_report.model import CertificateState, RenewalStep

_PATIENCE = 3
"""Activations in a row that ended with the agent's own end before the next one waits: the hook may be the cause."""

_DIRECTED_KEPT = 10
_TOLERANCE = timedelta(minutes=1)

_WELL = frozenset({CertificateState.WAITING, CertificateState.SERVING, CertificateState.ISSUED})
_RESTING = _WELL | {CertificateState.DEGRADED, CertificateState.FAILED, CertificateState.DUE}


def new_status(name: str, now: datetime) -> LineageStatus:
    """The status of a lineage of which nothing is known."""
    return LineageStatus(name, CertificateState.ABSENT, now)


def is_well(status: LineageStatus) -> bool:
    """Whether a lineage has what it should have (or will, once a window opens), and nothing that failed waits."""
    failures = status.failures or status.activation_failures or status.verify_failures
    return status.state in _WELL and not failures


def settle_clock(status: LineageStatus, now: datetime) -> LineageStatus:
    """The status by this clock: a record from the future moves back with it, so that its waits keep their length.

    Without it a clock that was wrong by years once, and is right again, would hold renewals back for years.
    """
    shift = now - status.update_time
    return status if shift > -_TOLERANCE else settle_jump(status, shift)


def settle_jump(status: LineageStatus, jump: timedelta) -> LineageStatus:
    """The status after the wall clock was set by `jump` while the agent ran: its waits keep their length.

    A time that would leave the calendar is none any more.

    Dates of certificates, and the opening of a window, are of the world and stay; what the agent or a CA said to wait
    is a span from a moment of this clock.
    """

    def moved(moment: datetime | None) -> datetime | None:
        try:
            return None if moment is None else moment + jump
        except OverflowError:
            return None

    return replace(
        status,
        update_time=moved(status.update_time) or status.update_time,
        next_attempt_time=moved(status.next_attempt_time),
        retry_time=moved(status.retry_time),
        next_activation_time=moved(status.next_activation_time),
        verify_time=moved(status.verify_time),
        next_verify_time=moved(status.next_verify_time),
        failed_time=moved(status.failed_time),
        directed_times=tuple(each for each in map(moved, status.directed_times) if each is not None),
    )


def planned(status: LineageStatus, plan: Plan, now: datetime) -> LineageStatus:
    """What a plan shows; the same object if that is nothing new."""
    state, reason = status.state, status.renew_reason
    match plan.step:
        case Request(reason=because):
            state, reason = CertificateState.DUE, str(because)
        case Wait(held_back=RenewReason() as because, why=why):
            state, reason = CertificateState.FAILED if status.failures else CertificateState.DUE, why or str(because)
        case Wait():
            state, reason = _at_rest(status, plan), ""
        case Verify() if state not in _RESTING:  # what an agent that ended had begun
            state, reason = _at_rest(status, plan), ""
    shown = replace(
        status,
        state=state,
        renew_reason=reason,
        renew_time=plan.renew_time,
        activate_after=plan.activate_after,
        held_by_rollout_id=plan.held_by_rollout_id,
        issued_version=plan.issued,
        installed_version=plan.installed,
    )
    return status if shown == status else replace(shown, update_time=now)


def _at_rest(status: LineageStatus, plan: Plan) -> CertificateState:
    if status.rejected_version is not None or status.activation_failures or status.verify_failures:
        return CertificateState.DEGRADED
    if plan.activate_after is not None:
        return CertificateState.ISSUED
    return CertificateState.SERVING if plan.served else CertificateState.WAITING


def revoked(status: LineageStatus, version: int, now: datetime) -> LineageStatus:
    """A version is known to be revoked: it is replaced at once, and no failed activation goes back to it."""
    if version in status.revoked_versions:
        return status
    return replace(status, revoked_versions=(*status.revoked_versions, version), update_time=now)


def requesting(status: LineageStatus, reason: StrEnum, now: datetime) -> LineageStatus:
    """A request is about to be sent."""
    return replace(status, state=CertificateState.REQUESTING, renew_reason=str(reason), update_time=now)


def request_waits(status: LineageStatus, trouble: str, now: datetime) -> LineageStatus:
    """What the request under way waits for at the broker; empty when that is over.

    It is shown as what failed last, and counts for nothing: the request goes on.
    """
    if status.state is not CertificateState.REQUESTING:
        return status
    error = trouble or (status.request_error if status.failures else "")
    return replace(status, update_time=now, last_error=error, failed_step=RenewalStep.REQUEST if error else None)


def request_failed(
    status: LineageStatus, failure: Failure, now: datetime, rng: random.Random, newest: Version | None
) -> LineageStatus:
    """A request failed: when the next one may be made.

    What the broker asks to wait counts for at most half of the life that `newest` has left, and not at all for one that
    was revoked; what a CA asks counts as it is.
    """
    failures = status.failures + 1
    revoked = newest is not None and newest.number in status.revoked_versions
    until = now + request_backoff(failure.kind, newest, now, revoked=revoked).wait(failures, rng)
    if failure.told_time is not None and not revoked:
        until = max(until, failure.told_time if newest is None else min(failure.told_time, _half_way(newest, now)))
    return replace(
        status,
        state=CertificateState.FAILED,
        update_time=now,
        failures=failures,
        next_attempt_time=max(until, failure.retry_time or now),
        retry_time=failure.retry_time,
        last_error=failure.message,
        failed_step=RenewalStep.REQUEST,
        request_error=failure.message,
        failed_time=now,
    )


def _half_way(version: Version, now: datetime) -> datetime:
    return now + half_of(version.not_after - now)


def request_succeeded(
    status: LineageStatus, version: Version, now: datetime, *, directed: bool = False
) -> LineageStatus:
    """A certificate came and is staged: whatever the activation of an older one had to wait for is past.

    Args:
        status: Before.
        version: The new one.
        now: When.
        directed: Whether the broker wanted it before its time.
    """
    hold = version.hold
    return replace(
        status,
        # The plan that follows knows whether it was released meanwhile; until then nobody is to take it for in use.
        held_by_rollout_id="" if hold is None or hold.abandoned else hold.rollout_id,
        activate_after=None if hold is None else hold.activate_by_time,
        state=CertificateState.ISSUED,
        update_time=now,
        renew_time=version.renew_time,
        issued_version=version.number,
        failures=0,
        next_attempt_time=None,
        retry_time=None,
        last_error="",
        failed_step=None,
        request_error="",
        activation_failures=0,
        next_activation_time=None,
        failed_time=None,
        directed_times=(*status.directed_times, now)[-_DIRECTED_KEPT:] if directed else status.directed_times,
    )


def kept(status: LineageStatus, version: Version, now: datetime, settings: str) -> LineageStatus:
    """A pair that stood at the configured paths is in force, as it was before: nothing has to be activated.

    What failed before (a request of other names, files that couldn't be read) was about what nobody needs now.

    Args:
        status: Before.
        version: What the pair is now.
        now: When.
        settings: What tells agent.yml's settings, as `renewal.waiting.Asked` has them.
    """
    return replace(
        status,
        state=CertificateState.WAITING,
        update_time=now,
        confirmed_version=version.number,
        issued_version=version.number,
        installed_version=version.number,
        activated_settings=settings,
        renew_reason="",
        failures=0,
        next_attempt_time=None,
        last_error="",
        failed_step=None,
        request_error="",
        failed_time=None,
        activation_failures=0,
        next_activation_time=None,
    )


def not_shown(status: LineageStatus, error: str, now: datetime, rng: random.Random) -> LineageStatus:
    """At the start, the configured paths couldn't be made to show what is in force: that is tried as an activation is.

    It counts once, however often the agent is started.
    """
    failures = max(status.activation_failures, 1)
    wait = activation_backoff(None, now).wait(failures, rng)
    return replace(
        status,
        state=CertificateState.DEGRADED,
        update_time=now,
        activation_failures=failures,
        next_activation_time=status.next_activation_time or now + wait,
        last_error=error,
        failed_step=RenewalStep.INSTALL,
    )


def shown_again(status: LineageStatus) -> LineageStatus:
    """At the start, the configured paths show what is in force: what an installation failed for may be gone."""
    if status.activation_failures and status.failed_step is RenewalStep.INSTALL:
        return replace(status, next_activation_time=None)
    return status


def activating(status: LineageStatus, now: datetime, rng: random.Random) -> LineageStatus:
    """An activation is about to begin; it counts as failed until it has succeeded.

    An agent that its own hook ends (by restarting it, say) finds the count after its start, and waits from the third
    time on.
    """
    failures = status.activation_failures + 1
    wait = None if failures < _PATIENCE else now + activation_backoff(None, now).wait(failures, rng)
    return replace(
        status,
        state=CertificateState.INSTALLING,
        update_time=now,
        activation_failures=failures,
        next_activation_time=wait,
    )


def reloading(status: LineageStatus, version: Version, now: datetime) -> LineageStatus:
    """The version is installed and the reload is about to begin."""
    return replace(
        status,
        state=CertificateState.RELOADING,
        update_time=now,
        installed_version=version.number,
        activate_after=None,
        held_by_rollout_id="",
    )


def verifying(status: LineageStatus, now: datetime) -> LineageStatus:
    """The reload succeeded, and the service is about to be looked at."""
    return replace(status, state=CertificateState.VERIFYING, update_time=now)


def looked(
    status: LineageStatus, view: ServiceView, versions: Sequence[Version], now: datetime, *, interval: timedelta
) -> LineageStatus:
    """The service was looked at: what it serves, whatever that means for the state.

    Args:
        status: Before.
        view: What was found.
        versions: All that are on disk: the leaf may be any of them.
        now: When.
        interval: When to look again, for its own sake.
    """
    leaf = view.leaf
    served = None if leaf is None else next((each for each in versions if _is_leaf_of(leaf, each)), None)
    return replace(
        status,
        update_time=now,
        verified_version=None if served is None else served.number,
        verify_time=now,
        served_serial_number="" if leaf is None else leaf.serial_number,
        served_not_before=None if leaf is None else leaf.not_before,
        served_not_after=None if leaf is None else leaf.not_after,
        next_verify_time=now + interval,
    )


def _is_leaf_of(leaf: ServedLeaf, version: Version) -> bool:
    return (leaf.serial_number, leaf.public_key_sha256) == (version.serial_number, version.public_key_sha256)


def verified(status: LineageStatus) -> LineageStatus:
    """A look, recorded by `looked`, found what should be there: earlier finds are past."""
    calm = replace(status, verify_failures=0, verify_error="", drift_reloaded=False)
    if status.failures or status.activation_failures or status.rejected_version is not None:
        return calm
    if status.state not in {CertificateState.WAITING, CertificateState.DEGRADED}:
        return calm
    return replace(calm, state=CertificateState.ISSUED if status.activate_after else CertificateState.SERVING)


def verify_failed(
    status: LineageStatus,
    problem: str,
    now: datetime,
    rng: random.Random,
    *,
    current: Version,
    reload_time: datetime | None,
) -> LineageStatus:
    """A look, recorded by `looked`, found something else: visible, and looked at again soon.

    Args:
        status: After `looked`.
        problem: What was found, for `status`.
        now: When.
        rng: For the jitter.
        current: What is in place; the less life it has left, the sooner the next look.
        reload_time: From when on the one reload may be made that is still to be made; None if there is none.
    """
    failures = status.verify_failures + 1
    soon = now + activation_backoff(current, now).wait(failures, rng)
    if reload_time is not None and reload_time > now:
        soon = min(soon, reload_time)
    return replace(
        status,
        state=status.state if status.state is CertificateState.FAILED else CertificateState.DEGRADED,
        update_time=now,
        verify_failures=failures,
        verify_error=problem,
        next_verify_time=min(soon, status.next_verify_time or soon),
    )


def activated(status: LineageStatus, version: Version, now: datetime) -> LineageStatus:
    """The reload succeeded, and the look if there was one: this version is what a later failure goes back to.

    A request that failed meanwhile (for the next version: this one had to wait) is still to be told.
    """
    seen = status.state is CertificateState.VERIFYING
    return replace(
        status,
        state=CertificateState.SERVING if seen else CertificateState.WAITING,
        update_time=now,
        renew_reason="",
        last_error=status.request_error if status.failures else "",
        failed_step=RenewalStep.REQUEST if status.failures else None,
        rejected_version=None,
        confirmed_version=version.number,
        installed_version=version.number,
        activation_failures=0,
        next_activation_time=None,
        activate_after=None,
        held_by_rollout_id="",
        verify_failures=0,
        verify_error="",
        drift_reloaded=False,
        revoked_versions=tuple(number for number in status.revoked_versions if number >= version.number),
    )


def going_back(status: LineageStatus, step: RenewalStep, error: str, now: datetime) -> LineageStatus:
    """A step failed, and the version before is about to be put in place again."""
    return replace(status, state=CertificateState.DEGRADED, update_time=now, failed_step=step, last_error=error)


def activation_failed(
    status: LineageStatus,
    error: str,
    now: datetime,
    rng: random.Random,
    *,
    step: RenewalStep,
    rejected_version: int | None,
    current: Version | None,
) -> LineageStatus:
    """The activation failed: when the next one may begin.

    Args:
        status: As `activating` left it, or a later step.
        error: What failed, for `status`.
        now: When.
        rng: For the jitter.
        step: Which step failed.
        rejected_version: The version that was rolled back; None if it stays, or never was installed.
        current: What is shown now; the less life it has left, the sooner the next try.
    """
    wait = activation_backoff(current, now).wait(status.activation_failures, rng)
    return replace(
        status,
        state=CertificateState.DEGRADED,
        update_time=now,
        last_error=error,
        failed_step=step,
        rejected_version=rejected_version,
        installed_version=None if current is None else current.number,
        next_activation_time=now + wait,
    )
