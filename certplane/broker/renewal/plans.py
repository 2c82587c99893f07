"""`RenewalPlans`: the plans as the broker knows them now, in memory in front of the store.

Everybody who plans goes through here: who asks the CAs, an operator's request, a revocation. So the answer to each call
has the time that holds, without a look at the database, and whoever wants to tell the hosts hears of each change, after
it is durable: of those of this broker at once, of those of others through the change feed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypeVar

from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.model import CertificateRecord, OrderCause
from certplane.broker.ports import ChangeFollower, RenewalTimes, Wanted
from certplane.broker.renewal.model import (
    DueCheck,
    FollowedItem,
    InForce,
    RecordedRequest,
    RenewalPlan,
    RequestedRenewal,
    RequestItem,
    Selected,
    Selection,
    WindowMove,
)
from certplane.broker.renewal.ports import RenewalChecks, RenewalPlanStore, RenewalRequestLog, RequestItems
from certplane.fleet_report.model import RenewalCause
from certplane.runtime.text import counted

_logger = logging.getLogger(__name__)

T = TypeVar("T")

_SKEW: Final = timedelta(minutes=5)
"""A host's clock may be ahead of ours: what it thinks due by so much is."""

_PAGE: Final = 512
"""Plans that are read at a time: about a millisecond of the loop."""
_TOGETHER: Final = 128
"""Plans of other brokers that are read at a time."""
_AT_ONCE: Final = 64
"""Plans that are told before the loop has its turn: each may make a stream write, which takes 0.1 ms."""


class _Store(RenewalPlanStore, RenewalRequestLog, RequestItems, RenewalChecks, Protocol):
    pass


class RenewalPlans(RenewalTimes, RenewalPlanStore, RenewalRequestLog, RequestItems, RenewalChecks, ChangeFollower):
    """`RenewalPlanStore` and `RenewalChecks` over a store of theirs, and `RenewalTimes` from memory.

    It follows the plans of other brokers.
    """

    def __init__(self, store: _Store) -> None:
        """Nothing is known before `refresh`."""
        self._store = store
        self._times: dict[str, datetime] = {}
        self._learnt: dict[str, datetime] = {}
        """Since the last refresh began: what it reads may be older."""
        self._learning = asyncio.Lock()
        self._working: set[asyncio.Task[Any]] = set()
        self._tidied: datetime | None = None
        self._on_change: list[Callable[[Sequence[RenewalPlan]], None]] = []
        self._on_unknown: list[Callable[[], None]] = []
        self._on_identities: list[Callable[[Collection[str]], None]] = []
        self._on_issue: list[Callable[[CertificateRecord], None]] = []
        self._on_revoke: list[Callable[[CertificateRecord], None]] = []

    def subscribe(self, on_change: Callable[[Sequence[RenewalPlan]], None]) -> None:
        """Call `on_change` with the plans that have changed in what hosts are told; it must not raise or wait."""
        self._on_change.append(on_change)

    def subscribe_unknown(self, on_unknown: Callable[[], None]) -> None:
        """Call `on_unknown` when any plans may have changed unheard; it must not raise or wait."""
        self._on_unknown.append(on_unknown)

    def subscribe_identities(self, on_wanted: Callable[[Collection[str]], None]) -> None:
        """Call `on_wanted` with hosts whose identities are to be renewed; it must not raise or wait."""
        self._on_identities.append(on_wanted)

    def subscribe_issued(self, on_issue: Callable[[CertificateRecord], None]) -> None:
        """Call `on_issue` with each certificate that was issued; it must not raise or wait."""
        self._on_issue.append(on_issue)

    def subscribe_revoked(self, on_revoke: Callable[[CertificateRecord], None]) -> None:
        """Call `on_revoke` with each certificate that was revoked; it must not raise or wait."""
        self._on_revoke.append(on_revoke)

    @override
    def renew_time(self, certificate: CertificateRecord) -> datetime:
        return self._times.get(certificate.certificate_id, certificate.renew_time)

    @override
    async def wanted(self, certificate: CertificateRecord, now: datetime) -> Wanted | None:
        found = await self._store.find(certificate.certificate_id, now)
        plan = None if found is None else found.plan
        if plan is not None and plan.window_start is not None and plan.window_start <= now:
            return Wanted(OrderCause.ISSUER, plan.window_start, "", plan.rollout_id, plan.to_issuer)
        since = certificate.renew_time if plan is None else plan.renew_time
        if since > now:
            since -= _SKEW
        if since > now:
            return None
        if plan is not None and plan.cause is RenewalCause.OPERATOR:
            return Wanted(OrderCause.OPERATOR, since, plan.renewal_request_id, plan.rollout_id, plan.to_issuer)
        return Wanted(OrderCause.DUE, since)

    @override
    async def in_window(self, certificate: CertificateRecord, now: datetime) -> bool:
        found = await self._store.find(certificate.certificate_id, now)
        plan = None if found is None else found.plan
        return plan is not None and plan.in_window(now)

    @override
    def note_issued(self, certificate: CertificateRecord) -> None:
        for on_issue in self._on_issue:
            on_issue(certificate)

    @override
    def note_revoked(self, certificate: CertificateRecord) -> None:
        for on_revoke in self._on_revoke:
            on_revoke(certificate)

    async def refresh(self) -> None:
        """Take what the store has, a page at a time.

        Raises:
            RefusalError: STORE_UNAVAILABLE; what was known stays.
        """
        self._learnt = {}
        times: dict[str, datetime] = {}
        after = ""
        while page := await self._store.renew_times(after, _PAGE):
            times.update((certificate_id, time) for certificate_id, time in page if time is not None)
            after = page[-1][0]
        self._times = times | self._learnt

    async def tidy(self, now: datetime) -> None:
        """Have the store forget what has expired; at first, and after a clock was set back, it finds what it lost.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        tidied, self._tidied = self._tidied, None
        await self._store.forget_expired(now)
        if tidied is None or now < tidied:
            adopted = await self._store.adopt(now)
            if adopted:
                text = counted(adopted, "certificate in force was", "certificates in force were")
                _logger.warning("%s not among the renewal plans; adopted now", text)
        self._tidied = now

    @override
    async def set_plans(self, plans: Sequence[RenewalPlan], events: Sequence[AuditEvent] = ()) -> None:
        await self._to_its_end(self._set_plans(plans, events))

    async def _set_plans(self, plans: Sequence[RenewalPlan], events: Sequence[AuditEvent]) -> None:
        await self._store.set_plans(plans, events)
        await self._learn(plans)

    @override
    async def find_request(self, requester: str, request_id: str) -> RequestedRenewal | None:
        return await self._store.find_request(requester, request_id)

    @override
    async def set_requested(
        self,
        plans: Sequence[RenewalPlan],
        requester: str,
        requested: RequestedRenewal,
        time: datetime,
        events: Sequence[AuditEvent] = (),
        *,
        reason: str = "",
        items: Sequence[RequestItem] = (),
    ) -> RequestedRenewal:
        async def set_requested() -> RequestedRenewal:
            kept = await self._store.set_requested(
                plans, requester, requested, time, events, reason=reason, items=items
            )
            if kept == requested:
                await self._learn(plans)
                if hosts := {item.host for item in items if not item.certificate_id}:
                    for on_wanted in self._on_identities:
                        on_wanted(hosts)
            return kept

        return await self._to_its_end(set_requested())

    @override
    async def get_request(self, request_id: str, requester: str) -> RecordedRequest | None:
        return await self._store.get_request(request_id, requester)

    @override
    async def follow_items(self, request: RecordedRequest, after: int, limit: int) -> Sequence[FollowedItem]:
        return await self._store.follow_items(request, after, limit)

    @override
    async def identity_renewals(self, hosts: Sequence[str]) -> Sequence[tuple[str, RenewalPlan]]:
        return await self._store.identity_renewals(hosts)

    @override
    async def in_force(self, host: str, now: datetime) -> Sequence[InForce]:
        return await self._store.in_force(host, now)

    @override
    async def in_force_of(self, hosts: Sequence[str], now: datetime) -> Sequence[InForce]:
        return await self._store.in_force_of(hosts, now)

    @override
    async def find(self, certificate_id: str, now: datetime) -> InForce | None:
        return await self._store.find(certificate_id, now)

    @override
    async def select(self, selection: Selection, now: datetime) -> Sequence[Selected]:
        return await self._store.select(selection, now)

    @override
    async def to_check(self, issuer: str, now: datetime, limit: int) -> Sequence[DueCheck]:
        return await self._store.to_check(issuer, now, limit)

    @override
    async def replace_plan(
        self,
        before: RenewalPlan | None,
        after: RenewalPlan,
        events: Sequence[AuditEvent] = (),
        *,
        move: WindowMove | None = None,
    ) -> bool:
        return await self._to_its_end(self._replace_plan(before, after, events, move))

    async def _replace_plan(
        self,
        before: RenewalPlan | None,
        after: RenewalPlan,
        events: Sequence[AuditEvent],
        move: WindowMove | None,
    ) -> bool:
        replaced = await self._store.replace_plan(before, after, events, move=move)
        if replaced and (before is None or before.told != after.told):
            await self._learn([after])
        return replaced

    @override
    async def planned(self, certificate_ids: Collection[str]) -> Sequence[RenewalPlan]:
        return await self._store.planned(certificate_ids)

    @override
    async def changed(self, keys: Collection[str]) -> None:
        certificate_ids = [*keys]
        for start in range(0, len(certificate_ids), _TOGETHER):
            # Read in the turn in which it is told: a plan of this broker that is durable later is told later.
            async with self._learning:
                await self._tell(await self._store.planned(certificate_ids[start : start + _TOGETHER]))

    @override
    async def reread(self, since: datetime) -> None:
        await self.refresh()
        for on_unknown in self._on_unknown:
            on_unknown()

    @override
    async def renew_times(self, after: str, limit: int) -> Sequence[tuple[str, datetime | None]]:
        return await self._store.renew_times(after, limit)

    @override
    async def forget_expired(self, now: datetime) -> None:
        await self._store.forget_expired(now)

    @override
    async def adopt(self, now: datetime) -> int:
        return await self._store.adopt(now)

    async def _learn(self, plans: Sequence[RenewalPlan]) -> None:
        """Take plans in and tell of them, some at a time: a whole fleet's would hold the event loop for seconds.

        One after the other, so that of two plans for one certificate the one that was durable last is told last.
        """
        async with self._learning:
            await self._tell(plans)

    async def _tell(self, plans: Sequence[RenewalPlan]) -> None:
        for start in range(0, len(plans), _AT_ONCE):
            if start:
                await asyncio.sleep(0)
            some = plans[start : start + _AT_ONCE]
            times = {plan.certificate_id: plan.renew_time for plan in some}
            self._times |= times
            self._learnt |= times
            for on_change in self._on_change:
                on_change(some)

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Who goes away while it is written doesn't keep what is durable from being known and told."""
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._note_end)
        return await asyncio.shield(task)

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        self._working.discard(task)
        if not task.cancelled():
            task.exception()  # its caller's to see, if there still is one
