"""Whether certificates can be issued at all, per profile: what an alarm should watch beside single failures.

A profile is blocked when its last order ended with what only a person can mend (a revoked DNS token, a zone that is
gone, a CAA record, new terms): every host of it will run into the same. An order that brings a certificate unblocks it.
A start reads it from the orders before: an alarm outlives the broker. And where brokers share a database, whichever of
them ran the last order: the others look at the profile's orders when one says that its condition is another.

What was in trouble and works again is also why those who wait are told to ask again (`epoch`): each for itself, a
profile by its own orders and an issuer that was out of reach by anybody's. One that stays broken tells nobody anything.
The broker that ran the order says so, for all.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import partial
from typing import Protocol

from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.issuance.epoch import RetryEpoch
from certplane.broker.issuance.outcome import Consequence, classify
from certplane.broker.issuance.waiting import undisturbed
from certplane.broker.model import Order
from certplane.broker.ports import ChangeFollower, Meter, OrderStore, PolicySource
from certplane.errors import Reason, RefusalError

logger = logging.getLogger(__name__)

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
        self._in_trouble: dict[tuple[str, str], datetime] = {}
        """Profiles and issuers whose last order failed for what isn't of its caller, and when it did."""
        self.ends = Counter[str]()
        """How many orders of each profile have ended here."""
        self.changed: set[str] = set()
        """Profiles whose condition is another since an order has ended here: for others to hear of."""

    def order_ended(self, order: Order) -> None:
        """An order has ended here and now."""
        self.ends[order.profile] += 1
        for kind, name in self._note(order, mends_since=None):
            self._epoch.move(f"{kind} {name} has certificates again")

    def recall(self, ended: Sequence[Order]) -> None:
        """What the orders of a profile that ended last, the last first, say of it: whoever ran them told who waits."""
        changed = {*self.changed}
        for order in reversed(ended):
            self._note(order, mends_since=order.update_time)
        self.changed = changed

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

    def _note(self, order: Order, *, mends_since: datetime | None) -> list[tuple[str, str]]:
        """Take in how an order has ended; returns what works again by it.

        `mends_since`: trouble that came after that isn't over by it; None: all before is.
        """
        both = ("profile", order.profile), ("issuer", order.issuer)
        mended = []
        if order.error is None:
            troubles = ((each, self._in_trouble.get(each)) for each in both)
            mended = [each for each, time in troubles if time and (mends_since is None or time <= mends_since)]
            for each in mended:
                del self._in_trouble[each]
        elif order.error.reason in _OF_DNS_AND_CA:
            for each in both if order.error.reason is Reason.ISSUER_UNAVAILABLE else both[:1]:
                if each not in self._in_trouble:
                    self.changed.add(order.profile)
                self._in_trouble[each] = order.update_time
        other = tells_condition(order) and self._block(order.profile, blocked=order.error is not None)
        if mended or other:
            self.changed.add(order.profile)
        return mended

    def _block(self, profile: str, *, blocked: bool) -> bool:
        """Whether that is new."""
        before = profile in self._blocked
        (self._blocked.add if blocked else self._blocked.discard)(profile)
        self._meter.level(metrics.PROFILES_BLOCKED, int(blocked), profile=profile)
        return before is not blocked


class ConditionTeller(Protocol):
    """How other brokers hear of it; the rules of `certplane.broker.ports` hold here."""

    async def tell_conditions(self, profiles: Collection[str]) -> None:
        """Let the other brokers look at the last orders of these profiles, durable.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class ConditionFollower(ChangeFollower):
    """Keeps a condition in step with the orders that other brokers, and this one before its start, have ended."""

    def __init__(
        self, condition: IssuanceCondition, policies: PolicySource, orders: OrderStore, teller: ConditionTeller
    ) -> None:
        self._condition = condition
        self._policies = policies
        self._orders = orders
        self._teller = teller
        self._profiles: set[str] = set()
        """All of which anything is known, here or elsewhere."""
        self._failing = False

    async def tell(self) -> None:
        """Tell the other brokers what has changed here; what can't be told is, the next time. Never raises."""
        changed = self._condition.changed
        if not changed:
            return
        self._condition.changed = set()
        self._profiles |= changed
        try:
            await self._teller.tell_conditions(changed)
        except RefusalError as error:
            if not self._failing:
                logger.warning("could not tell other brokers which profiles have changed; will retry: %s", error)
            self._condition.changed |= changed
            self._failing = True
            return
        self._failing = False

    @override
    async def changed(self, keys: Collection[str]) -> None:
        for profile in keys:
            await self.recall(profile)

    @override
    async def reread(self, since: datetime) -> None:
        await self.changed({*self._profiles})

    async def recall(self, name: str) -> None:
        """Read what the last orders of a profile say of it; one that was edited since is another.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        self._profiles.add(name)
        ended = await undisturbed(partial(self._orders.last_ended, name), lambda: self._condition.ends[name])
        policy = self._policies.current
        said: list[Order] = []
        for order in ended:
            profile = policy.granted(order.identity, name) or policy.find_profile(name)
            if profile is None or order.profile_hash != profile.hash:
                break
            said.append(order)
            if tells_condition(order):
                break
        self._condition.recall(said)
