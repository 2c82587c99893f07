"""What a failure means for the next try: by who can end it, and how much life is left. Pure.

A broker that can't be reached is asked again soon, a policy that says no rarely, a CA that rejected the names slower
than its limit on failed validations. Every ceiling is at most a share of the life that is left, so that a short
certificate still gets its tries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum

from certplane.agent.model import LineageStatus, Version
from certplane.errors import CertplaneError, OperationError, Reason, Refusal, RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.health import PERSONS_REASONS
from certplane.runtime.text import printable

_SHARE = 24
"""At least so many tries fit into the life that is left, whatever the back-off says."""

_LONGEST_WAIT = timedelta(days=7)
"""The longest window of a public CA's limits (Let's Encrypt's 5 per week). Who says more has a wrong clock."""

_LEAST_CEILING = timedelta(seconds=30)
"""However little life is left: tries cost others something."""
_REVOKED = Backoff(first=timedelta(minutes=1), most=timedelta(minutes=10), floor=timedelta(seconds=15))
"""A revoked certificate has no life left, and nobody's limit is a reason to serve it on."""

_ACTIVATION = Backoff(first=timedelta(minutes=1), most=timedelta(hours=6), floor=timedelta(seconds=20))
_ACTIVATION_URGENT = timedelta(minutes=5)


class FailureKind(Enum):
    """What kind of failure, by who can end it."""

    UNREACHABLE = "unreachable"
    """The broker, or something behind it, doesn't answer now."""
    LIMITED = "limited"
    """A limit is used up."""
    REFUSED = "refused"
    """The broker says no; an operator has to change something."""
    REJECTED = "rejected"
    """The CA or the DNS says no; a try costs one of the few failed validations that it allows."""


@dataclass(frozen=True, slots=True)
class _Patience:
    backoff: Backoff
    urgent: timedelta
    """The ceiling isn't lowered below this however little life is left."""


_PATIENCES = {
    FailureKind.UNREACHABLE: _Patience(
        Backoff(first=timedelta(seconds=30), most=timedelta(minutes=30), floor=timedelta(seconds=5)),
        urgent=timedelta(minutes=2),
    ),
    FailureKind.LIMITED: _Patience(
        Backoff(first=timedelta(hours=1), most=timedelta(days=1), floor=timedelta(minutes=10)),
        urgent=timedelta(hours=1),
    ),
    FailureKind.REFUSED: _Patience(
        Backoff(first=timedelta(minutes=5), most=timedelta(hours=6), floor=timedelta(minutes=1)),
        urgent=timedelta(minutes=15),
    ),
    FailureKind.REJECTED: _Patience(
        # Let's Encrypt allows five failed validations per name and hour, and counts them for the whole account.
        Backoff(first=timedelta(minutes=30), most=timedelta(days=1), floor=timedelta(minutes=15)),
        urgent=timedelta(minutes=30),
    ),
}

_KINDS: dict[Reason, FailureKind] = {
    **dict.fromkeys(PERSONS_REASONS, FailureKind.REFUSED),
    Reason.RATE_LIMITED: FailureKind.LIMITED,
    Reason.ISSUER_RATE_LIMITED: FailureKind.LIMITED,
    Reason.AUDIT_UNAVAILABLE: FailureKind.UNREACHABLE,
    Reason.STORE_UNAVAILABLE: FailureKind.UNREACHABLE,
    Reason.POLICY_UNAVAILABLE: FailureKind.UNREACHABLE,
    Reason.ISSUER_UNAVAILABLE: FailureKind.UNREACHABLE,
    Reason.DNS_UNAVAILABLE: FailureKind.UNREACHABLE,
    Reason.DRAINING: FailureKind.UNREACHABLE,
    Reason.ISSUER_REJECTED: FailureKind.REJECTED,
    Reason.DNS_REJECTED: FailureKind.REJECTED,
    Reason.ORDER_NOT_FOUND: FailureKind.UNREACHABLE,
    Reason.CERTIFICATE_NOT_FOUND: FailureKind.UNREACHABLE,
    Reason.HOST_NOT_FOUND: FailureKind.UNREACHABLE,
    Reason.BOOTSTRAP_NOT_CONFIGURED: FailureKind.UNREACHABLE,  # no answer to an agent
    Reason.STREAM_DISPLACED: FailureKind.UNREACHABLE,
    Reason.STREAM_TIMED_OUT: FailureKind.UNREACHABLE,
    Reason.INTERNAL: FailureKind.UNREACHABLE,
}
_BY_POLICY = frozenset({Reason.IDENTITY_UNKNOWN, Reason.PROFILE_NOT_ALLOWED, Reason.NAMES_NOT_ALLOWED, Reason.KEY_WEAK})
"""`failure_of` puts the reason before the message."""
_REASONS = frozenset(map(str, Reason))
_OF_ISSUER = frozenset({Reason.ISSUER_RATE_LIMITED})
"""Refusals whose time the CA named."""
_MOST_MESSAGE = 2000
"""Octets of a failure's message: it is kept on disk and shown."""
_FINAL_FOR_KEY = frozenset({Reason.KEY_REUSED, Reason.KEY_WEAK, Reason.CSR_INVALID})
_FINAL_PROBLEMS = frozenset({"urn:ietf:params:acme:error:badCSR", "urn:ietf:params:acme:error:badPublicKey"})
"""RFC 8555 6.7: the same CSR would be rejected again."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed.

    `retry_time`: a CA said not to come back before it. `told_time`: the broker did, which is a wish (its limits and
    locks are its own to hold).
    """

    kind: FailureKind
    message: str
    retry_time: datetime | None = None
    told_time: datetime | None = None


def failure_of(cause: CertplaneError | Refusal, now: datetime, retry_time: datetime | None = None) -> Failure:
    """What a failed call, or a failed order's refusal, means for the next try.

    Args:
        cause: The error, or `OrderView.error`.
        now: When it came; a `retry_after` counts from here.
        retry_time: `OrderView.retry_time`, which counts if it is later; none counts for more than a week.
    """
    refusal = cause.refusal if isinstance(cause, RefusalError) else cause
    if isinstance(refusal, Refusal):
        kind, after = _KINDS[refusal.reason], refusal.retry_after
        message = f"{refusal.reason}: {_with_limits(refusal)}"
        by_issuer = refusal.reason in _OF_ISSUER
    else:
        kind, message = FailureKind.UNREACHABLE, str(refusal)
        after = refusal.retry_after if isinstance(refusal, OperationError) else None
        by_issuer = True  # the internal CA's: nobody else says when in an error of this host
    latest = now + _LONGEST_WAIT
    moments = [None if after is None else now + min(after, _LONGEST_WAIT), retry_time]
    told = [min(moment, latest) for moment in moments if moment is not None]
    latest_told = max(told, default=None)
    message = printable(message, _MOST_MESSAGE)
    return Failure(kind, message, latest_told) if by_issuer else Failure(kind, message, told_time=latest_told)


def _with_limits(refusal: Refusal) -> str:
    """The message, and the limits that it speaks of where it doesn't name them."""
    if _KINDS[refusal.reason] is not FailureKind.LIMITED:
        return refusal.message
    limits = [f"{each.subject}: {each.description}" for each in refusal.violations if each.subject]
    unnamed = [
        limit for limit, each in zip(limits, refusal.violations, strict=False) if each.subject not in refusal.message
    ]
    return f"{refusal.message} ({'; '.join(unnamed)})" if unnamed else refusal.message


def is_issuers_word(status: LineageStatus) -> bool:
    """Whether `retry_time` is a CA's; an older release kept the broker's there too."""
    reason = _reason_of(status)
    return reason not in _REASONS or Reason(reason) in _OF_ISSUER


def is_refused_by_policy(status: LineageStatus) -> bool:
    """Whether the last request failed because the broker's policy says no: another policy may say yes."""
    return status.failures > 0 and _reason_of(status) in _BY_POLICY


def is_unreached(status: LineageStatus) -> bool:
    """Whether the last request failed without an answer of the broker's: once it is there, the wait has no sense."""
    return status.failures > 0 and _reason_of(status) not in _REASONS


def needs_person(status: LineageStatus) -> bool:
    """Whether the last request failed for something that only a person can change: policy, identity, request."""
    reason = _reason_of(status)
    return status.failures > 0 and reason in _REASONS and _KINDS[Reason(reason)] is FailureKind.REFUSED


def _reason_of(status: LineageStatus) -> str:
    """The broker's reason for the last failed request; a status of an older release has no `request_error`."""
    return (status.request_error or status.last_error).partition(":")[0]


def kind_of(reason: Reason) -> FailureKind:
    """Who can end what is refused for this reason."""
    return _KINDS[reason]


def is_final_for_key(refusal: Refusal) -> bool:
    """Whether the same CSR can never succeed, so that the pending key is to be abandoned."""
    return refusal.reason in _FINAL_FOR_KEY or any(problem.type in _FINAL_PROBLEMS for problem in refusal.problems)


def request_backoff(kind: FailureKind, newest: Version | None, now: datetime, *, revoked: bool = False) -> Backoff:
    """The waits between requests; `newest` is the certificate whose life is to last until one succeeds."""
    if revoked:
        return _REVOKED
    patience = _PATIENCES[kind]
    return _capped(patience.backoff, patience.urgent, newest, now)


def activation_backoff(current: Version | None, now: datetime) -> Backoff:
    """The waits between activations; `current` is what is shown meanwhile."""
    return _capped(_ACTIVATION, _ACTIVATION_URGENT, current, now)


def _capped(backoff: Backoff, urgent: timedelta, version: Version | None, now: datetime) -> Backoff:
    """The back-off with its ceiling at a share of the life that `version` has left, and never beyond half of it."""
    if version is None:
        return backoff
    left = version.not_after - now
    most = min(backoff.most, max(urgent, left / _SHARE))
    if left > timedelta():
        most = min(most, half_of(left))
    return replace(backoff, most=most, floor=min(backoff.floor, most))


def half_of(left: timedelta) -> timedelta:
    """The longest wait that a certificate with so much life left allows."""
    return max(left / 2, _LEAST_CEILING)
