"""What all orders under way in this process share, and what surrounds each of their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from certplane.broker import metrics
from certplane.broker.issuance.authorisation import OrderAuthorisation
from certplane.broker.issuance.budgeting import OrderBudget
from certplane.broker.issuance.condition import IssuanceCondition
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.failover import IssuerChoice
from certplane.broker.issuance.holds import IssuerHolds
from certplane.broker.issuance.journal import Journal
from certplane.broker.issuance.lanes import SharedLanes
from certplane.broker.issuance.outcome import End, fails_over
from certplane.broker.issuance.progress import WAITS, TroubleTold
from certplane.broker.issuance.queue import Lane, OrderQueue
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.issuance.tenure import Tenure
from certplane.broker.issuance.validation import ChallengeRecords
from certplane.broker.model import Order, Profile
from certplane.errors import Reason, Refusal
from certplane.runtime.failpoints import failpoint

_SHORTEST_PAUSE = timedelta(minutes=1)
"""Before a new order goes to an issuer that was left and isn't known to be out any more."""

_OUTSIDE = frozenset({"create", "present", "answer", "finalize", "remove"})
"""What can't be undone, at the CA or in the DNS. What is known already is written down all the same."""


@dataclass(frozen=True, slots=True)
class OrderContext:
    """What all orders under way share."""

    ports: IssuancePorts
    settings: IssuanceSettings
    tenure: Tenure
    queue: OrderQueue
    lanes: SharedLanes
    budget: OrderBudget
    holds: IssuerHolds
    choice: IssuerChoice
    condition: IssuanceCondition
    records: ChallengeRecords
    authorisation: OrderAuthorisation
    told: TroubleTold

    def lane_of(self, order: Order) -> Lane:
        """Where the order has to take its turn: another one after it has moved."""
        profile = self.ports.profile_of(order)
        return Lane(order.issuer, profile.acme_profile if profile is not None else "", order.dns_names)

    def next_issuer(self, order: Order, profile: Profile, left: frozenset[str]) -> str:
        """The next of the profile's issuers that isn't out, beside those that the order has `left`; empty for none."""
        if order.to_issuer:
            return ""  # a rollout moves there, perhaps since no other is to be trusted any more
        issuers, now = self.ports.issuers_of(profile), self.ports.clock.now()
        return self.choice.choose(issuers, order.dns_names, profile.acme_profile, now, but=left | {order.issuer})

    def sooner_issuer(
        self, order: Order, profile: Profile, left: frozenset[str], short: MutableMapping[str, datetime]
    ) -> str:
        """Where all issuers are `short` of places: the one that has a place first, if it isn't the order's; else empty.

        `short` is used up: who goes back somewhere waits there, and isn't sent to and fro.
        """
        first = min(short, key=lambda issuer: (short[issuer], issuer != order.issuer))
        short.clear()
        return "" if first == order.issuer else self.next_issuer(order, profile, left - {first})

    def until_any_issuer(self, order: Order, end: End) -> tuple[Refusal, timedelta]:
        """What is told, and when a new order may follow: as soon as another of the profile's issuers can be asked.

        A limit of the issuer that was asked last, days long, must not keep the order from the first one that was away
        for minutes.
        """
        profile = self.ports.profile_of(order)
        if profile is None or order.to_issuer or not fails_over(end.refusal):
            return end.refusal, end.pause
        others = [issuer for issuer in self.ports.issuers_of(profile) if issuer != order.issuer]
        if not others:
            return end.refusal, end.pause
        wait = self.choice.wait(others, order.dns_names, profile.acme_profile, self.ports.clock.now())
        pause = min(end.pause, max(wait, _SHORTEST_PAUSE))
        return (end.refusal if pause == end.pause else replace(end.refusal, retry_after=pause)), pause

    def is_news(self, order: Order, reason: str) -> bool:
        """Whether nobody has met this trouble yet of the order's issuer or DNS provider: from now on it is known."""
        subject = self._subjects(order).get(reason, "")
        return bool(subject) and self.told.is_news(subject, reason)

    def works(self, order: Order, tell: Callable[[str], object]) -> None:
        """Issuer and DNS provider did what they are for: `tell` hears which of them was in trouble."""
        self.told.works(sorted(set(self._subjects(order).values())), tell)

    def _subjects(self, order: Order) -> Mapping[str, str]:
        """At whose door a failure is laid, by its reason."""
        profile = self.ports.profile_of(order)
        credentials = profile.credentials if profile is not None else ""
        return {
            Reason.ISSUER_UNAVAILABLE: f"issuer {order.issuer}",
            Reason.DNS_UNAVAILABLE: f"DNS with the credentials {credentials or 'default'}",
        }

    @contextmanager
    def step(self, journal: Journal, name: str) -> Iterator[None]:
        """A step of `steps.STEPS`: the order is at it, its failpoints, and its time when it succeeds.

        Raises:
            LeaseLostError: it would do something outside, where another broker may be at work on the order by now.
        """
        if name in _OUTSIDE:
            self.tenure.check()
        journal.begin(name, wait=WAITS.get(name, ""))
        failpoint(f"order.{name}.before")
        started = self.ports.clock.monotonic()
        yield
        spent = timedelta(seconds=self.ports.clock.monotonic() - started)
        self.ports.meter.observe(metrics.STEP_DURATION, spent, step=name)
        failpoint(f"order.{name}.after")
