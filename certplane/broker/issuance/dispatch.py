"""Who runs the orders: one task an order, owned here and by no call.

Rules:

- `start` takes every open order that no living broker holds, and picks it up where its journal left it, those first
  that the CA already knows; and removes TXT records that ended orders have left. Where brokers share a database, what
  another one leaves is taken within a second.
- Without its lease a broker runs and opens no order: all are parked, and taken anew when the lease stands again.
- An order is run by at most one task. Work that a call has begun and that must not be torn by the call's cancellation
  runs here too (`protect`).
- An order whose identity was shut out, by whatever program, or whose CA isn't trusted any more, is stopped within a
  second: what it waits for is given up, and what the store says by then, or asking again, ends it.
- `drain` lets running orders finish for a while, parks the rest (their journal is all they need) and gives them back to
  other brokers, those that wait for their turn at once; it takes no new ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from certplane.broker import metrics
from certplane.broker.events import AuditEvent
from certplane.broker.issuance.authorisation import OrderAuthorisation
from certplane.broker.issuance.budgeting import OrderBudget
from certplane.broker.issuance.condition import ConditionFollower, IssuanceCondition
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.elsewhere import OrdersElsewhere
from certplane.broker.issuance.events import EventFactory
from certplane.broker.issuance.execution import OrderExecution
from certplane.broker.issuance.failover import IssuerChoice
from certplane.broker.issuance.flights import Flight, Flights, OrderKey
from certplane.broker.issuance.holds import IssuerHolds
from certplane.broker.issuance.journal import Journal, OrderGoneError, OrderTakenError
from certplane.broker.issuance.lanes import SharedLanes
from certplane.broker.issuance.order_context import OrderContext
from certplane.broker.issuance.progress import ProgressWriter, TroubleTold
from certplane.broker.issuance.queue import OrderQueue
from certplane.broker.issuance.refusals import draining_refusal, leaseless_refusal
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.issuance.spans import order_span
from certplane.broker.issuance.tenure import LeaseLostError, Tenure
from certplane.broker.issuance.validation import ChallengeRecords
from certplane.broker.issuance.waiting import see_through, within
from certplane.broker.issuance.watching import OrderWatchers
from certplane.broker.model import ChangeKind, Order, OrderDraft, OrderState, Profile
from certplane.broker.ports import CacheLook, ChangeFeed, OpenedOrder
from certplane.errors import Reason, Refusal, RefusalError
from certplane.runtime.logging import request_id

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_LOOK = timedelta(seconds=1)
"""Between looks at whether the identities that have asked still stand: from memory."""


class OrderDispatcher:
    """Runs orders; `flights` are those under way."""

    def __init__(self, ports: IssuancePorts, settings: IssuanceSettings, events: EventFactory) -> None:
        self._ports = ports
        self._settings = settings
        self._events = events
        self._authorisation = OrderAuthorisation(ports, settings.account_keys_sha256)
        directories = {name: issuer.directory for name, issuer in ports.issuers.items()}
        self.holds = IssuerHolds(ports.holds, directories, lambda: ports.epoch.current)
        self._choice = IssuerChoice(self.holds)
        self.condition = IssuanceCondition(ports.meter, ports.epoch)
        self._conditions = ConditionFollower(self.condition, ports.policies, ports.orders, ports.conditions)
        self._records = ChallengeRecords(ports, settings)
        self._tenure = Tenure(ports.orders, ports.lease)
        self._lanes = SharedLanes(ports)
        self._context = OrderContext(
            ports=ports,
            settings=settings,
            tenure=self._tenure,
            queue=OrderQueue(settings.parallel_orders, settings.orders_asked_for),
            lanes=self._lanes,
            budget=OrderBudget(ports),
            holds=self.holds,
            choice=self._choice,
            condition=self.condition,
            records=self._records,
            authorisation=self._authorisation,
            told=TroubleTold(),
        )
        self._group: asyncio.TaskGroup | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._protected = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._progress = ProgressWriter(ports.orders)
        self.watchers = OrderWatchers()
        self.flights = Flights(self.watchers.note)
        self.elsewhere = OrdersElsewhere(ports.orders)
        self.limits = settings.limits
        """What new orders have to keep: a reload may change it."""
        self.draining = self.resting = False
        """Whether the broker stops; and whether it opens and takes no order, though it may again."""

    async def start(self, profiles: Sequence[str] = ()) -> None:
        """Pick up what a previous run has left, what it knew of `profiles` too, and be ready for new orders.

        Raises:
            RefusalError: STORE_UNAVAILABLE; nothing is started then.
        """
        if self._supervisor is not None:
            raise RuntimeError("orders are already being run")
        await self.holds.reread(self._ports.clock.now())
        taken = await self._tenure.take()
        for profile in profiles:
            await self._conditions.recall(profile)
        started = asyncio.Event()
        self._supervisor = asyncio.create_task(self._supervise(started), name="orders")
        await started.wait()
        self._run_all(taken)

    def follow_others(self, feed: ChangeFeed) -> None:
        """Hear of the other brokers of the database: of their orders, what they were told, and those that go."""
        feed.follow(ChangeKind.ORDER, self.elsewhere, what="other brokers' orders")
        feed.follow(ChangeKind.ORDER, self._lanes, what="whose turn it is at other brokers")
        feed.follow(ChangeKind.ORDER, self.watchers, what="other brokers' orders, for those who watch")
        feed.follow(ChangeKind.HOLD, self.holds, what="what issuers are not to be asked for")
        feed.follow(ChangeKind.CONDITION, self._conditions, what="which profiles can have certificates")
        feed.follow(ChangeKind.MEMBER, self._tenure, what="which brokers there are")

    def _run_all(self, taken: Iterable[Order]) -> None:
        """Go on with orders that were just taken.

        Known to the CA first: a CA that hands back pending orders would give theirs to a new one of the same names.
        """
        for order in sorted(taken, key=lambda order: (not order.acme_order_url, order.create_time)):
            if order.state.is_open:
                self.run(order)
            else:
                self._owner.create_task(self._sweep(order))

    async def open(
        self, draft: OrderDraft, events: Sequence[AuditEvent], look: CacheLook
    ) -> tuple[OpenedOrder, Flight | None] | None:
        """Make or join the order of `draft` and see that it runs; the flight is None when the joined one has failed.

        None if the cache has had a certificate since the `look` into it.

        Raises:
            RefusalError: DRAINING, RATE_LIMITED, KEY_REUSED, AUDIT_UNAVAILABLE or STORE_UNAVAILABLE.
        """
        if self.draining or self.resting:
            raise draining_refusal()
        if not self._tenure.stand():
            raise leaseless_refusal()
        return await self.protect(self._open(draft, events, look))

    async def _open(
        self, draft: OrderDraft, events: Sequence[AuditEvent], look: CacheLook
    ) -> tuple[OpenedOrder, Flight | None] | None:
        opened = await self._ports.orders.open_order(draft, self.limits, events, look=look)
        if opened is None:
            return None
        return opened, self.see(opened.order) if opened.order.state.is_open else None

    def find(self, order_id: str) -> Flight | None:
        """The flight of an order under way, here or elsewhere."""
        return self.flights.find(order_id) or self.elsewhere.flights.find(order_id)

    def find_open(self, key: OrderKey) -> Flight | None:
        """The flight of the open order of `key`, here or elsewhere, as far as is known here."""
        return self.flights.find_open(key) or self.elsewhere.flights.find_open(key)

    def see(self, order: Order) -> Flight:
        """The flight of an open order: it runs here if it is ours; if not, its broker is followed.

        Raises:
            RefusalError: DRAINING, or STORE_UNAVAILABLE.
        """
        if self.draining:
            raise draining_refusal()
        if order.holder != self._ports.orders.holder:
            return self.flights.find(order.order_id) or self.elsewhere.see(order)  # taken since it was read, perhaps
        if not self._tenure.stand():  # all that is held is taken anew, once nothing is run here
            raise leaseless_refusal()
        return self.run(order)

    def choose_issuer(self, profile: Profile) -> str:
        """The issuer for a new order of `profile`: the first of its list that isn't known to be out."""
        issuers, now = self._ports.issuers_of(profile), self._ports.clock.now()
        return self._choice.choose(issuers, profile.dns_names, profile.acme_profile, now)

    def run(self, order: Order) -> Flight:
        """See that an open order of ours runs; its flight, the same one for the same order."""
        flight = self.flights.find(order.order_id)
        if flight is not None:
            return flight
        flight = self.flights.add(order, self.elsewhere.take_over(order))
        self._records.need(order.order_id, order.txt_records)
        self._note_level()
        flight.task = self._owner.create_task(self._fly(flight), name=f"order {order.order_id}")
        return flight

    async def protect(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a call's `work` to its end even if the call is cancelled.

        Raises:
            RefusalError: DRAINING when the broker stopped before the work was done, and all that `work` raises.
        """
        if self._group is None:
            work.close()
            raise draining_refusal() if self.draining else RuntimeError("orders are not being run yet")
        self._protected += 1
        self._note_level()
        try:
            return await see_through(self._group, work)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self.draining and task is not None and not task.cancelling():
                raise draining_refusal() from error
            raise
        finally:
            self._protected -= 1
            self._note_level()

    async def rest(self) -> None:
        """Open and take no order until `resume`; those that wait for their turn are for other brokers."""
        self.resting = True
        for flight in (waiting := [flight for flight in self.flights if not flight.begun]):
            flight.park()
        if waiting:
            await self._give_back([flight.order.order_id for flight in waiting])

    def resume(self) -> None:
        """Open and take orders again."""
        self.resting = False

    async def drain(self, timeout: timedelta) -> None:
        """Take no new orders; return when all have ended or are parked, at the latest a grace after `timeout`."""
        self.draining = True
        self.elsewhere.land_all()
        if self._supervisor is None:
            return
        for flight in (waiting := [flight for flight in self.flights if not flight.begun]):
            flight.park()
        if waiting and self._ports.lease.shared:  # others needn't wait for those that are under way here
            self._owner.create_task(self._give_back([flight.order.order_id for flight in waiting]))
        await within(self._ports.clock, timeout, self._idle)
        for flight in self.flights:
            flight.park()
        await within(self._ports.clock, self._settings.parking_grace, self._idle)
        self._group = None
        self._supervisor.cancel()
        await asyncio.wait({self._supervisor})
        if not self._supervisor.cancelled():
            self._supervisor.result()
        self.watchers.close()
        await self._tell_others()
        await self._give_back()

    async def _give_back(self, order_ids: Collection[str] | None = None) -> None:
        """Let other brokers go on with these, or with all."""
        try:
            await self._ports.orders.give_back_orders(order_ids)
        except RefusalError as error:
            logger.warning(
                "orders could not be given back; they are taken when this broker's lease has ended: %s", error
            )

    async def _supervise(self, started: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            started.set()
            while True:  # for good: `drain` cancels this task and with it whatever is left
                await within(self._ports.clock, _LOOK, self._tenure.left)
                self._tenure.left.clear()
                await self._keep_orders()
                if self._telling is None or self._telling.done():
                    self._telling = group.create_task(self._tell_others(), name="telling other brokers")
                for flight in self.flights:
                    if flight.order.state is not OrderState.FINALIZING and not self._authorisation.stands(flight.order):
                        flight.stop()

    async def _tell_others(self) -> None:
        """Write what this broker was told; beside all else: a database that takes its time holds up nobody."""
        try:
            now = self._ports.clock.now()
            await self.holds.save(now)
            await self._progress.write((flight.order for flight in self.flights), now)
            if self._ports.lease.shared:
                await self._conditions.tell()
        except Exception:
            logger.exception("other brokers could not be told of holds, orders, or blocked profiles; will retry")

    async def _keep_orders(self) -> None:
        """Take what other brokers leave, and let go of what may be theirs."""
        if not self._ports.lease.shared or self.draining:
            return
        if not self._tenure.stand():
            for flight in self.flights:
                flight.park()
            if len(self.flights) or not self._ports.lease.stands():
                return  # what was parked hasn't ended yet, or nothing can be taken
        if not self.resting:
            self._run_all(await self._tenure.take_left())
        elif not self._tenure.stand():
            await self._tenure.give_up()
        with suppress(RefusalError):  # the next look reads them
            await self.elsewhere.catch_up()
        for order_id, records in self._records.pop_late(self.flights.find):
            self._owner.create_task(self._records.remove_late(order_id, records, self._tenure.stand))

    def _execution(self, flight: Flight) -> OrderExecution:
        journal = Journal(self._ports, flight, self._owner, self._settings.store_retry)
        return OrderExecution(self._context, journal, self._events.of_order(flight.order), flight)

    async def _fly(self, flight: Flight) -> None:
        """An order's task: no fault of one order reaches the others."""
        request_id.set(flight.order.request_id)
        execution = self._execution(flight)
        try:
            with order_span(flight):
                while not await self._finished(flight, execution):
                    execution = self._execution(flight)
        except OrderTakenError:
            logger.warning("another broker has taken an order", extra={"fields": {"order_id": flight.order.order_id}})
            self._hand_over(flight)
        except LeaseLostError:
            pass  # parked: whoever has a lease takes it
        except OrderGoneError as error:
            fields = {"order_id": flight.order.order_id, "identity": flight.order.identity}
            logger.warning("an order ends here: %s", error, extra={"fields": fields})
        except Exception:
            logger.exception(
                "an order failed on an unexpected error", extra={"fields": {"order_id": flight.order.order_id}}
            )
            await self._contain(flight, execution)
        finally:
            self._records.release(flight.order.order_id)
            if self.flights.find(flight.order.order_id) is flight:
                self.flights.remove(flight)
            self._note_level()

    def _hand_over(self, flight: Flight) -> None:
        """Those who wait for the order here stay with it, wherever it is run."""
        if flight.order.state.is_open and not self.draining:
            self.flights.let_go(flight)
            self.elsewhere.see(flight.order, flight)

    async def _finished(self, flight: Flight, execution: OrderExecution) -> bool:
        """Take the order to its end; False if it was stopped, and is to be looked at anew."""
        try:
            await execution.run()
        except asyncio.CancelledError:
            if not flight.stopping or self.draining or flight.task is None or flight.task.uncancel():
                raise
            flight.stopping, flight.stopped = False, True
            return False
        return True

    async def _contain(self, flight: Flight, execution: OrderExecution) -> None:
        """After an unexpected fault: before the finalisation the order fails; after it, it stays for another try."""
        order = flight.order
        refusal = Refusal(Reason.INTERNAL, f"internal error; when you report it, quote order {order.order_id}")
        try:
            if order.state.is_open and order.state is not OrderState.FINALIZING:
                await execution.fail(refusal)
            else:
                await execution.leave_lane()
        except OrderTakenError:
            self._hand_over(flight)
        except LeaseLostError:
            pass
        except Exception:
            logger.exception("an order could not be failed", extra={"fields": {"order_id": order.order_id}})

    async def _sweep(self, order: Order) -> None:
        """Remove the records that an ended order has left."""
        try:
            await self._execution(Flight(order)).clean_up()
        except (OrderTakenError, LeaseLostError):
            pass  # somebody else's by now, or taken again soon
        except Exception:
            logger.exception(
                "leftover TXT records could not be removed", extra={"fields": {"order_id": order.order_id}}
            )

    @property
    def _owner(self) -> asyncio.TaskGroup:
        if self._group is None:
            raise RuntimeError("orders are not being run")
        return self._group

    def _note_level(self) -> None:
        self._ports.meter.level(metrics.ORDERS_OPEN, len(self.flights))
        if len(self.flights) or self._protected:
            self._idle.clear()
        else:
            self._idle.set()
