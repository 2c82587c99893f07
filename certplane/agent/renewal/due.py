"""When a version is due for renewal, and why: what the configuration wants and the broker's word, in one place. Pure.

Due is the broker's `renew_time` (it asks the CA: RFC 9773); the host's own rule (`pki.lifetime`) where the broker named
none or none within the validity; and the earlier of both where the host's configuration has a `renew_before` of its
own. It is never in the first tenth of the lifetime, so that no answer of a broker makes a host renew in a loop; only a
directive about this one certificate may say so (`Version.directed`): what replaces it has another name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum

from certplane.agent.model import ActivationHold, LineageStatus, Version
from certplane.agent.renewal.directed import explanation
from certplane.agent.renewal.waiting import Asked
from certplane.agent.renewal.window import ActivationWindow
from certplane.fleet_report.model import RenewalCause
from certplane.pki.lifetime import renew_time
from certplane.runtime.health import overdue_time

FRESH = 10
"""The first part of this many of a lifetime, in which nothing is due."""
_OVERRIDE = timedelta(hours=72)
"""With less life left than this, a certificate in use makes its successor's activation wait for no window."""
_OVERRIDE_SHARE = 4
"""And never more than the last part of this many of its lifetime, so that a short certificate has windows too."""
_LAST_DAY = timedelta(days=1)
_LAST_SHARE = 10
"""With so much less life left, or so little of its lifetime, a certificate in use makes no rollout be waited for: it is
about what a timer that starts the agent once a day needs."""


class RenewReason(StrEnum):
    """Why a certificate is requested; shown by `status`."""

    FIRST = "there is none yet"
    REVOKED = "it was revoked"
    NAMES_CHANGED = "the configuration has other names"
    KEY_TYPE_CHANGED = "the configuration has another kind of key"
    EXPIRED = "it has expired"
    DUE = "its renewal time has come"
    FORCED = "an operator asked for it"
    RESUMED = "a request was under way"


_TOLD_MORE = frozenset({RenewReason.DUE.value, RenewReason.REVOKED.value})
"""Reasons of which the broker's directive says more."""


@dataclass(frozen=True, slots=True)
class LineageSpec:
    """What the configuration wants of one lineage.

    `dns_names` are canonical and sorted; empty takes the names as they are (the identity's). `key_type` is a
    `pki.keys.KeyType` by value; empty takes any. `phase_key` fixes the host's place in the renewal window.
    `window` holds activations back, in the zone `local` unless it has one of its own; `expires_override`: see
    `override_time`. `verify_interval`: how often the service is looked at; None where it can't be. `asked`: see there.
    """

    name: str
    phase_key: str
    dns_names: tuple[str, ...] = ()
    key_type: str = ""
    renew_before: timedelta | None = None
    warn_before: timedelta | None = None
    window: ActivationWindow | None = None
    expires_override: timedelta | None = None
    local: tzinfo = UTC
    verify_interval: timedelta | None = None
    asked: Asked = field(default_factory=Asked)


def is_unwanted(spec: LineageSpec, version: Version) -> bool:
    """Whether the configuration has other names by now, or another kind of key."""
    other_names = bool(spec.dns_names) and version.dns_names != spec.dns_names
    return other_names or spec.key_type not in {"", version.key_type}


def due_time(spec: LineageSpec, version: Version) -> datetime:
    """When a version is due for renewal: never after its end."""
    if version.not_after <= version.not_before:
        return version.not_before
    own = renew_time(version.not_before, version.not_after, spec.renew_before, spec.phase_key)
    told = version.renew_time
    if told is None or told >= version.not_after:
        return own
    if version.directed is None or version.directed.cause is RenewalCause.LIFETIME:
        told = max(told, version.not_before + (version.not_after - version.not_before) / FRESH)
    if version.directed is not None and version.directed.is_of_identity:
        return min(own, told)  # the broker knows nothing of an identity's own time, and puts none off
    return told if spec.renew_before is None else min(own, told)


def own_due_time(spec: LineageSpec, version: Version) -> datetime:
    """When it would be due if the broker had said nothing."""
    return due_time(spec, replace(version, directed=None, renew_time=None))


def due_reason(spec: LineageSpec, version: Version) -> str:
    """Whose word `due_time` is, in few words for a person."""
    if version.directed is not None and due_time(spec, version) == version.directed.renew_time:
        return explanation(version.directed)
    if version.renew_time is not None and due_time(spec, version) == version.renew_time:
        return "the broker's time"
    return "the host's rule" if spec.renew_before is None else "renew_before"


def shown_reason(spec: LineageSpec, status: LineageStatus, version: Version | None) -> str:
    """Why a version is to be renewed, or was just asked for anew, for a person: the broker's word where that decides.

    Args:
        spec: What the configuration wants.
        status: The lineage's.
        version: The one that is followed by another; None if there is none yet.
    """
    reason = status.renew_reason
    if version is None or (reason and (version.directed is None or reason not in _TOLD_MORE)):
        return reason
    return due_reason(spec, version)


def warn_time(spec: LineageSpec, version: Version) -> datetime:
    """When a renewal counts as overdue: `warn_before` its end, else half-way from the due time to it.

    Of what a rollout has renewed and holds back: from the host's own due time on. Rollouts have a pace of their own.
    """
    held = version.directed is not None and version.directed.hold_activation
    due = own_due_time(spec, version) if held else due_time(spec, version)
    if spec.warn_before is None:
        return overdue_time(due, version.not_after)
    return max(due, version.not_after - spec.warn_before)


def override_time(spec: LineageSpec, served: Version) -> datetime:
    """From when on no window holds back what follows `served`.

    That is `expires_override` before its end, 72 hours unless configured, but at most a quarter of its lifetime.
    """
    lifetime = served.not_after - served.not_before
    return served.not_after - min(spec.expires_override or _OVERRIDE, lifetime / _OVERRIDE_SHARE)


def hold_end(spec: LineageSpec, hold: ActivationHold, served: Version) -> datetime:
    """When what follows `served` is activated without a word from the broker, whatever `hold` says.

    That is at the time that the broker gave, or, where the rollout has ended, when `served` is due by this host's own
    rule; but a day, or at most a tenth of its lifetime, before it ends.
    """
    latest = served.not_after - min(_LAST_DAY, (served.not_after - served.not_before) / _LAST_SHARE)
    wanted = [latest] if hold.activate_by_time is None else [latest, hold.activate_by_time]
    return min([*wanted, own_due_time(spec, served)] if hold.abandoned else wanted)


def aborted_rollout(newest: Version | None) -> str:
    """The rollout that held the newest version back and was aborted; empty if there is none."""
    return newest.hold.rollout_id if newest is not None and newest.hold is not None and newest.hold.abandoned else ""


def waiting_text(version: int | None, held_by: str, aborted: str, when: str) -> str:
    """What the newest version, which isn't in use yet, waits for, for a person.

    Args:
        version: Its number.
        held_by: The rollout that holds it; empty if none does.
        aborted: The rollout that did, and was aborted; else empty.
        when: Until when it waits.
    """
    if held_by:
        return f"version {version} waits for rollout {held_by} to release it, until {when} at the latest"
    if aborted:
        return f"version {version} waits until {when}, since rollout {aborted} was aborted"
    return f"version {version} waits for its window, {when}"
