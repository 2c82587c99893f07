"""Whose turn it is at the CA.

Rules:

- One ACME order at a time per lane (issuer, CA profile, name set): a CA may hand back the pending order of the same
  names whatever the key (Boulder does), and two brokers' orders would then share one. Who comes first goes first.
- At most so many orders at once over all lanes. A lane that waits takes none of these places, and an order that nobody
  but the CA can end, whenever that is, gives its place back: it must not hold up other names.
- Of these, only a few ask an issuer for a new order at the same time, so that a limit that one of them meets is known
  to the rest before they have asked.
- When the CA says that something has to wait (a rate limit), nobody asks for that before, and everybody else does: a
  limit of one domain holds up no other, one of the account holds up all.

Holds live in memory: after a restart the first order that meets the limit is told of it again. One whose length is a
guess of ours (the CA wants something of a person) is given up with the retry epoch, since it may be mended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from certplane.broker.issuance.outcome import is_told
from certplane.broker.model import Scope, ScopeKind
from certplane.errors import Refusal
from certplane.runtime.keyed_lock import KeyedLock

_LONGEST_HOLD: Final = timedelta(days=31)
"""No CA's limit lasts longer (the longest known window is a week): the clock was set back since."""


class Lane(NamedTuple):
    """What a CA may take for the same order; an issuer has one account."""

    issuer: str
    acme_profile: str
    dns_names: tuple[str, ...]


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


class _Hold(NamedTuple):
    until: datetime
    refusal: Refusal
    epoch: str


class OrderQueue:
    """Turns, given in the order in which they were asked for."""

    def __init__(self, parallel: int, asking: int = 4, *, epoch: Callable[[], str] = str) -> None:
        """Make it.

        Args:
            parallel: turns at once.
            asking: of these, how many ask one issuer for a new order at once.
            epoch: the retry epoch.
        """
        self._epoch = epoch
        self._places = asyncio.Semaphore(parallel)
        self._most_asking = asking
        self._asking: dict[str, asyncio.Semaphore] = {}
        self._lanes = KeyedLock[Lane]()
        self._holds: dict[tuple[str, Scope, tuple[str, ...]], _Hold] = {}
        """By issuer, scope, and for a name set its names."""

    @asynccontextmanager
    async def turn(self, lane: Lane) -> AsyncIterator[Place]:
        """Wait for the lane and a place, and keep both for the length of the block, or until the place is left."""
        async with self._lanes.holding(lane):
            await self._places.acquire()
            place = Place(self._places)
            try:
                yield place
            finally:
                place.leave()

    @asynccontextmanager
    async def asking(self, lane: Lane) -> AsyncIterator[None]:
        """Wait until few enough ask the lane's issuer for a new order; whether one may is to be looked at in the block.

        A refusal must be held (`hold`) before anything is awaited after the block: the next one begins then.
        """
        async with self._asking.setdefault(lane.issuer, asyncio.Semaphore(self._most_asking)):
            yield

    def hold(self, lane: Lane, scopes: Iterable[Scope], until: datetime, refusal: Refusal) -> bool:
        """Nobody should ask the issuer of `lane` for what falls under `scopes` before `until`.

        Args:
            lane: whose order was refused.
            scopes: what the refusal is about.
            until: when it ends; an earlier end than one that is known changes nothing.
            refusal: what the CA said.

        Returns:
            Whether anything is held now, or for longer, that was not before.
        """
        news = False
        for scope in scopes:
            names = lane.dns_names if scope.kind is ScopeKind.NAME_SET else ()
            known = self._holds.get((lane.issuer, scope, names))
            if known is None or known.until < until:
                self._holds[lane.issuer, scope, names] = _Hold(until, refusal, self._epoch())
                news = True
        return news

    def held(self, lane: Lane, now: datetime) -> tuple[datetime, Refusal] | None:
        """Until when, and why, `lane` must not ask the CA; None if it may."""
        epoch = self._epoch()
        self._holds = {
            key: hold
            for key, hold in self._holds.items()
            if now < hold.until < now + _LONGEST_HOLD and (hold.epoch == epoch or is_told(hold.refusal))
        }
        covering = [
            hold
            for (issuer, scope, names), hold in self._holds.items()
            if issuer == lane.issuer and scope.covers(lane.dns_names, names)
        ]
        if not covering:
            return None
        longest = max(covering, key=lambda hold: hold.until)
        return longest.until, longest.refusal
