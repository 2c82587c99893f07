"""Until when a failed request waits, and what ends the wait before its time. Pure.

Two times hold a request back. `retry_time` is a CA's word (its limit, its Retry-After): asking before it is of no use,
whoever wants it. `next_attempt_time` is patience, our own and what the broker asked for (its limits, a lock): it holds
back what nobody asked for, and ends as soon as the answer may be another one:

    another request     other names, another profile or kind of key in agent.yml: both times are void, since the CA's
                        was for other names
    other settings      of this certificate or of the broker: patience is void
    an operator's word  `renew NAME`, or a directive that came after the failure: patience is void
    a revocation        a directive that says so and came after the failure: both are void, once; the broker knows what
                        the CA still allows, and a key in other hands is worth one question too many
    the broker's word   its policy or its retry epoch changed, or it can be reached again: patience is void, which the
                        lineage's runner does (`LineageRunner.try_again`)

Whoever talks much makes no loop of it: after a failure `LEAST_WAIT` passes in any case but `renew NAME` and another
agent.yml, and of the renewals that a broker wants before their time only so many count in an hour.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from certplane.agent.model import DirectedRenewal, LineageStatus
from certplane.agent.renewal.directed import explanation
from certplane.agent.renewal.failures import is_issuers_word
from certplane.fleet_report.model import RenewalCause

LEAST_WAIT = timedelta(seconds=10)
_SPAN = timedelta(hours=1)
_DIRECTED = 3
"""In one `_SPAN`, for one certificate: more than a person asks for, and each is a reload of a service."""
_DIRECTED_URGENT = 10
"""Of revocations, and of rollouts: each of those directs a certificate once, and a night may have several."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What agent.yml asks for, by hashes: `request` of what the broker is asked for, `settings` of all that matters."""

    request: str = ""
    settings: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """No request before `until`; `by_issuer`: a CA named that time."""

    until: datetime
    by_issuer: bool = False


def hold_of(
    asked: Asked, status: LineageStatus, directed: DirectedRenewal | None, now: datetime, *, forced: bool
) -> Hold | None:
    """What holds a request back now; None if nothing does.

    Args:
        asked: What agent.yml says now.
        status: The lineage's.
        directed: The directive about its newest certificate.
        now: The wall clock's time.
        forced: An operator of this host wants it now.
    """
    issuers, own = status.retry_time, status.next_attempt_time
    if issuers is not None and not is_issuers_word(status):  # an older release kept the broker's time there
        own, issuers = max(issuers, own or issuers), None
    if status.asked_request and status.asked_request != asked.request:
        return None
    if forced or (status.asked_settings and status.asked_settings != asked.settings):
        own = None
    elif directed is not None and _is_newer(directed, status, now):
        own = soonest(status, now) if own is not None else None
        if directed.cause is RenewalCause.REVOKED:
            issuers = None
    if issuers is not None and issuers > now:
        return Hold(max(issuers, own or issuers), by_issuer=own is None or own <= issuers)
    return Hold(own) if own is not None and own > now else None


def soonest(status: LineageStatus, now: datetime) -> datetime | None:
    """The end of a wait whose cause is gone: at once (None), but not sooner than `LEAST_WAIT` after the failure."""
    if status.failed_time is None or not timedelta() <= now - status.failed_time < LEAST_WAIT:
        return None
    return status.failed_time + LEAST_WAIT


def directed_pause(status: LineageStatus, directed: DirectedRenewal, now: datetime) -> datetime | None:
    """Until when one more renewal that the broker wants before its time has to wait; None if it hasn't."""
    urgent = directed.cause is RenewalCause.REVOKED or directed.rollout_id
    most = _DIRECTED_URGENT if urgent else _DIRECTED
    counted = [moment for moment in status.directed_times if now - _SPAN < moment <= now]
    return counted[-most] + _SPAN if len(counted) >= most else None


def paused_text(name: str, directed: DirectedRenewal, until: datetime) -> str:
    """What a person is told of such a pause; they asked for the renewal, and nothing else says where it is."""
    return (
        f"waits until {until:%Y-%m-%d %H:%M:%S} UTC, since so many early renewals were made within an hour "
        f"(`certplane-agent renew {name}` doesn't wait): {explanation(directed)}"
    )


def _is_newer(directed: DirectedRenewal, status: LineageStatus, now: datetime) -> bool:
    """Whether a directive that wants a renewal now came after the last failure; by a clock that wasn't set back."""
    if directed.cause is RenewalCause.LIFETIME or directed.renew_time > now:
        return False
    if directed.receive_time is None or directed.receive_time > now:
        return False
    return status.failed_time is None or status.failed_time < directed.receive_time
