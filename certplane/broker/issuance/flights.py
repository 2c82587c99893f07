"""The orders under way, in this process or seen from it at another broker, and those who wait for them.

An order's work runs as a task of its own, never inside a call: a follower that comes or leaves changes nothing for the
order. A follower sees every state that the order goes through, however slow it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

from certplane.broker.model import Order, OrderProgress

OrderKey = tuple[str, str, tuple[str, ...], str, str]


class Flight:
    """One order under way, as its followers see it."""

    def __init__(self, order: Order) -> None:
        self._states = [order]
        self._changed = asyncio.Event()
        self.on_change: Callable[[Order], None] | None = None
        """Called with the order whenever anything of it is another, its progress too. It must not raise."""
        self.task: asyncio.Task[None] | None = None
        self.begun = False
        """Whether the order has had its turn: one that hasn't is parked at once when the broker stops."""
        self.stopping = self.stopped = False
        """Whether it is being interrupted, or was, since its identity doesn't stand any more."""
        self.landed = asyncio.Event()
        """Set once the order has ended or is parked: nothing more will be published."""

    @property
    def order(self) -> Order:
        """The order as it durably is."""
        return self._states[-1]

    def publish(self, order: Order) -> None:
        """Tell the followers; only a new state is an event for them, and ends what was in its way."""
        if order.state is self.order.state:
            self._states[-1] = replace(order, progress=self.order.progress)
            self._tell()
            return
        self._states.append(order)
        self._tell()
        self._wake()
        if not order.state.is_open:
            self.land()

    def note(self, progress: OrderProgress) -> None:
        """What the open order is at; the followers are told if something else is in its way."""
        before = self.order
        if progress == before.progress or not before.state.is_open:
            return
        self._states[-1] = replace(before, progress=progress)
        self._tell()
        if progress.trouble != before.trouble:
            self._wake()

    def stop(self) -> None:
        """Interrupt what the order waits for, once: after that each of its steps asks again."""
        if self.task is not None and not self.stopped and not self.stopping:
            self.stopping = True
            self.task.cancel()

    def park(self) -> None:
        """Let its work go: its journal is all that it needs."""
        if self.task is not None:
            self.task.cancel()

    def land(self) -> None:
        """Nothing more will be published."""
        self.landed.set()
        self._wake()

    async def follow(self) -> AsyncIterator[Order]:
        """The order now, then after each change of state and whenever something else is in its way.

        Ends with the order, or when it is parked.
        """
        seen = len(self._states) - 1
        told = self.order
        while True:
            while seen < len(self._states):
                told = self._states[seen]
                seen += 1
                yield told
            if told.trouble != self.order.trouble and seen == len(self._states):
                told = self.order
                yield told
                continue
            if self.landed.is_set():
                return
            await self._changed.wait()

    def _tell(self) -> None:
        if self.on_change is not None:
            self.on_change(self.order)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Flights:
    """Orders under way, by id and by what makes them unique."""

    def __init__(self, on_change: Callable[[Order], None] | None = None) -> None:
        """`on_change` is that of each flight (`Flight.on_change`); it is called with each new one, too."""
        self._on_change = on_change
        self._by_id: dict[str, Flight] = {}
        self._by_key: dict[OrderKey, Flight] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Flight]:
        return iter(tuple(self._by_id.values()))

    def find(self, order_id: str) -> Flight | None:
        """The flight of an order."""
        return self._by_id.get(order_id)

    def find_open(self, key: OrderKey) -> Flight | None:
        """The flight of the open order of `key`; one that has ended is no longer to be joined."""
        flight = self._by_key.get(key)
        return flight if flight is not None and flight.order.state.is_open else None

    def add(self, order: Order, flight: Flight | None = None) -> Flight:
        """A new flight, or one that goes on: those who follow it stay with it."""
        if flight is None:
            flight = Flight(order)
        else:
            flight.publish(order)
        flight.on_change = self._on_change
        self._by_id[order.order_id] = flight
        self._by_key[order.key] = flight
        if self._on_change is not None:
            self._on_change(flight.order)
        return flight

    def remove(self, flight: Flight) -> None:
        """Its work is over."""
        flight.land()
        self.let_go(flight)

    def let_go(self, flight: Flight) -> None:
        """It goes on elsewhere."""
        order = flight.order
        self._by_id.pop(order.order_id, None)
        if self._by_key.get(order.key) is flight:
            del self._by_key[order.key]
