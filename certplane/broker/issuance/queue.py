"""Whose turn it is at the CA.

Rules:

- One ACME order at a time per lane (issuer, CA profile, name set): a CA may hand back the pending order of the same
  names whatever the key (Boulder does), and two brokers' orders would then share one. Who comes first goes first.
- At most so many orders at once over all lanes. A lane that waits takes none of these places, and an order that nobody
  but the CA can end, whenever that is, gives its place back: it must not hold up other names.
- Of these, only a few ask an issuer for a new order at the same time, so that a limit that one of them meets is known
  to the rest before they have asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from certplane.broker.issuance.progress import LANE, TURN
from certplane.runtime.keyed_lock import KeyedLock


class Lane(NamedTuple):
    """What a CA may take for the same order; an issuer has one account."""

    issuer: str
    acme_profile: str
    dns_names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The lane in the rows of orders: SHA-256 in hex, since a hundred names are too long for an index."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


class Place:
    """One of the places of all lanes, taken."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._taken = True

    def leave(self) -> None:
        """Give the place back before the turn's end; the lane is kept. Again is nothing."""
        if self._taken:
            self._taken = False
            self._places.release()


class OrderQueue:
    """Turns, given in the order in which they were asked for."""

    def __init__(self, parallel: int, asking: int = 4) -> None:
        """Make it.

        Args:
            parallel: turns at once.
            asking: of these, how many ask one issuer for a new order at once.
        """
        self._places = asyncio.Semaphore(parallel)
        self._most_asking = asking
        self._asking: dict[str, asyncio.Semaphore] = {}
        self._lanes = KeyedLock[Lane]()

    @asynccontextmanager
    async def turn(
        self,
        lane: Lane,
        *,
        others: Callable[[], Awaitable[None]] | None = None,
        waits: Callable[[str], object] = lambda _: None,
    ) -> AsyncIterator[Place]:
        """Wait for the lane and a place, and keep both for the length of the block, or until the place is left.

        Args:
            lane: Whose turn it is.
            others: Waits until no order of another broker is in the way; of this broker's orders one a lane at a time.
            waits: Hears what is waited for: `progress.LANE`, then `progress.TURN`.
        """
        waits(LANE)
        async with self._lanes.holding(lane):
            if others is not None:
                await others()
            waits(TURN)
            async with self.place() as place:
                yield place

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """Wait for a place alone: for an order that has its lane already, among the orders of all brokers."""
        await self._places.acquire()
        place = Place(self._places)
        try:
            yield place
        finally:
            place.leave()

    @asynccontextmanager
    async def asking(self, lane: Lane) -> AsyncIterator[None]:
        """Wait until few enough ask the lane's issuer for a new order; whether one may is to be looked at in the block.

        A refusal must be held (`holds`) before anything is awaited after the block: the next one begins then.
        """
        async with self._asking.setdefault(lane.issuer, asyncio.Semaphore(self._most_asking)):
            yield
