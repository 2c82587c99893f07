"""What is to be done about one certificate now: facts and a moment in, one step out.

Rules, in order:

1. A version on disk that isn't confirmed (its reload has not succeeded) is activated: at once, after a failure when its
   back-off ends. While it waits, the certificate that counts for a renewal is still that version: what failed is the
   activation, and a second certificate would fail as the first did.
2. A request is made when there is no version, the configuration wants other names or another kind of key, the
   certificate is due, an operator forces it, or a request is pending from before a crash.
3. No request before `retry_time`, whoever asks: a CA, a limit or a lock said so. Not before `next_attempt_time` either,
   unless forced: that is only our own patience.
4. Otherwise nothing, until a time that the plan names.

Due is the broker's `renew_time` (it asks the CA: RFC 9773); the host's own rule (`pki.lifetime`) where the broker named
none or none within the validity; and the earlier of both where the host's configuration has a `renew_before` of its
own. It is never in the first tenth of the lifetime, so that no answer of a broker makes a host renew in a loop; only a
directive about this one certificate may say so (`Version.directed`): what replaces it has another name.

Clock jumps are harmless: the plan is made anew after `LONGEST_PAUSE` at most, `status.settle_clock` repairs records
from the future, and a certificate that isn't valid yet by this host's clock is used all the same: the CA's clock is
the better one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from certplane.agent.model import LineageStatus, PendingRequest, RenewalCause, Version
from certplane.errors import RefusalError
from certplane.pki.csr import parse_csr
from certplane.pki.lifetime import renew_time

__all__ = [
    "LONGEST_PAUSE",
    "Activate",
    "LineageFacts",
    "LineageSpec",
    "Plan",
    "RenewReason",
    "Request",
    "Wait",
    "due_time",
    "newest_version",
    "pause",
    "plan_renewal",
    "warn_time",
]

LONGEST_PAUSE = timedelta(minutes=15)
"""Sleeps are by the monotonic clock, which knows nothing of a wall clock that was set or of a suspended machine."""


_FRESH = 10
"""The first part of this many of a lifetime, in which nothing is due."""


class RenewReason(StrEnum):
    """Why a certificate is requested; shown by `status`."""

    FIRST = "there is none yet"
    NAMES_CHANGED = "the configuration has other names"
    KEY_TYPE_CHANGED = "the configuration has another kind of key"
    EXPIRED = "it has expired"
    DUE = "its renewal time has come"
    FORCED = "an operator asked for it"
    RESUMED = "a request was under way"


@dataclass(frozen=True, slots=True)
class LineageSpec:
    """What the configuration wants of one lineage.

    `dns_names` are canonical and sorted; empty takes the names as they are (the identity's). `key_type` is a
    `pki.keys.KeyType` by value; empty takes any. `phase_key` fixes the host's place in the renewal window.
    """

    name: str
    phase_key: str
    dns_names: tuple[str, ...] = ()
    key_type: str = ""
    renew_before: timedelta | None = None
    warn_before: timedelta | None = None


@dataclass(frozen=True, slots=True)
class LineageFacts:
    """What is on disk: `versions` oldest first, `current` the one that is shown."""

    versions: tuple[Version, ...]
    current: Version | None
    pending: PendingRequest | None
    status: LineageStatus


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing until then. `held_back`: what would be requested if a waiting time didn't forbid it."""

    until: datetime
    held_back: RenewReason | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for a certificate. `replaces`: the version that it follows, if any.

    `abandon_pending`: the pending request is for what the configuration no longer wants; drop it first.
    """

    reason: RenewReason
    replaces: Version | None
    abandon_pending: bool = False


@dataclass(frozen=True, slots=True)
class Activate:
    """Install a version that is on disk, and reload."""

    version: Version


@dataclass(frozen=True, slots=True)
class Plan:
    """One step, and what `status` shows: `renew_time` of the newest version; `overdue` when it is time to warn."""

    step: Wait | Request | Activate
    renew_time: datetime | None
    overdue: bool


def plan_renewal(spec: LineageSpec, facts: LineageFacts, now: datetime, *, forced: bool = False) -> Plan:
    """Decide the next step.

    Args:
        spec: What the configuration wants.
        facts: What is on disk.
        now: The wall clock's time.
        forced: An operator wants a new certificate whatever the dates say.
    """
    newest = newest_version(facts.versions)
    due = None if newest is None else due_time(spec, newest)
    activation = None if newest is None else _activation_time(facts, newest, now)
    step: Wait | Request | Activate
    if newest is not None and activation is not None and activation <= now:
        step = Activate(newest)
    else:
        step = _request_or_wait(spec, facts, now, activation, forced=forced)
    return Plan(step, due, _is_overdue(spec, facts.current, now))


def pause(plan: Plan, now: datetime) -> timedelta:
    """How long to sleep before planning again; nothing when there is something to do."""
    if not isinstance(plan.step, Wait):
        return timedelta()
    return min(max(plan.step.until - now, timedelta()), LONGEST_PAUSE)


def newest_version(versions: tuple[Version, ...]) -> Version | None:
    """The newest that was issued to this agent: an imported one (0) is what the first request replaces."""
    return max((version for version in versions if version.number > 0), key=lambda each: each.number, default=None)


def due_time(spec: LineageSpec, version: Version) -> datetime:
    """When a version is due for renewal: never after its end."""
    if version.not_after <= version.not_before:
        return version.not_before
    own = renew_time(version.not_before, version.not_after, spec.renew_before, spec.phase_key)
    told = version.renew_time
    if told is None or told >= version.not_after:
        return own
    if version.directed is None or version.directed.cause is RenewalCause.LIFETIME:
        told = max(told, version.not_before + (version.not_after - version.not_before) / _FRESH)
    return told if spec.renew_before is None else min(own, told)


def warn_time(spec: LineageSpec, version: Version) -> datetime:
    """When a renewal counts as overdue: `warn_before` its end, else half-way from the due time to it."""
    due = due_time(spec, version)
    if spec.warn_before is None:
        return due + (version.not_after - due) / 2
    return max(due, version.not_after - spec.warn_before)


def _is_overdue(spec: LineageSpec, current: Version | None, now: datetime) -> bool:
    """What services use counts, whatever waits on disk for its activation."""
    return current is not None and current.number > 0 and now >= warn_time(spec, current)


def _activation_time(facts: LineageFacts, newest: Version, now: datetime) -> datetime | None:
    """When the newest version is to be activated, `now` for at once; None if it is in force, or has expired."""
    shown = None if facts.current is None else facts.current.number
    if facts.status.confirmed_version == shown == newest.number or newest.not_after <= now:
        return None
    return facts.status.next_activation_time or now


def _request_or_wait(
    spec: LineageSpec, facts: LineageFacts, now: datetime, activation: datetime | None, *, forced: bool
) -> Request | Wait:
    """`activation`: the time of an activation that isn't due yet."""
    newest, status = newest_version(facts.versions), facts.status
    reason = _reason(spec, facts, newest, now, forced=forced)
    if reason is None:
        assert newest is not None
        return Wait(_earliest(due_time(spec, newest), activation))
    waits = [status.retry_time, None if forced else status.next_attempt_time]
    until = max((wait for wait in waits if wait is not None), default=now)
    if until > now:
        return Wait(_earliest(until, activation), held_back=reason)
    abandon = facts.pending is not None and not _is_wanted(spec, facts.pending)
    return Request(reason, newest, abandon_pending=abandon)


def _earliest(moment: datetime, other: datetime | None) -> datetime:
    return moment if other is None else min(moment, other)


def _reason(
    spec: LineageSpec, facts: LineageFacts, newest: Version | None, now: datetime, *, forced: bool
) -> RenewReason | None:
    if newest is None:
        return RenewReason.FIRST
    reasons = {
        RenewReason.NAMES_CHANGED: bool(spec.dns_names) and newest.dns_names != spec.dns_names,
        RenewReason.KEY_TYPE_CHANGED: bool(spec.key_type) and newest.key_type != spec.key_type,
        RenewReason.EXPIRED: newest.not_after <= now,
        RenewReason.DUE: due_time(spec, newest) <= now,
        RenewReason.FORCED: forced,
        RenewReason.RESUMED: facts.pending is not None,
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
