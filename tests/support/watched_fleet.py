"""A fleet as a watch tells of it, with each kind of trouble among hosts that are well; and a broker that tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Self, TypeVar

from certplane.ctl.watch.feed import WatchSource
from certplane.errors import CertplaneError, OperationError, Reason, RefusalError
from certplane.v1 import (
    audit_pb2,
    budget_pb2,
    certificate_pb2,
    fleet_pb2,
    incident_pb2,
    order_pb2,
    renewal_pb2,
    rollout_pb2,
)

T = TypeVar("T")
NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
Status = renewal_pb2.CertificateStatus
Message = renewal_pb2.WatchRenewalsResponse


def certificate(
    name: str = "web",
    health: int = renewal_pb2.HEALTH_OK,
    *,
    cause: str = "",
    reason: str = "",
    ends: timedelta = timedelta(days=60),
    tried: timedelta | None = None,
    state: int = Status.STATE_SERVING,
) -> renewal_pb2.CertificateStatus:
    """One as the broker sends it."""
    made = Status(name=name, state=state, health=health, health_cause=cause, health_reason=reason, profile=name)  # type: ignore[arg-type]  # open enums
    made.installed.serial_number = f"{name}01"
    made.installed.not_after_time.FromDatetime(NOW + ends)
    made.renew_time.FromDatetime(NOW + ends / 2)
    if tried is not None:
        made.next_attempt_time.FromDatetime(NOW + tried)
    if cause:
        made.health_remedy = f"mend {cause}"
        made.health_since_time.FromDatetime(NOW - timedelta(minutes=51))
    return made


def host(name: str, *certificates: renewal_pb2.CertificateStatus, connected: bool = True) -> renewal_pb2.Host:
    """One as the broker sends it, heard five minutes ago."""
    made = renewal_pb2.Host(
        name=f"{name}.example.test", label=name, connected=connected, agent_version="0.2.0", certificates=certificates
    )
    made.connect_time.FromDatetime(NOW - timedelta(minutes=5))
    made.last_seen_time.FromDatetime(NOW - timedelta(minutes=5))
    return made


def snapshot(*hosts: renewal_pb2.Host) -> list[renewal_pb2.WatchRenewalsResponse]:
    """The messages with which a watch begins."""
    return [*(Message(host=each) for each in hosts), Message(snapshot_end=Message.SnapshotEnd(host_count=len(hosts)))]


def troubled_fleet() -> list[renewal_pb2.Host]:
    """Twelve kinds of trouble, and hosts that are well before and behind them in the alphabet."""
    hour = timedelta(hours=1)
    lacking = "DNS_UNAVAILABLE ns2.example.org"
    told = f"{lacking}: the record can't be found at ns2.example.org after 120 s"
    hosts = [
        host("app170", certificate("shop", renewal_pb2.HEALTH_EXPIRED, cause=lacking, reason=told, ends=-13 * hour)),
        host("app136", certificate("shop", renewal_pb2.HEALTH_EXPIRED, cause=lacking, reason=told, ends=-11 * hour)),
        host("web1", certificate("web", renewal_pb2.HEALTH_REVOKED_IN_USE, cause="REVOKED keyCompromise")),
        host("lb9", certificate("lb", renewal_pb2.HEALTH_FOREIGN_SERVED, cause="FOREIGN 4fbcc726")),
        host("lb3", certificate("lb", renewal_pb2.HEALTH_WONT_HEAL, cause="NAMES_NOT_ALLOWED shop", ends=2 * hour)),
        host("app187", certificate("web", renewal_pb2.HEALTH_OVERDUE, cause=lacking, ends=15 * hour, tried=hour / 3)),
        *(host(f"app2{n:02}", certificate("web", renewal_pb2.HEALTH_FAILING, cause=lacking)) for n in range(16)),
        host("mail1", certificate("mail", renewal_pb2.HEALTH_FAILING, cause="RELOAD postfix.service")),
        host("mail2", certificate("mail", renewal_pb2.HEALTH_STALE_SERVED, cause="STALE_SERVED")),
        host("shop4", certificate("shop", renewal_pb2.HEALTH_MISMATCHED, cause="MISMATCHED shop")),
        host("zone", certificate("a" * 64, 99, cause="SOMETHING NEW")),
        *(host(f"well{n:02}", certificate(), certificate("identity")) for n in range(30)),
    ]
    quiet = host("quiet1", certificate(), connected=False)
    quiet.health = renewal_pb2.HEALTH_UNHEARD
    quiet.last_seen_time.FromDatetime(NOW - timedelta(days=3))
    never = renewal_pb2.Host(name="never1.example.test", label="never1")
    return [*hosts, quiet, never]


def an_event(text: str, severity: str = "info") -> audit_pb2.AuditEvent:
    """One of the audit log."""
    made = audit_pb2.AuditEvent(event_id=text, event_type="certificate_issued")
    made.event_time.FromDatetime(NOW - timedelta(hours=5))
    made.record.update({"identity": "app170.example.test", "reason": text, "severity": severity})
    return made


def an_order(**fields: object) -> order_pb2.OrderStatus:
    """An order that waits."""
    made = order_pb2.OrderStatus(identity="app170.example.test", step="waits for DNS", step_failures=3)
    made.order.state = certificate_pb2.Order.STATE_VALIDATING
    made.order.order_id = "o-1"
    made.order.dns_names.append("shop.example.test")
    made.order.create_time.FromDatetime(NOW - timedelta(minutes=10))
    made.next_attempt_time.FromDatetime(NOW + timedelta(minutes=2))
    made.wait_reason = "the record can't be found at ns2.example.org"
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def a_change(
    event_type: str = "policy_loaded", text: str = "+store.example.test (shop)"
) -> fleet_pb2.SummarizeFleetResponse.Change:
    """Something that an operator did."""
    made = fleet_pb2.SummarizeFleetResponse.Change(event_type=event_type, text=text, identity="alice.example.test")
    made.event_time.FromDatetime(NOW - timedelta(minutes=51))
    return made


class FakeFleetSource(WatchSource):
    """A broker that tells what it is given. `fail` is raised by the watch that runs, `refuse` by each later call."""

    def __init__(self, hosts: Sequence[renewal_pb2.Host]) -> None:
        self.told = list(hosts)
        self.summary: fleet_pb2.SummarizeFleetResponse | CertplaneError = OperationError("the broker is older")
        self.events: list[audit_pb2.AuditEvent] | CertplaneError = [an_event("issued for alice")]
        self.orders: list[order_pb2.OrderStatus] | CertplaneError = [an_order()]
        self.rollouts: list[rollout_pb2.Rollout] | CertplaneError = []
        """The last of them is what a watch of a rollout tells at first."""
        self.incidents: list[incident_pb2.Incident] | CertplaneError = []
        self.limits: budget_pb2.GetBudgetResponse | CertplaneError = OperationError("the broker keeps no budget")
        self.rollout_changes: asyncio.Queue[rollout_pb2.Rollout | CertplaneError] = asyncio.Queue()
        self.rollouts_watched = 0
        """Watches of a rollout that run now."""
        self.opened, self.closed, self.watches = 0, 0, 0
        self.refusals: list[CertplaneError] = []
        """What the next watches end in before they tell anything."""
        self.asked: list[object] = []
        self.summaries = 0
        self._changes: asyncio.Queue[renewal_pb2.WatchRenewalsResponse | CertplaneError] = asyncio.Queue()

    def tell(self, message: renewal_pb2.WatchRenewalsResponse | CertplaneError) -> None:
        """The watch that runs hears this, or ends in it."""
        self._changes.put_nowait(message)

    async def __aenter__(self) -> Self:
        self.opened += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed += 1

    def again(self) -> Self:
        return self

    async def watch(self, hosts: Sequence[str]) -> AsyncGenerator[renewal_pb2.WatchRenewalsResponse, None]:
        self.watches += 1
        if self.refusals:
            raise self.refusals.pop(0)
        for message in snapshot(*(each for each in self.told if not hosts or {each.name, each.label} & set(hosts))):
            yield message
        while True:
            message = await self._changes.get()
            if isinstance(message, CertplaneError):
                raise message
            yield message

    async def summarize(self) -> fleet_pb2.SummarizeFleetResponse:
        self.summaries += 1
        return _or_raise(self.summary)

    async def host(self, name: str) -> renewal_pb2.Host:
        self.asked.append(name)
        for each in self.told:
            if name in {each.name, each.label}:
                return each
        raise RefusalError(Reason.REQUEST_INVALID, f"there is no host {name}")

    async def last_orders(self, wanted: order_pb2.OrderFilter, most: int) -> Sequence[order_pb2.OrderStatus]:
        self.asked.append(wanted)
        return _or_raise(self.orders)

    async def last_events(self, wanted: audit_pb2.AuditFilter, most: int) -> Sequence[audit_pb2.AuditEvent]:
        self.asked.append(wanted)
        return _or_raise(self.events)

    async def last_rollouts(self, most: int) -> Sequence[rollout_pb2.Rollout]:
        return _or_raise(self.rollouts)

    async def watch_rollout(self, rollout_id: str) -> AsyncGenerator[rollout_pb2.Rollout, None]:
        self.asked.append(rollout_id)
        self.rollouts_watched += 1
        try:
            yield _or_raise(self.rollouts)[-1]
            while True:
                yield _or_raise(await self.rollout_changes.get())
        finally:
            self.rollouts_watched -= 1

    async def last_incidents(self, most: int) -> Sequence[incident_pb2.Incident]:
        return _or_raise(self.incidents)

    async def budget(self) -> budget_pb2.GetBudgetResponse:
        return _or_raise(self.limits)


def _or_raise(value: T | CertplaneError) -> T:
    if isinstance(value, CertplaneError):
        raise value
    return value
