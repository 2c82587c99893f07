"""What the limits leave, as people look at it: the fullest buckets, and how many orders wait for how long. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from certplane.broker.budget import gcra
from certplane.broker.budget.claims import BY_ACCOUNT
from certplane.broker.budget.model import Bucket, BucketKey, IssuerLimits, LedgerState, Limit, LimitScope, Need
from certplane.broker.budget.places import bucket_of
from certplane.broker.budget.schedule import pending_of, schedule
from certplane.pki.public_suffixes import registered_domain
from certplane.runtime.text import counted

_MOST_BUCKETS: Final = 20


@dataclass(frozen=True, slots=True)
class BucketView:
    """A bucket of which places are taken.

    Attributes:
        bucket: The bucket.
        left: Places that are left.
        next_place_time: When the next one is there; None if one is.
        full_time: When all are.
        waiting_count: Orders that wait for it.
    """

    bucket: Bucket
    left: int
    next_place_time: datetime | None
    full_time: datetime
    waiting_count: int


@dataclass(frozen=True, slots=True)
class LimitView:
    """A limit, and the fullest of its `bucket_count` buckets of which places are taken."""

    limit: Limit
    buckets: Sequence[BucketView] = ()
    bucket_count: int = 0

    @property
    def left(self) -> int:
        """What its fullest bucket has left."""
        return min((view.left for view in self.buckets), default=self.limit.amount)


@dataclass(frozen=True, slots=True)
class IssuerView:
    """What an issuer may be asked for.

    Attributes:
        limits: Whose.
        views: Of each limit, in the order of the configuration.
        waiting_count: Orders that wait for a place.
        waiting_until: When the last of those would have it; None: none waits, or one that doesn't within
            `schedule.HORIZON`.
        never_count: How many don't.
    """

    limits: IssuerLimits
    views: Sequence[LimitView]
    waiting_count: int = 0
    waiting_until: datetime | None = None
    never_count: int = 0


def overview(
    state: LedgerState, budgets: Sequence[IssuerLimits], issuers: Collection[str] = (), names: Collection[str] = ()
) -> Sequence[IssuerView]:
    """What each issuer may be asked for.

    Args:
        state: The ledger now, as `forecast.in_force` has it.
        budgets: All issuers' limits.
        issuers: Only these; empty: all.
        names: Only buckets that a certificate with one of these names needs; empty: all.
    """
    waiters = {waiter.order_id: waiter.issuer for waiter in state.waiters}
    counts = Counter(key for waiter in state.waiters for key in waiter.keys)
    times: dict[str, list[datetime | None]] = defaultdict(list)
    pending = [pending_of(waiter, budgets) for waiter in state.waiters]
    for turn in schedule(state.buckets, pending, state.time):
        times[waiters[turn.order_id]].append(turn.time)
    by_limit: dict[tuple[str, str, str], list[Bucket]] = defaultdict(list)
    for key, bucket in state.buckets.items():
        by_limit[key.directory_url, key.account, key.limit].append(bucket)
    found = []
    for each in budgets:
        if issuers and each.issuer not in issuers:
            continue
        views = []
        for limit in each.limits:
            account = each.issuer if limit.scope in BY_ACCOUNT else ""
            buckets = by_limit[each.directory_url, account, limit.name]
            views.append(_limit_view(limit, _of_names(limit, buckets, names), counts, state.time))
        waits = times[each.issuer]
        known = [time for time in waits if time is not None]
        last = max(known, default=None) if len(known) == len(waits) else None
        found.append(IssuerView(each, views, len(waits), last, len(waits) - len(known)))
    return found


def left_text(needs: Iterable[Need], state: LedgerState) -> str:
    """Of an order's needs the one with the fewest places left, for people; empty if it needs none.

    `4 of 5 places of certificates_per_names are left (5 per 168h)`.
    """
    least: tuple[float, int, Limit] | None = None
    for need in needs:
        limit = need.limit
        left = gcra.places_left(bucket_of(need, state.buckets).level, limit.rate, state.time)
        if least is None or left / limit.amount < least[0]:
            least = left / limit.amount, left, limit
    if least is None:
        return ""
    _, left, limit = least
    return f"{left} of {counted(limit.amount, 'place')} of {limit.name} left ({limit.text})"


def _limit_view(limit: Limit, buckets: Iterable[Bucket], counts: Mapping[BucketKey, int], now: datetime) -> LimitView:
    views = []
    for bucket in buckets:
        full, free = gcra.whole_time(bucket.level, limit.rate), gcra.free_time(bucket.level, limit.rate)
        if full > now:
            left = gcra.places_left(bucket.level, limit.rate, now) if free <= now else 0
            waiting = counts.get(bucket.key, 0)
            views.append(BucketView(bucket, left, free if free > now else None, full, waiting))
    views.sort(key=lambda view: (view.left, -view.waiting_count, -view.full_time.timestamp(), view.bucket.label))
    return LimitView(limit, views[:_MOST_BUCKETS], len(views))


def _of_names(limit: Limit, buckets: Sequence[Bucket], names: Collection[str]) -> Iterable[Bucket]:
    if not names or limit.scope is LimitScope.ACCOUNT:
        return buckets
    if limit.scope is LimitScope.NAMES:
        # The subject is a hash: a name beyond the 200 characters of a label isn't found.
        wanted = frozenset(names)
        return [bucket for bucket in buckets if not wanted.isdisjoint(bucket.label.split(", "))]
    of = registered_domain if limit.scope is LimitScope.REGISTERED_DOMAIN else _bare
    subjects = {of(name) for name in names}
    return [bucket for bucket in buckets if bucket.key.subject in subjects]


def _bare(name: str) -> str:
    return name.removeprefix("*.")
