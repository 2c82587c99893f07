"""Whether certificates can be had at all, by profile: what an alarm should watch beside single failures.

A profile is blocked when its last order ended with what only a person can mend (a revoked DNS token, a zone that is
gone, a CAA record, new terms): every host of it will run into the same. An order that brings a certificate unblocks it.
In memory: after a restart nothing is blocked until an order says so.
"""

from __future__ import annotations

from collections.abc import Collection

from certplane.broker.issuance import measures
from certplane.broker.issuance.outcome import Consequence, classify
from certplane.broker.ports import Meter
from certplane.errors import Refusal

__all__ = ["IssuanceCondition"]


class IssuanceCondition:
    """Remembers which profiles are blocked, and shows them as a metric."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._blocked: set[str] = set()

    def order_ended(self, profile: str, error: Refusal | None) -> None:
        """An order of `profile` has ended; `error` is None when it brought a certificate."""
        if error is not None and classify(error) is not Consequence.ASK_PERSON:
            return  # it may do better by itself: nothing is known
        blocked = error is not None
        if blocked:
            self._blocked.add(profile)
        else:
            self._blocked.discard(profile)
        self._meter.level(measures.PROFILES_BLOCKED, int(blocked), profile=profile)

    def blocked(self, profiles: Collection[str]) -> Collection[str]:
        """Which of these profiles, those of the policy in force, are blocked."""
        for gone in self._blocked.difference(profiles):
            self._blocked.discard(gone)
            self._meter.level(measures.PROFILES_BLOCKED, 0, profile=gone)
        return frozenset(self._blocked)
