"""When orders that are asked about would get their places, beside those that wait already. Pure.

It is what the limits alone allow: a lower bound. Orders that others make meanwhile, below the same registered domain at
another account say, come on top, and so does what the CA itself needs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from certplane.broker.budget import gcra
from certplane.broker.budget.model import BucketKey, Claim, IssuerLimits, LedgerState, Limit, Urgency
from certplane.broker.budget.schedule import Pending, pending_of, schedule

_STEPS: Final = 20


@dataclass(frozen=True, slots=True)
class Step:
    """A point of a forecast: so many orders have their places by then."""

    time: datetime
    order_count: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a number of orders would be made.

    Attributes:
        order_count: How many.
        exempt_count: Of those, how many take no place of any limit.
        last_order_time: When the last that gets places has them; None: none does.
        bound_by: The limit that decides it, for people: `orders of letsencrypt: 300 per 3h`; empty if none does.
        steps: How many would have places by when, at even times.
        never_count: Orders that get no place within `schedule.HORIZON`.
    """

    order_count: int = 0
    exempt_count: int = 0
    last_order_time: datetime | None = None
    bound_by: str = ""
    steps: tuple[Step, ...] = ()
    never_count: int = 0


def limits_by_key(budgets: Iterable[IssuerLimits]) -> Mapping[tuple[str, str], Limit]:
    """The configured limits, by directory URL and name; where two issuers say different things of a CA, the first's."""
    found: dict[tuple[str, str], Limit] = {}
    for each in budgets:
        for limit in each.limits:
            found.setdefault((each.directory_url, limit.name), limit)
    return found


def in_force(state: LedgerState, budgets: Sequence[IssuerLimits]) -> LedgerState:
    """The ledger by the limits and the clock of now: without limits that are gone, and as empty as a bucket can be."""
    limits, buckets = limits_by_key(budgets), {}
    for key, bucket in state.buckets.items():
        limit = limits.get((key.directory_url, key.limit))
        if limit is not None:
            level = gcra.sane(bucket.level, limit.rate, state.time, bucket.told_until)
            buckets[key] = bucket if level is bucket.level else replace(bucket, level=level)
    return replace(state, buckets=buckets)


def forecast(state: LedgerState, asked: Sequence[Claim], budgets: Sequence[IssuerLimits]) -> Forecast:
    """When the last of `asked` would have its places.

    An order that waits already for the same certificate is that one, and is counted once.

    Args:
        state: The ledger now, as `in_force` has it.
        asked: What the orders need, without what they are exempt from; each `urgency.order_id` is one of its own.
        budgets: All issuers' limits.
    """
    waiting: dict[Hashable, list[str]] = defaultdict(list)
    orders = []
    for waiter in state.waiters:
        orders.append(pending_of(waiter, budgets))
        waiting[_same(waiter.issuer, waiter.urgency, waiter.keys)].append(waiter.urgency.order_id)
    issuers: dict[str, str] = {}
    exempt = 0
    for claim in asked:
        keys = [need.key for need in claim.needs if need.takes]
        exempt += not keys
        there = waiting.get(_same(claim.issuer, claim.urgency, keys)) if waiting else None
        if there:
            issuers[there.pop()] = claim.issuer
        else:
            orders.append(Pending(claim.urgency, claim.needs))
            issuers[claim.urgency.order_id] = claim.issuer
    turns = [turn for turn in schedule(state.buckets, orders, state.time) if turn.order_id in issuers]
    times = [turn.time for turn in turns if turn.time is not None]
    never = len(turns) - len(times)
    bound = turns[len(times) if never else -1] if turns else None  # those that never go come last
    return Forecast(
        order_count=len(turns),
        exempt_count=exempt,
        last_order_time=times[-1] if times else None,
        bound_by="" if bound is None or bound.limit is None else limit_text(bound.limit, issuers[bound.order_id]),
        steps=tuple(_steps(state.time, times)),
        never_count=never,
    )


def limit_text(limit: Limit, issuer: str) -> str:
    """For people: `new_orders_per_account of letsencrypt: 300 per 3h`."""
    return f"{limit.name} of {issuer}: {limit.text}"


def _same(issuer: str, urgency: Urgency, keys: Iterable[BucketKey]) -> Hashable:
    """What an order that waits has in common with one for the same certificate: two that share it are alike here."""
    return issuer, urgency.rank, urgency.expire_time, frozenset(keys)


def _steps(now: datetime, times: Sequence[datetime]) -> Iterable[Step]:
    if not times:
        return
    last = times[-1]
    if last == now:
        yield Step(now, len(times))
        return
    for number in range(1, _STEPS + 1):
        time = last if number == _STEPS else now + (last - now) * number / _STEPS
        yield Step(time, bisect_right(times, time))
