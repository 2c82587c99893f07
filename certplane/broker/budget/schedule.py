"""When orders would be made, if nothing came between: the ledger, its rules and time alone. Pure.

In the order in which it would happen: at each moment the most urgent of those who can go, goes. Orders that lack a
place of the same bucket stand in one line, as they do at the brokers (`issuance.place_queue`), so that only the first
of a line is looked at when its bucket has a place. The work grows with the orders, however many wait for one bucket.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter, itemgetter
from typing import Final

from certplane.broker.budget import gcra
from certplane.broker.budget.model import FULL, Bucket, BucketKey, IssuerLimits, Limit, Need, Urgency, Waiter

HORIZON: Final = timedelta(days=90)
"""What would take longer is not said: no certificate lives so long."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An order that is to be made.

    Attributes:
        urgency: Who goes first; its `order_id` names the order, and is one of its own.
        needs: The buckets that it needs a place in, without those that it is exempt from.
    """

    urgency: Urgency
    needs: Sequence[Need]


@dataclass(frozen=True, slots=True)
class Turn:
    """When an order gets its places.

    Attributes:
        order_id: Which one.
        time: When; None: not within `HORIZON`.
        limit: The limit that it waited for last; None: it waits for none.
    """

    order_id: str
    time: datetime | None
    limit: Limit | None = None


class _Line:
    """A bucket, and those who wait for it. `free` is when it has a place, or for those who take none, two."""

    __slots__ = ("alarmed", "free", "level", "limit", "number", "takes", "waiting")

    def __init__(self, need: Need, bucket: Bucket | None, number: int) -> None:
        self.limit, self.takes, self.number = need.limit, need.takes, number
        self.level = FULL if bucket is None else bucket.level
        self.free = (gcra.free_time if need.takes else gcra.spare_time)(self.level, need.limit.rate)
        self.waiting: list[tuple[Urgency, list[_Line]]] = []
        self.alarmed = False
        """Whether it is looked at again when there may be a place."""

    def take(self, time: datetime) -> None:
        rate = self.limit.rate
        self.level = gcra.take(self.level, rate, time)
        self.free = gcra.free_time(self.level, rate)


def pending_of(waiter: Waiter, limits: Iterable[IssuerLimits]) -> Pending:
    """An order that waits, as the ledger has it; limits that are no longer configured hold it up no more."""
    known = {limit.name: limit for each in limits if each.issuer == waiter.issuer for limit in each.limits}
    needs = [Need(key, "", known[key.limit]) for key in waiter.keys if key.limit in known]
    return Pending(waiter.urgency, needs)


def schedule(buckets: Mapping[BucketKey, Bucket], orders: Iterable[Pending], now: datetime) -> list[Turn]:
    """When each of the orders would get its places, in that order; 10 to 20 us each.

    Args:
        buckets: What is taken (`LedgerState.buckets`).
        orders: Those that wait, and those that are asked about; each once.
        now: When it begins.
    """
    return _Schedule(buckets).run(sorted(orders, key=attrgetter("urgency")), now)


class _Schedule:
    """One run."""

    def __init__(self, buckets: Mapping[BucketKey, Bucket]) -> None:
        self._buckets = buckets
        self._lines: dict[BucketKey, _Line] = {}
        self._turns: list[Turn] = []
        self._alarms: list[tuple[datetime, int, _Line]] = []

    def run(self, orders: Iterable[Pending], now: datetime) -> list[Turn]:
        for order in orders:
            self._ask(order.urgency, [self._line(need) for need in order.needs], now, None)
        end = now + HORIZON
        while self._alarms and self._alarms[0][0] <= end:
            time, _, line = heapq.heappop(self._alarms)
            line.alarmed = False
            urgency, needs = heapq.heappop(line.waiting)
            self._ask(urgency, needs, time, line.limit)
            if line.waiting:
                self._watch(line, max(time, line.free))
        never = [(urgency, line.limit) for line in self._lines.values() for urgency, _ in line.waiting]
        never.sort(key=itemgetter(0))
        return self._turns + [Turn(urgency.order_id, None, limit) for urgency, limit in never]

    def _line(self, need: Need) -> _Line:
        line = self._lines.get(need.key)
        if line is None:
            line = self._lines[need.key] = _Line(need, self._buckets.get(need.key), len(self._lines))
        return line

    def _ask(self, urgency: Urgency, needs: list[_Line], time: datetime, waited: Limit | None) -> None:
        last, latest = None, time
        for line in needs:
            if line.free > latest:
                last, latest = line, line.free
        if last is not None:
            heapq.heappush(last.waiting, (urgency, needs))
            self._watch(last, latest)
            return
        for line in needs:
            if line.takes:
                line.take(time)
        self._turns.append(Turn(urgency.order_id, time, waited))

    def _watch(self, line: _Line, time: datetime) -> None:
        if not line.alarmed:
            line.alarmed = True
            heapq.heappush(self._alarms, (time, line.number, line))
