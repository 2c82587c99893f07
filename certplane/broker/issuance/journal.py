"""The durable side of one order under way.

Each write is repeated as long as the store or the audit log can't take it: the step before it has happened outside, and
forgetting that is worse than waiting. Nobody learns of a change before it is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from certplane.broker import metrics
from certplane.broker.budget.model import Claim, Need
from certplane.broker.budget.ports import PlaceTry
from certplane.broker.events import AuditEvent
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.flights import Flight
from certplane.broker.issuance.waiting import see_through
from certplane.broker.model import CertificateRecord, Order, TxtRecord
from certplane.broker.ports import OrderChange
from certplane.errors import Reason, RefusalError
from certplane.runtime.backoff import Backoff

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_PASSING = frozenset({Reason.STORE_UNAVAILABLE, Reason.AUDIT_UNAVAILABLE})


class OrderEndedError(Exception):
    """Somebody else has ended the order meanwhile; it was published as it is. Never leaves this package."""


class OrderGoneError(Exception):
    """The database has no such order, as after an older copy was restored. Never leaves this package."""

    def __init__(self) -> None:
        """No more is known."""
        super().__init__("the order is not in the database any more; was an older copy of it restored?")


class OrderTakenError(Exception):
    """Another broker runs the order by now: nothing more is done here, nothing undone. Never leaves this package."""


class Journal:
    """Writes one order's changes and publishes them."""

    def __init__(self, ports: IssuancePorts, flight: Flight, group: asyncio.TaskGroup, backoff: Backoff) -> None:
        self._ports = ports
        self._flight = flight
        self._group = group
        self._backoff = backoff

    @property
    def order(self) -> Order:
        """The order as it durably is."""
        return self._flight.order

    def note(self, **changes: Any) -> None:
        """Say what the order is at: fields of `OrderProgress`. Written soon, where it is worth it (`progress`)."""
        self._flight.note(replace(self.order.progress, **changes))

    def begin(self, step: str, *, wait: str = "") -> None:
        """The order is at this step from now on, and waits for what `wait` says."""
        before = self.order.progress
        again = before.step == step and before.failures
        self.note(
            step=step,
            step_time=before.step_time if again else self._ports.clock.now(),
            wait=wait,
            next_attempt=None,
        )

    async def refresh(self) -> None:
        """Read the order anew: it may have waited long for its turn, and have ended meanwhile.

        Raises:
            OrderTakenError: another broker runs it by now.
            OrderGoneError: there is none.
        """
        order_id = self.order.order_id
        order = await self._persist(lambda: self._ports.orders.get_order(order_id))
        if order is None:
            raise OrderGoneError
        if order.epoch != self.order.epoch:
            self._flight.publish(order)
            raise OrderTakenError
        self._flight.publish(order)

    async def write(self, change: OrderChange, events: Sequence[AuditEvent] = ()) -> None:
        """Make `change` durable, with its events.

        Raises:
            OrderEndedError: nothing was written, and there is nothing more to do for the order.
            OrderTakenError: nothing was written, and another broker does what there is to do.
            OrderGoneError: nothing was written, and there is nothing to write to.
        """
        self._publish(await self._fenced(lambda order: self._ports.orders.change_order(order, change, events)))

    async def take_lane(self, lane: str) -> str:
        """Let the order have its turn in `lane`, or wait there; the order_id that it is behind, empty for its turn.

        Raises:
            OrderTakenError: see `write`.
        """
        tried = await self._fenced(lambda order: self._ports.shared_orders.take_lane(order, lane))
        self._publish(tried.order)
        return tried.behind

    async def leave_lane(self) -> None:
        """End the order's turn among the orders of all brokers.

        Raises:
            OrderTakenError: see `write`.
        """
        self._publish(await self._fenced(self._ports.shared_orders.leave_lane))

    async def take_places(self, claim: Claim) -> PlaceTry:
        """Take the order's places within its CA's limits, if there are; it keeps those that it has.

        Raises:
            OrderEndedError, OrderTakenError: see `write`.
        """
        tried = await self._fenced(lambda order: self._ports.ledger.take_places(order, claim))
        self._publish(tried.order)
        return tried

    async def correct_places(self, claim: Claim, refused: Sequence[Need], until: datetime) -> PlaceTry:
        """The CA has said that no `refused` bucket has a place before `until`.

        Raises:
            OrderEndedError, OrderTakenError: see `write`.
        """
        tried = await self._fenced(lambda order: self._ports.ledger.correct(order, claim, refused, until))
        self._publish(tried.order)
        return tried

    async def find(self, order_id: str) -> Order | None:
        """Another order, as it durably is."""
        return await self._persist(lambda: self._ports.orders.get_order(order_id))

    async def leaving(self, records: Sequence[TxtRecord]) -> Collection[tuple[str, str]]:
        """Name and value of those of `records` that some broker may be removing for an order that has ended."""
        return await self._persist(lambda: self._ports.shared_orders.leaving_records(records))

    async def needed_elsewhere(self, records: Sequence[TxtRecord]) -> Collection[tuple[str, str]]:
        """Name and value of those of `records` that another open order of any broker lists."""
        return await self._persist(lambda: self._ports.shared_orders.needed_records(records, but=self.order.order_id))

    async def finish(self, record: CertificateRecord, events: Sequence[AuditEvent]) -> None:
        """Store an issued certificate, even if the order's task is cancelled meanwhile.

        Raises:
            OrderEndedError, OrderTakenError: see `write`.
        """
        await see_through(self._group, self._finish(record, events))

    async def _finish(self, record: CertificateRecord, events: Sequence[AuditEvent]) -> None:
        self._publish(await self._fenced(lambda order: self._ports.orders.finish_order(order, record, events)))

    async def _fenced(self, write: Callable[[Order], Awaitable[_T]]) -> _T:
        before = self.order
        try:
            return await self._persist(lambda: write(before))
        except RefusalError as error:
            await self._explain(error, before)
            raise

    async def _explain(self, error: RefusalError, before: Order) -> None:
        """Why the order as it was `before` could not be written; returns if nobody else has done anything with it."""
        if error.refusal.reason is not Reason.ORDER_NOT_FOUND:
            return
        found = await self._persist(lambda: self._ports.orders.get_order(before.order_id))
        if found is None:
            raise OrderGoneError from error
        if found.epoch != before.epoch and found.holder != self._ports.orders.holder:
            self._publish(found)
            raise OrderTakenError from error
        if not found.state.is_open:
            self._publish(found)
            raise OrderEndedError from error

    def _publish(self, order: Order) -> None:
        if order.state is not self.order.state:
            fields = {"order_id": order.order_id, "identity": order.identity, "profile": order.profile}
            fields |= {"acme_order_url": order.acme_order_url, "certificate_id": order.certificate_id}
            if order.error is not None:
                fields["reason"] = order.error.reason.value
            shown = {name: value for name, value in fields.items() if value}
            logger.info("order %s", order.state.value, extra={"fields": shown})
        self._flight.publish(order)

    async def _persist(self, write: Callable[[], Awaitable[_T]]) -> _T:
        failures = 0
        while True:
            try:
                return await write()
            except RefusalError as error:
                if error.refusal.reason not in _PASSING:
                    raise
                failures += 1
                self._ports.meter.count(metrics.JOURNAL_RETRIES)
                if failures == 1:
                    logger.warning(
                        "could not write an order's journal to the store; retrying: %s",
                        error.refusal.message,
                        extra={"fields": {"order_id": self.order.order_id, "reason": error.refusal.reason.value}},
                    )
                await self._ports.clock.sleep(self._backoff.wait(failures, self._ports.rng))
