"""The broker's database as plain dictionaries: what all store fakes share, and what survives a simulated crash."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, TypeVar

from certplane.broker.events import AuditEvent
from certplane.broker.fleet.model import HostStream, RequestedRenewal
from certplane.broker.identity.standing import shut_out
from certplane.broker.issuance.events import denied_order
from certplane.broker.model import (
    CertificateRecord,
    DenyEntry,
    EnrollmentReport,
    KeyUse,
    KnownIdentity,
    Order,
    OrderState,
)
from certplane.broker.renewal.model import RenewalPlan
from certplane.errors import Reason, Refusal, RefusalError
from certplane.fleet_report.model import CertificateStatus
from certplane.runtime.clock import Clock
from tests.fakes.faults import FaultScript

T = TypeVar("T")

FailureMode = Literal["fail_closed", "fail_open"]


@dataclass
class FakeHost:
    """What is kept of one host of the fleet."""

    epoch: str = ""
    acknowledged: int = 0
    stream: HostStream | None = None
    error: Refusal | None = None
    certificates: dict[str, CertificateStatus] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)

    def take_epoch(self, epoch: str) -> None:
        """Count anew if the epoch is another."""
        if epoch != self.epoch:
            self.epoch, self.acknowledged = epoch, 0


class FakeDatabase:
    """Rows, the audit log, and the faults of both.

    A transaction takes effect at the moment it is asked for, wholly or not at all, and its caller learns of it a turn of
    the loop later; cancelling the caller in between changes nothing. `fork` copies everything as it is now, as a disk
    would be found after a power cut.
    """

    def __init__(self, clock: Clock, *, failure_mode: FailureMode = "fail_closed") -> None:
        self.clock = clock
        self.failure_mode = failure_mode
        self.orders: dict[str, Order] = {}
        self.certificates: dict[str, CertificateRecord] = {}
        self.keys: dict[str, KeyUse] = {}
        self.denied: list[DenyEntry] = []
        self.identities: dict[str, KnownIdentity] = {}
        self.plans: dict[str, RenewalPlan] = {}
        self.reports: dict[str, EnrollmentReport] = {}
        self.hosts: dict[str, FakeHost] = {}
        self.requests: dict[tuple[str, str], RequestedRenewal] = {}
        self.request_times: dict[tuple[str, str], datetime] = {}
        self.events: list[AuditEvent] = []
        self.spilled: list[AuditEvent] = []
        self.counts: dict[str, AuditEvent] = {}
        """Repeated events while they are counted, by event_id."""
        self.commits = 0
        self.down = False
        """Every read and write fails: STORE_UNAVAILABLE."""
        self.audit_down = False
        """Events can't be written; what follows is the failure mode's."""
        self.faults = FaultScript()
        self._ids = 0

    def fork(self) -> FakeDatabase:
        """A database with the same rows and without the faults."""
        other = FakeDatabase(self.clock, failure_mode=self.failure_mode)
        for name in (
            "orders",
            "certificates",
            "keys",
            "denied",
            "identities",
            "plans",
            "reports",
            "requests",
            "request_times",
            "counts",
            "events",
            "spilled",
        ):
            setattr(other, name, copy.copy(getattr(self, name)))
        other.hosts = copy.deepcopy(self.hosts)
        other._ids = self._ids
        return other

    def ended_by(self, entry: DenyEntry, time: datetime) -> list[AuditEvent]:
        """The events of the orders that end when `entry` shuts their identity out."""
        return [denied_order(order, shut_out(), time) for order in self._orders_of(entry)]

    def end_orders(self, entry: DenyEntry, time: datetime) -> None:
        """End those orders."""
        for order in self._orders_of(entry):
            self.orders[order.order_id] = replace(
                order, state=OrderState.FAILED, update_time=time, error=shut_out(), retry_time=time
            )

    def _orders_of(self, entry: DenyEntry) -> list[Order]:
        return [
            order
            for order in self.orders.values()
            if order.state.is_open
            and order.state is not OrderState.FINALIZING
            and (
                order.identity == entry.name
                if entry.name
                else order.identity_serial == entry.serial_number and order.identity_issuer in (entry.issuer, "")
            )
        ]

    def new_id(self, prefix: str) -> str:
        """An id that sorts by age."""
        self._ids += 1
        return f"{prefix}-{self._ids:06d}"

    async def read(self, operation: str, query: Callable[[], T]) -> T:
        """What `query` finds in the committed rows."""
        async with self.faults.around(operation):
            self._check_up()
            return query()

    async def write(self, operation: str, events: Sequence[AuditEvent], change: Callable[[], T]) -> T:
        """One transaction of `change` and `events`: `change` raises before it touches anything, or not at all."""
        async with self.faults.around(operation):
            self._check_up()
            spill = self._check_audit(events)
            result = change()
            (self.spilled if spill else self.events).extend(events)
            self.commits += 1
        return result

    async def append(self, events: Sequence[AuditEvent]) -> None:
        """Events on their own: a store that is down loses them as an audit log that is down does."""
        async with self.faults.around("append"):
            spill = self._check_audit(events, down=self.down)
            (self.spilled if spill else self.events).extend(events)
            self.commits += 1

    async def keep_counts(self, summaries: Sequence[AuditEvent]) -> None:
        """Counts of repeated events: not events yet, and refused as those are."""
        async with self.faults.around("keep_counts"):
            if not self._check_audit(summaries, down=self.down):
                self.counts |= {event.event_id: event for event in summaries}
            self.commits += 1

    def _check_up(self) -> None:
        if self.down:
            raise RefusalError(
                Reason.STORE_UNAVAILABLE, "the database does not answer", retry_after=timedelta(seconds=5)
            )

    def _check_audit(self, events: Sequence[AuditEvent], *, down: bool = False) -> bool:
        """Whether the events must be spilled."""
        if not events or not (self.audit_down or down):
            return False
        if self.failure_mode == "fail_closed":
            raise RefusalError(
                Reason.AUDIT_UNAVAILABLE, "the audit log can't be written", retry_after=timedelta(seconds=5)
            )
        return True
