"""A CA that keeps Let's Encrypt's limits as its program does, and orders that come to it as they do to a broker.

The CA's side is written anew, by https://letsencrypt.org/docs/rate-limits/ and Boulder (`ratelimits/gcra.go`,
`wfe2.NewOrder`), and shares nothing with the ledger: it counts an account's orders when they are made, certificates when
they are issued, a while later, and exempts what it takes for a renewal.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.budget import gcra
from certplane.broker.budget.claims import claim_of, urgency_of
from certplane.broker.budget.model import Bucket, BucketKey, Claim, IssuerLimits, Rate, Urgency
from certplane.broker.budget.places import shortage_of, taken

WINDOW_OF_NAMES: Final = timedelta(days=120)


class TooManyError(Exception):
    """A 429."""


@dataclass
class LimitedCa:
    """Counts; `validated` says how long after it was made an order is issued."""

    account: tuple[int, timedelta] = (300, timedelta(hours=3))
    domain: tuple[int, timedelta] = (50, timedelta(days=7))
    names: tuple[int, timedelta] = (5, timedelta(days=7))
    full: dict[tuple[str, str], datetime] = field(default_factory=dict)
    """Of each bucket, when it is full again."""
    issued: dict[tuple[str, ...], datetime] = field(default_factory=dict)
    late: list[tuple[datetime, tuple[str, ...], tuple[str, ...], bool]] = field(default_factory=list)
    """Certificates that are about to be issued: when, their names, domains, and whether they are renewals."""

    def order(
        self, names: tuple[str, ...], domains: tuple[str, ...], now: datetime, takes: timedelta, *, in_window: bool
    ) -> None:
        """Make an order, which is issued after `takes`."""
        self._issue(now)
        if in_window:
            return
        known = self.issued.get(names)
        renewal = known is not None and now - known < WINDOW_OF_NAMES
        self._check("names", " ".join(names), self.names, now)
        if not renewal:
            self._check("account", "", self.account, now)
            for domain in domains:
                self._check("domain", domain, self.domain, now)
            self._spend("account", "", self.account, now)
        heapq.heappush(self.late, (now + takes, names, domains, renewal))

    def _issue(self, now: datetime) -> None:
        while self.late and self.late[0][0] <= now:
            then, names, domains, renewal = heapq.heappop(self.late)
            self.issued[names] = then
            self._spend("names", " ".join(names), self.names, then)
            for domain in () if renewal else domains:
                self._spend("domain", domain, self.domain, then)

    def _check(self, kind: str, key: str, limit: tuple[int, timedelta], now: datetime) -> None:
        most, per = limit
        if max(self.full.get((kind, key), now), now) + per / most - per > now:
            raise TooManyError(f"{kind} {key}")

    def _spend(self, kind: str, key: str, limit: tuple[int, timedelta], now: datetime) -> None:
        most, per = limit
        self.full[kind, key] = max(self.full.get((kind, key), now), now) + per / most


@dataclass(frozen=True, slots=True)
class Wish:
    """An order that comes up at `time`; `ends` is the end of the certificate that it renews."""

    time: datetime
    order_id: str
    dns_names: tuple[str, ...]
    ends: datetime | None = None
    in_window: bool = False


@dataclass
class Played:
    """What came of it: when each order was made, how long buckets had waiters, and how many places those took."""

    made: dict[str, datetime] = field(default_factory=dict)
    waited: defaultdict[BucketKey, timedelta] = field(default_factory=lambda: defaultdict(timedelta))
    earned: defaultdict[BucketKey, timedelta] = field(default_factory=lambda: defaultdict(timedelta))

    @property
    def idle(self) -> float:
        """Which share of the places that came back while orders waited for them nobody took."""
        waited = sum(self.waited.values(), timedelta())
        return 1 - sum(self.earned.values(), timedelta()) / waited if waited else 0.0


@dataclass
class _Line:
    waiting: list[tuple[Urgency, Wish, Claim]] = field(default_factory=list)
    since: datetime | None = None
    rate: Rate | None = None


class Play:
    """Lets orders come, wait in the lines of their buckets, and be made, through the ledger's own decisions.

    The lines are as `issuance.place_queue` has them: the most urgent of a line asks when its bucket has a place again.
    """

    def __init__(self, limits: IssuerLimits, make: Callable[[Wish, datetime], datetime]) -> None:
        """`make` is the CA, and says when it will have issued."""
        self.played = Played()
        self._limits, self._make = limits, make
        self._buckets: dict[BucketKey, Bucket] = {}
        self._known: dict[tuple[str, ...], datetime] = {}
        self._lines: defaultdict[BucketKey, _Line] = defaultdict(_Line)
        self._alarms: list[tuple[datetime, BucketKey]] = []

    def run(self, wishes: Iterable[Wish]) -> Played:
        """Until all are made."""
        for wish in sorted(wishes, key=lambda wish: wish.time):
            self._until(wish.time)
            urgency = urgency_of(wish.order_id, wish.ends, wish.time)
            self._ask(wish, claim_of(self._limits, wish.dns_names, urgency=urgency, ari=wish.in_window), wish.time)
        self._until(None)
        return self.played

    def _until(self, end: datetime | None) -> None:
        while self._alarms and (end is None or self._alarms[0][0] <= end):
            now, key = heapq.heappop(self._alarms)
            line = self._lines[key]
            if not line.waiting:
                continue
            _, wish, claim = heapq.heappop(line.waiting)
            self._ask(wish, claim, now)
            if line.waiting and line.rate is not None:
                free_time = gcra.free_time(self._buckets[key].level, line.rate)
                heapq.heappush(self._alarms, (max(now, free_time), key))
            elif not line.waiting and line.since is not None:
                self.played.waited[key] += now - line.since
                line.since = None

    def _ask(self, wish: Wish, claim: Claim, now: datetime) -> None:
        known = self._known.get(wish.dns_names)
        exempt = known is not None and known <= now < known + WINDOW_OF_NAMES
        needs = [need for need in claim.needs if not (exempt and need.unless_known)]
        shortage = shortage_of(needs, self._buckets, now)
        if shortage is not None:
            line = self._lines[shortage.key]
            line.rate = shortage.limit.rate
            if not line.waiting:
                # When the last place came back that somebody took, had the CA counted at once.
                line.since = line.since or shortage.free_time - line.rate.interval - line.rate.lag
                heapq.heappush(self._alarms, (shortage.free_time, shortage.key))
            heapq.heappush(line.waiting, (claim.urgency, wish, claim))
            return
        self._buckets.update(taken(needs, self._buckets, now))
        self.played.made[wish.order_id] = now
        issued = self._make(wish, now)
        self._known[wish.dns_names] = now if exempt else issued
        for need in needs:
            line = self._lines[need.key]
            if need.takes and line.since is not None:
                self.played.earned[need.key] += need.limit.rate.interval
