"""What is to be done about one certificate now: facts and a moment in, one step out.

Rules, in order:

1. A version on disk that isn't confirmed (its activation has not succeeded) is activated: at once, after a failure when
   its back-off ends or an operator asks for a new certificate (what is there comes before what must be ordered). Where
   a rollout holds it (`Version.hold`) it waits for its release, and where there is a window (`LineageSpec.window`)
   after that until it opens; for neither so long that the certificate in use comes near its end (`due.hold_end`,
   `due.override_time`), and not where nothing of use is served. While it waits, the certificate that counts for a
   renewal is still that version: what failed is the activation, and a second certificate would fail as the first did.
   An activation that was begun is finished, and one that a person of this host wants is made, hold and window or not.
2. A request is made when there is no version, the newest was revoked, the configuration wants other names or another
   kind of key, the certificate is due, an operator forces it, or a request is pending from before a crash. Windows
   don't hold requests back.
3. No request before a time that a CA named, whoever asks, nor before our own patience ends, unless its cause has gone
   or somebody wants it now: `renewal.waiting`. Of the renewals that a broker wants before their time only so many are
   made in an hour.
4. Where the service can be looked at (`LineageSpec.verify_interval`), it is, from time to time: does it serve the
   confirmed version that is in place?
5. Otherwise nothing, until a time that the plan names.

Clock jumps are harmless: the plan is made anew after `LONGEST_PAUSE` at most, `status.settle_clock` repairs records
from the future, and a certificate that isn't valid yet by this host's clock is used all the same: the CA's clock is
the better one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from certplane.agent.model import PendingRequest, Version
from certplane.agent.renewal.due import (
    FRESH,
    LineageSpec,
    RenewReason,
    due_time,
    hold_end,
    override_time,
    own_due_time,
    warn_time,
)
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.renewal.waiting import directed_pause, hold_of, paused_text
from certplane.errors import RefusalError
from certplane.fleet_report.model import RenewalStep
from certplane.pki.csr import parse_csr

LONGEST_PAUSE = timedelta(minutes=15)
"""Sleeps are by the monotonic clock, which knows nothing of a wall clock that was set or of a suspended machine."""

_BETWEEN_REQUESTS = timedelta(minutes=1)
_LEAST_BETWEEN_REQUESTS = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing until then.

    `held_back`: what would be requested if a waiting time didn't forbid it; `by_issuer`: a CA named that time. `why`:
    what a person is told of it, where no failure says so.
    """

    until: datetime
    held_back: RenewReason | None = None
    by_issuer: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for a certificate. `replaces`: the version that it follows, if any.

    `abandon_pending`: the pending request is for what the configuration no longer wants, or of a key that was revoked;
    drop it first. `directed`: the broker wants it before its time. `new_key`: it wants another key, whatever agent.yml
    says of keys.
    """

    reason: RenewReason
    replaces: Version | None
    abandon_pending: bool = False
    directed: bool = False
    new_key: bool = False


@dataclass(frozen=True, slots=True)
class Activate:
    """Install a version that is on disk, and reload."""

    version: Version


@dataclass(frozen=True, slots=True)
class Verify:
    """Look whether the service serves `version`, which is in place and confirmed.

    `reload_time`: from when on the one reload may be made that a find is worth; None: it has been made.
    """

    version: Version
    reload_time: datetime | None


@dataclass(frozen=True, slots=True)
class Plan:
    """One step, and what `status` shows.

    `renew_time` is the newest version's; `overdue` when it is time to warn; `activate_after` until when a rollout or a
    window holds the newest version back, and `held_by_rollout_id` which rollout; `served` whether what is in place was
    seen served. `issued` and `installed` are the numbers of the newest version and of the one in place.
    """

    step: Wait | Request | Activate | Verify
    renew_time: datetime | None
    overdue: bool
    activate_after: datetime | None = None
    held_by_rollout_id: str = ""
    served: bool = False
    issued: int | None = None
    installed: int | None = None


def next_step(
    spec: LineageSpec, facts: LineageFacts, now: datetime, *, forced: bool = False, at_once: bool = False
) -> Plan:
    """Decide the next step.

    Args:
        spec: What the configuration wants.
        facts: What is on disk.
        now: The wall clock's time.
        forced: An operator wants a new certificate whatever the dates say.
        at_once: An operator wants what is on disk in use, whatever it waits for.
    """
    newest = newest_version(facts.versions)
    due = None if newest is None else due_time(spec, newest)
    ready = None if newest is None else _ready_time(spec, facts, newest, now, forced=forced or at_once)
    activation = ready
    held_until = None
    if newest is not None and ready is not None and not at_once and (served := _held_for(facts, newest)) is not None:
        held_until = None if newest.hold is None else hold_end(spec, newest.hold, served)
        activation = _window_time(spec, served, max(ready, held_until or ready), now)
    step: Wait | Request | Activate | Verify
    if newest is not None and activation is not None and activation <= now:
        step = Activate(newest)
    else:
        step = _verify_or(_request_or_wait(spec, facts, now, activation, forced=forced), spec, facts, now)
    held = activation is not None and ready is not None and activation > max(ready, now)
    return Plan(
        step,
        due,
        _is_overdue(spec, facts.current, now),
        activate_after=activation if held else None,
        held_by_rollout_id=_holder(newest, held_until, now) if held else "",
        served=_is_seen_served(spec, facts),
        issued=None if newest is None else newest.number,
        installed=None if facts.current is None else facts.current.number,
    )


def pause(plan: Plan, now: datetime) -> timedelta:
    """How long to sleep before planning again; nothing when there is something to do."""
    if not isinstance(plan.step, Wait):
        return timedelta()
    return min(max(plan.step.until - now, timedelta()), LONGEST_PAUSE)


def pause_after_issue(spec: LineageSpec, version: Version, now: datetime) -> timedelta:
    """How long to sleep after a certificate was had and put in force, before planning again.

    A minute, so that one whose life is over as soon as it begins isn't asked for in a loop. A certificate that isn't
    due yet has no such loop: its pause is the first part of its life if that is shorter, so that one that lives for a
    minute is renewed in time.
    """
    if due_time(spec, version) <= now:
        return _BETWEEN_REQUESTS
    fresh = (version.not_after - version.not_before) / FRESH
    return min(max(fresh, _LEAST_BETWEEN_REQUESTS), _BETWEEN_REQUESTS)


def newest_version(versions: tuple[Version, ...]) -> Version | None:
    """The newest that is this agent's own; any other imported one (0) is only what a failed activation goes back to."""
    return max((version for version in versions if version.is_own), key=lambda each: each.number, default=None)


def _is_overdue(spec: LineageSpec, current: Version | None, now: datetime) -> bool:
    """What services use counts, whatever waits on disk for its activation."""
    return current is not None and current.is_own and now >= warn_time(spec, current)


def _ready_time(
    spec: LineageSpec, facts: LineageFacts, newest: Version, now: datetime, *, forced: bool
) -> datetime | None:
    """When the newest version is to be activated, windows aside, `now` for at once.

    None if it is in force, or nothing that anybody should serve.
    """
    status = facts.status
    shown = None if facts.current is None else facts.current.number
    unshown = status.activation_failures > 0 and status.failed_step is RenewalStep.INSTALL  # see `status.not_shown`
    if status.confirmed_version == shown == newest.number and not unshown:
        return None
    if newest.not_after <= now or newest.number in status.revoked_versions:
        return None
    other_settings = status.activated_settings and status.activated_settings != spec.asked.settings
    if other_settings or (forced and status.activation_failures):
        return now
    return status.next_activation_time or now


def _held_for(facts: LineageFacts, newest: Version) -> Version | None:
    """What is used as long as the newest version is held back; None where nothing may hold that one back."""
    shown, status = facts.current, facts.status
    if shown is None:
        return None
    if shown.number == newest.number and status.next_activation_time is None:
        return None  # it was begun, and the agent ended in the middle
    served = next((each for each in facts.versions if each.number == status.confirmed_version), None)
    if served is None and shown.number != newest.number:
        served = shown  # what stood there before the first one
    return None if served is None or served.number in status.revoked_versions else served


def _window_time(spec: LineageSpec, served: Version, ready: datetime, now: datetime) -> datetime:
    """When the newest version may be activated: `ready`, or later if a window holds it back."""
    if spec.window is None:
        return ready
    ready = max(ready, now)
    return min(spec.window.opens(ready, spec.local), max(ready, override_time(spec, served)))


def _holder(newest: Version | None, until: datetime | None, now: datetime) -> str:
    """The rollout that holds a version back; not after that is over, nor once the rollout was aborted."""
    if newest is None or newest.hold is None or newest.hold.abandoned or until is None or until <= now:
        return ""
    return newest.hold.rollout_id


def _is_seen_served(spec: LineageSpec, facts: LineageFacts) -> bool:
    """Whether the service was seen to serve what is in place; never where nobody looks."""
    seen = facts.status.verified_version
    return spec.verify_interval is not None and facts.current is not None and seen == facts.current.number


def _verify_or(step: Request | Wait, spec: LineageSpec, facts: LineageFacts, now: datetime) -> Request | Wait | Verify:
    """A look at the service where nothing else is to be done now, and one is due."""
    current, status = facts.current, facts.status
    confirmed = current is not None and current.number == status.confirmed_version
    if isinstance(step, Request) or current is None or not confirmed or spec.verify_interval is None:
        return step
    when = status.next_verify_time or now
    if when > now:
        return replace(step, until=min(step.until, when))
    if status.drift_reloaded:
        return Verify(current, None)
    if spec.window is None:
        return Verify(current, now)
    return Verify(current, min(spec.window.opens(now, spec.local), max(now, override_time(spec, current))))


def _request_or_wait(
    spec: LineageSpec, facts: LineageFacts, now: datetime, activation: datetime | None, *, forced: bool
) -> Request | Wait:
    """`activation`: the time of an activation that isn't due yet."""
    newest, status = newest_version(facts.versions), facts.status
    # A version that waits for its activation is what an operator's wish gets: a second one would be wasted.
    reason = _reason(spec, facts, newest, now, forced=forced and activation is None)
    if reason is None:
        assert newest is not None
        return Wait(_earliest(due_time(spec, newest), activation))
    directed = None if newest is None else newest.directed
    hold = hold_of(spec.asked, status, directed, now, forced=forced)
    if hold is not None:
        until = _earliest(hold.until, activation)
        return Wait(until, held_back=reason, by_issuer=hold.by_issuer and until == hold.until)
    early = newest is not None and directed is not None and not forced and _is_before_its_time(spec, newest, now)
    if early and directed is not None and (paused := directed_pause(status, directed, now)) is not None:
        return Wait(_earliest(paused, activation), held_back=reason, why=paused_text(spec.name, directed, paused))
    abandon = facts.pending is not None and not _is_wanted(spec, facts.pending)
    new_key = directed is not None and directed.new_key
    if (new_key or reason is RenewReason.REVOKED) and facts.pending is not None and newest is not None:
        # `key_rotation: reuse`, and it was begun before: whoever revokes, or wants another key, has spent this one.
        abandon |= facts.pending.public_key_sha256 == newest.public_key_sha256
    return Request(reason, newest, abandon_pending=abandon, directed=early, new_key=new_key)


def _is_before_its_time(spec: LineageSpec, version: Version, now: datetime) -> bool:
    """Whether nothing but the broker's directive makes a version due."""
    if spec.dns_names and version.dns_names != spec.dns_names:
        return False
    return own_due_time(spec, version) > now


def _earliest(moment: datetime, other: datetime | None) -> datetime:
    return moment if other is None else min(moment, other)


def _reason(
    spec: LineageSpec, facts: LineageFacts, newest: Version | None, now: datetime, *, forced: bool
) -> RenewReason | None:
    if newest is None:
        return RenewReason.FIRST
    reasons = {
        RenewReason.REVOKED: newest.number in facts.status.revoked_versions,
        RenewReason.NAMES_CHANGED: bool(spec.dns_names) and newest.dns_names != spec.dns_names,
        RenewReason.KEY_TYPE_CHANGED: bool(spec.key_type) and newest.key_type != spec.key_type,
        RenewReason.EXPIRED: newest.not_after <= now,
        RenewReason.DUE: due_time(spec, newest) <= now,
        RenewReason.FORCED: forced,
        # A request that failed for good took its key with it; what it was made for (an operator's wish, say) remains.
        RenewReason.RESUMED: facts.pending is not None or facts.status.failures > 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _is_wanted(spec: LineageSpec, pending: PendingRequest) -> bool:
    """Whether a pending CSR is what the configuration still wants. An identity's CSR always is."""
    if not spec.dns_names:
        return True
    try:
        csr = parse_csr(pending.csr_pem)
    except RefusalError:  # made by a release with other rules
        return False
    return csr.dns_names == spec.dns_names and spec.key_type in {"", csr.key_type}
