"""An operator's request that certificates be renewed: which ones, when each, and the record of it.

`spread_renewals` decides, purely; `RenewalRequests` makes it durable with its audit event and answers. The hosts are
told by whoever listens to the plans. The answer is what will come of it: a host that waits with what is due is told to
try now, and one that gets no certificate before a person has acted is named.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypeVar

from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditTrail
from certplane.broker.fleet.filter import IDENTITY
from certplane.broker.fleet.knowledge import identity_serial, lacks_identity_renewal
from certplane.broker.fleet.model import HostRecord
from certplane.broker.fleet.ports import FleetStore
from certplane.broker.model import Caller
from certplane.broker.renewal.model import HeldUp, RenewalPlan, RequestedRenewal, RequestItem, Selected, Selection
from certplane.broker.renewal.ports import RenewalPlanStore, RenewalRequestLog
from certplane.fleet_report.model import RenewalCause
from certplane.runtime.clock import Clock

MOST_HELD_UP: Final = 20
"""That are named; the rest is counted."""
_LONGEST_SELECTION: Final = 1000
"""Characters of it in an audit event."""
_READ: Final = 128
"""Hosts that are read about together."""
_AT_ONCE: Final = 256
"""Certificates that are looked at before the loop has its turn: about a millisecond."""

_LONGEST_ID: Final = 64
"""Of a request (proto, ListHostsRequest.request_id)."""

T = TypeVar("T")


class _Plans(RenewalPlanStore, RenewalRequestLog, Protocol):
    pass


@dataclass(frozen=True, slots=True)
class RenewalRequest:
    """What is asked for. `chosen_id`: the caller chose `request_id`, and may ask again with it."""

    selection: Selection
    reason: str
    request_id: str
    chosen_id: bool = False
    spread: timedelta = timedelta()
    dry_run: bool = False


def waits_for_renewal(one: Selected, now: datetime, request_id: str) -> bool:
    """Whether it has a place in the spread: what is due already, or was planned by this very request, has none."""
    return one.renew_time > now and one.renewal_request_id != request_id


def spread_renewals(
    picked: Iterable[Selected],
    waiting: int,
    spread: timedelta,
    now: datetime,
    *,
    reason: str,
    request_id: str,
    stuck: Container[str] = (),
) -> Iterator[RenewalPlan | None]:
    """For each of `picked` the new plan, the times evenly spread from `now` on; None for what is due as early anyway.

    `waiting` of them take a place in the spread (`waits_for_renewal`). `stuck` are certificates that are due and whose
    hosts wait all the same: those are asked for now.
    """
    index = 0
    for one in picked:
        renew_time = now
        if waits_for_renewal(one, now, request_id):
            renew_time += spread * index / waiting
            index += 1
            asked = renew_time < one.renew_time
        else:
            asked = one.certificate_id in stuck and one.renewal_request_id != request_id
        if not asked:
            yield None
        else:
            yield RenewalPlan(
                certificate_id=one.certificate_id,
                host=one.host,
                renew_time=renew_time,
                cause=RenewalCause.OPERATOR,
                reason=reason,
                renewal_request_id=request_id,
            )


def stuck_renewals(due: Container[str], hosts: Iterable[HostRecord], now: datetime) -> list[HeldUp]:
    """Of the certificates that are due those whose hosts wait after a failure, as far as they have reported."""
    return [
        HeldUp(record.host, held.certificate_id, status.last_error, status.name, status.next_attempt_time)
        for record in hosts
        for status in record.certificates
        if status.request_failures and status.next_attempt_time is not None and status.next_attempt_time > now
        for held in (status.installed or status.issued,)
        if held is not None and held.certificate_id in due
    ]


async def _in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """`items`, with a turn for everybody else now and then: a whole fleet's would hold the event loop for a second."""
    for number, item in enumerate(items, 1):
        yield item
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)


class _HeldUp:
    """The first certificates that are held up, and the number of all."""

    def __init__(self) -> None:
        self.named: list[HeldUp] = []
        self.count = 0

    def add(self, one: HeldUp) -> None:
        """One more."""
        self.count += 1
        if len(self.named) < MOST_HELD_UP:
            self.named.append(one)


@dataclass(slots=True)
class _Planned:
    """What is done for a request: an item of all that it is for, and plans for those that get another time."""

    items: list[RequestItem] = field(default_factory=list)
    plans: list[RenewalPlan] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    last: datetime | None = None
    held_up: _HeldUp = field(default_factory=_HeldUp)

    async def add(self, picked: Iterable[Selected], renewals: Iterable[RenewalPlan | None]) -> None:
        """Add what was picked, each with its plan or without one."""
        async for one, plan in _in_turns(zip(picked, renewals, strict=True)):
            time = one.renew_time if plan is None else plan.renew_time
            self.items.append(RequestItem(one.host, one.certificate_id, time, planned=plan is not None))
            if plan is not None:
                self.plans.append(plan)
                self.hosts.add(plan.host)
                self.last = time if self.last is None else max(self.last, time)


async def _let_go(things: list[Any]) -> None:
    """Free what a list has the last references to, in turns: at once, a whole fleet's takes a tenth of a second."""
    while things:
        del things[-_AT_ONCE:]
        await asyncio.sleep(0)


class RenewalRequests:
    """Takes requests."""

    def __init__(
        self,
        plans: _Plans,
        fleet: FleetStore,
        clock: Clock,
        trail: AuditTrail,
        *,
        why_none: Callable[[str], str],
    ) -> None:
        """Take what requests work on; `why_none` says why a host gets no certificates, empty if it does."""
        self._plans = plans
        self._fleet = fleet
        self._clock = clock
        self._trail = trail
        self._why_none = why_none

    async def request(self, caller: Caller, order: RenewalRequest) -> tuple[RequestedRenewal, frozenset[str]]:
        """Do it, durable; what came of it, and the hosts of what has changed.

        Asked again with an id that the caller chose, at this broker or another one, at once even, it changes nothing
        and has the same answer. Should the record of it be gone, for its age, the times that it gave are kept.

        Raises:
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; nothing changed.
        """
        now = self._clock.now()
        if order.chosen_id:
            found = await self._plans.find_request(caller.name, order.request_id)
            if found is not None:
                return found, frozenset()
        request_id = order.request_id if order.chosen_id else await self._unused_id(caller, order.request_id)
        plan = self._plan_identities if order.selection.identities else self._plan_certificates
        done = await plan(order, request_id, now)
        hosts = frozenset(done.hosts)
        changed = sum(item.planned for item in done.items)
        held_up = done.held_up
        requested = RequestedRenewal(
            request_id, len(done.items), changed, done.last, tuple(held_up.named), held_up.count
        )
        if not order.dry_run:
            events = [self._event(caller, order, requested)]
            kept = await self._plans.set_requested(
                done.plans, caller.name, requested, now, events, reason=order.reason, items=done.items
            )
            if kept != requested:
                requested, hosts = kept, frozenset()
        for things in (done.plans, done.items):
            await _let_go(things)
        return requested, hosts

    async def _plan_certificates(self, order: RenewalRequest, request_id: str, now: datetime) -> _Planned:
        done = _Planned()
        picked = [*await self._plans.select(order.selection, now)]
        stuck = await self._stuck(picked, now)
        waiting = 0
        reasons: dict[str, str] = {}
        async for one in _in_turns(picked):
            waiting += waits_for_renewal(one, now, order.request_id)
            if one.host not in reasons:
                reasons[one.host] = self._why_none(one.host)
            if reasons[one.host]:
                done.held_up.add(HeldUp(one.host, one.certificate_id, reasons[one.host]))
        for held in stuck:
            done.held_up.add(held)
        renewals = spread_renewals(
            picked,
            waiting,
            order.spread,
            now,
            reason=order.reason,
            request_id=request_id,
            stuck={one.certificate_id for one in stuck},
        )
        await done.add(picked, renewals)
        await _let_go(picked)
        return done

    async def _plan_identities(self, order: RenewalRequest, _request_id: str, now: datetime) -> _Planned:
        """The identities of hosts that had a stream once, each at its place in the spread, by the hosts' names.

        A host that renews its own as early anyway keeps its time.
        """
        done = _Planned()
        picked: list[tuple[str, str, datetime | None]] = []
        async for record in self._hosts_of(order.selection):
            why = self._why_none(record.host) or lacks_identity_renewal(record)
            status = next((each for each in record.certificates if each.name == IDENTITY), None)
            if why:
                done.held_up.add(HeldUp(record.host, "", why, IDENTITY))
            elif status is not None and status.request_failures and status.next_attempt_time is not None:
                done.held_up.add(HeldUp(record.host, "", status.last_error, IDENTITY, status.next_attempt_time))
            meant = None if status is None or status.request_failures else status.renew_time
            picked.append((record.host, identity_serial(record), meant))
        async for index, (host, serial_number, meant) in _in_turns(enumerate(picked)):
            time = now + order.spread * index / len(picked)
            planned = meant is None or meant > time
            if planned:
                done.hosts.add(host)
                done.last = time
            item_time = time if planned or meant is None else meant
            done.items.append(RequestItem(host, "", item_time, planned=planned, serial_number=serial_number))
        return done

    async def _hosts_of(self, selection: Selection) -> AsyncIterator[HostRecord]:
        """What is known of the hosts of a selection of identities."""
        hosts = None if selection.all and not selection.labels else sorted(selection.hosts)
        if hosts is not None:
            for start in range(0, len(hosts), _READ):
                for record in await self._fleet.list_hosts(hosts=hosts[start : start + _READ]):
                    yield record
            return
        after = ""
        while records := await self._fleet.list_hosts(after=after, limit=_READ):
            for record in records:
                yield record
            after = records[-1].host

    async def _unused_id(self, caller: Caller, request_id: str) -> str:
        """The call's id names the request, unless the caller has others of it: programs give all their calls one id."""
        candidate, number = request_id, 1
        while await self._plans.find_request(caller.name, candidate) is not None:
            number += 1
            candidate = f"{request_id[: _LONGEST_ID - 8]}.{number}"
        return candidate

    async def _stuck(self, picked: Sequence[Selected], now: datetime) -> list[HeldUp]:
        due = {one.certificate_id: one.host async for one in _in_turns(picked) if one.renew_time <= now}
        hosts = [*dict.fromkeys(due.values())]
        found: list[HeldUp] = []
        for start in range(0, len(hosts), _READ):
            records = await self._fleet.list_hosts(hosts=hosts[start : start + _READ])
            found += stuck_renewals(due, records, now)
        return found

    def _event(self, caller: Caller, order: RenewalRequest, requested: RequestedRenewal) -> AuditEvent:
        spread = f", spread over {order.spread}" if order.spread else ""
        what = "identities" if order.selection.identities else "certificates"
        return self._trail.of_caller(caller, order.request_id).event(
            AuditEventType.RENEWAL_REQUESTED,
            decision=AuditDecision.ALLOW,
            reason=f"{requested.changed_count} of {requested.certificate_count} {what}{spread}: {order.reason}",
            count=requested.changed_count,
            renewal_request_id=order.request_id,
            selection=str(order.selection)[:_LONGEST_SELECTION],
        )
