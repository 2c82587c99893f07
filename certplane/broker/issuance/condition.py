"""Whether certificates can be issued at all, per profile: what an alarm should watch beside single failures.

A profile is blocked when its last order ended with what only a person can mend (a revoked DNS token, a zone that is
gone, a CAA record, new terms): every host of it will run into the same. An order that brings a certificate unblocks it.
A start reads it from the orders before: an alarm outlives the broker.

What was in trouble and works again is also why those who wait are told to ask again (`epoch`): each for itself, a
profile by its own orders and an issuer that was out of reach by anybody's. One that stays broken tells nobody anything.
"""

from __future__ import annotations

from collections.abc import Collection

from certplane.broker import metrics
from certplane.broker.issuance.epoch import RetryEpoch
from certplane.broker.issuance.outcome import Consequence, classify
from certplane.broker.model import Order
from certplane.broker.ports import Meter
from certplane.errors import Reason

_OF_DNS_AND_CA = frozenset(
    {Reason.DNS_REJECTED, Reason.DNS_UNAVAILABLE, Reason.ISSUER_REJECTED, Reason.ISSUER_UNAVAILABLE}
)


def tells_condition(order: Order) -> bool:
    """Whether an ended order says if its profile is blocked: others may do better by themselves."""
    return order.error is None or classify(order.error) is Consequence.ASK_PERSON


class IssuanceCondition:
    """Remembers which profiles are blocked, and shows them as a metric."""

    def __init__(self, meter: Meter, epoch: RetryEpoch) -> None:
        self._meter = meter
        self._epoch = epoch
        self._blocked: set[str] = set()
        self._in_trouble: set[tuple[str, str]] = set()
        """Profiles and issuers whose last order failed for what isn't of its caller."""

    def order_ended(self, order: Order) -> None:
        """An order has ended, now or before this start."""
        self._note_trouble(order)
        if not tells_condition(order):
            return
        blocked = order.error is not None
        if blocked:
            self._blocked.add(order.profile)
        else:
            self._blocked.discard(order.profile)
        self._meter.level(metrics.PROFILES_BLOCKED, int(blocked), profile=order.profile)

    @property
    def in_trouble(self) -> bool:
        """Whether some profile or issuer has failed and not worked since."""
        return bool(self._in_trouble)

    def blocked(self, profiles: Collection[str]) -> Collection[str]:
        """Which of these profiles, those of the policy in force, are blocked."""
        for gone in self._blocked.difference(profiles):
            self._blocked.discard(gone)
            self._meter.level(metrics.PROFILES_BLOCKED, 0, profile=gone)
        return frozenset(self._blocked)

    def _note_trouble(self, order: Order) -> None:
        profile, issuer = ("profile", order.profile), ("issuer", order.issuer)
        if order.error is None:
            mended = self._in_trouble & {profile, issuer}
            self._in_trouble -= mended
            for kind, name in sorted(mended):
                self._epoch.move(f"{kind} {name} has certificates again")
        elif order.error.reason in _OF_DNS_AND_CA:
            self._in_trouble.add(profile)
            if order.error.reason is Reason.ISSUER_UNAVAILABLE:
                self._in_trouble.add(issuer)
