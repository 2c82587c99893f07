"""What a failure means for an order: try the step again, or end the order, and when a new one may follow. Pure.

Inside an order only what may be better in a moment is tried again: an issuer or a DNS provider that can't be reached,
and a rate limit that ends soon. What a CA, a DNS provider or policy has refused stays refused. Nothing is asked sooner
than the CA said.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta

from certplane.errors import Reason, Refusal
from certplane.runtime.backoff import Backoff

__all__ = ["End", "TryAgain", "conclude", "pause_before_new_order"]

SHORT_RATE_LIMIT = timedelta(minutes=1)
"""A rate limit that ends within it is waited out in the order; a longer one would hold up the name set."""

_PASSING = frozenset(
    {
        Reason.ISSUER_UNAVAILABLE,
        Reason.DNS_UNAVAILABLE,
        Reason.STORE_UNAVAILABLE,
        Reason.AUDIT_UNAVAILABLE,
        Reason.POLICY_UNAVAILABLE,
    }
)

_PAUSES = {
    # Five failed validations per name and hour lock a name (Let's Encrypt), one more is free every 12 minutes.
    Reason.ISSUER_REJECTED: timedelta(minutes=15),
    # A CA that limits without saying for how long: its shortest windows are of an hour or more.
    Reason.ISSUER_RATE_LIMITED: timedelta(hours=1),
    Reason.ISSUER_UNAVAILABLE: timedelta(minutes=5),
    Reason.DNS_UNAVAILABLE: timedelta(minutes=5),
    # A person has to mend it; nothing is spent at the CA by trying.
    Reason.DNS_REJECTED: timedelta(minutes=5),
    Reason.INTERNAL: timedelta(minutes=5),
}


@dataclass(frozen=True, slots=True)
class TryAgain:
    """The step may succeed after `wait`."""

    wait: timedelta


@dataclass(frozen=True, slots=True)
class End:
    """The order is over; a new one may be asked for after `pause`."""

    refusal: Refusal
    pause: timedelta


def conclude(
    refusal: Refusal, *, failures: int, time_left: timedelta, backoff: Backoff, rng: random.Random
) -> TryAgain | End:
    """What to do after a step failed.

    Args:
        refusal: Why it failed.
        failures: Failed steps in a row, this one included.
        time_left: What is left of the order's time.
        backoff: The waits between tries.
        rng: Spreads them.
    """
    said = refusal.retry_after or timedelta()
    passing = refusal.reason in _PASSING or (
        refusal.reason is Reason.ISSUER_RATE_LIMITED and timedelta() < said <= SHORT_RATE_LIMIT
    )
    wait = max(backoff.wait(failures, rng), said)
    if passing and wait < time_left:
        return TryAgain(wait)
    return End(refusal, pause_before_new_order(refusal))


def pause_before_new_order(refusal: Refusal) -> timedelta:
    """How long the failed order answers for a new one; what the CA said wins. Policy's refusals hold nothing up."""
    if refusal.retry_after is not None:
        return max(refusal.retry_after, timedelta())
    return _PAUSES.get(refusal.reason, timedelta())
