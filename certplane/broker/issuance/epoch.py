"""The retry epoch: what tells those who wait that what was refused, or failed, may succeed now.

It is another one after each start, and whenever something may have been mended: an operator had the files read again, a
secret is another one, an issuer or DNS that failed works. Hosts hear of it on their streams and ask again for what
waits; a failed order of another epoch answers for nothing (`outcome.still_answers`). A time that the CA named stands.

Moved at most once in half a minute, however often something changes: each time, every host that waits asks.

Brokers that share a database have one epoch (`share`): any of them moves it, all hear of it, and a host that changes
its broker isn't told of another. The half minute is the fleet's then, by the database's clock, and a broker that starts
where others live takes theirs. What moved the epoch after a reason to move it had come up was the answer to that too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Protocol

from typing_extensions import override

from certplane.broker.issuance.waiting import undisturbed, within
from certplane.broker.ports import ChangeFollower
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

logger = logging.getLogger(__name__)

_SHORTEST: Final = timedelta(seconds=30)
_AGAIN: Final = timedelta(seconds=1)
"""After a store that could not be written."""


class EpochInForce(NamedTuple):
    """A fleet's epoch, and how long it has been that, by the database's clock."""

    name: str
    age: timedelta


class EpochStore(Protocol):
    """The retry epoch of brokers that share a database; the rules of `certplane.broker.ports` hold here."""

    async def begin(self, fresh: str) -> str:
        """The epoch of a broker that starts: `fresh`, durable, if no other one lives.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def current(self) -> str:
        """The epoch; empty if there is none.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def move(self, fresh: str, rest: timedelta) -> EpochInForce:
        """Make `fresh` the epoch, durable, unless the one before is younger than `rest`; what is in force after that.

        Raises:
            RefusalError: STORE_UNAVAILABLE; whether it was moved isn't known.
        """
        ...


class _Reason(NamedTuple):
    """Why the epoch is to move, since when (monotonic), and whether a person waits for it."""

    why: str
    time: float
    at_once: bool


class RetryEpoch(ChangeFollower):
    """The epoch as this process knows it. For the event loop's thread."""

    def __init__(self, clock: Clock, new_id: Callable[[], str]) -> None:
        """A new one; `new_id` names it, never the same twice, printable ASCII of at most 64 characters."""
        self._clock = clock
        self._new_id = new_id
        self._store: EpochStore | None = None
        self._current = new_id()
        self._move_time = clock.monotonic()
        self._moves = 0
        self._reason: _Reason | None = None
        self._wake = asyncio.Event()
        self._failing = False

    @property
    def current(self) -> str:
        """The epoch; of one that isn't shared, a move that had to wait is made when it is looked at."""
        if self._store is None and self._reason is not None:
            rest = timedelta() if self._reason.at_once else _SHORTEST
            if self._clock.monotonic() - self._move_time >= rest.total_seconds():
                self._take(self._new_id(), self._reason.why)
                self._reason = None
        return self._current

    def move(self, why: str) -> None:
        """Something may have been mended, as `why` says; soon, if it has moved just now."""
        self._want(why, at_once=False)

    def ask_again(self, why: str) -> None:
        """A person wants it now."""
        self._want(why, at_once=True)

    async def share(self, store: EpochStore) -> None:
        """Have one epoch with the other brokers of a database from now on, while `run` runs.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        self._current = await store.begin(self._current)
        self._store = store

    async def run(self) -> None:
        """Move the shared epoch whenever there is a reason, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (reason := self._reason) is not None:
                await within(self._clock, await self._move_shared(reason), self._wake)
                self._wake.clear()

    @override
    async def changed(self, keys: Collection[str]) -> None:
        await self._read()

    @override
    async def reread(self, since: datetime) -> None:
        await self._read()

    def _want(self, why: str, *, at_once: bool) -> None:
        before = self._reason
        if before is not None and not at_once:
            why, at_once = before.why, before.at_once
        self._reason = _Reason(why, self._clock.monotonic(), at_once)
        if before is None or at_once:
            self._wake.set()
        _ = self.current

    async def _move_shared(self, reason: _Reason) -> timedelta:
        """Move it, or find that it has moved since; how long to wait if it may not yet."""
        assert self._store is not None
        waited = timedelta(seconds=self._clock.monotonic() - reason.time)
        try:
            found = await self._store.move(self._new_id(), timedelta() if reason.at_once else _SHORTEST)
        except RefusalError as error:
            if not self._failing:
                logger.warning("could not tell that requests may be retried (%s); will retry: %s", reason.why, error)
            self._failing = True
            return _AGAIN
        self._failing = False
        self._take(found.name, reason.why if not found.age else "another broker says so")
        if found.age > waited:
            return _SHORTEST - found.age
        if self._reason is reason:
            self._reason = None
        return timedelta()

    async def _read(self) -> None:
        """Take what is in force."""
        assert self._store is not None
        found = await undisturbed(self._store.current, lambda: self._moves)
        if not found:  # the database is an older one: it was restored
            await self._store.move(self._current, timedelta())
            return
        self._take(found, "another broker says so")

    def _take(self, epoch: str, why: str) -> None:
        self._move_time = self._clock.monotonic()
        self._moves += 1
        if epoch == self._current:
            return
        self._current = epoch
        logger.info(
            "refused and failed requests may be retried now: %s", why, extra={"fields": {"retry_epoch": self._current}}
        )
