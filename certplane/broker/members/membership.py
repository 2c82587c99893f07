"""Keeping this broker's lease.

A lease is for 20 seconds by the *database's* clock, and is renewed every 5. The broker gives it up by its own clocks
two seconds earlier, counted from before it asked: whatever the answer took, and however the machine was stopped
meanwhile, it has given up before another broker may take its orders. From then on it starts no step of an order and
opens none. When the lease stands again, all that it held is taken anew (`issuance.dispatch`), since others may have
taken some.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.members.known import KnownMembers
from certplane.broker.members.model import Member
from certplane.broker.members.ports import Lease, MemberStore
from certplane.broker.members.skew import ClockSkew, skew_of
from certplane.broker.ports import Meter
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

logger = logging.getLogger(__name__)

SPAN: Final = timedelta(seconds=20)
"""How long what a killed broker held waits for its heir."""
_RENEWAL: Final = timedelta(seconds=5)
_MARGIN: Final = timedelta(seconds=2)
"""Between giving up and the lease's end: a step that was just begun ends meanwhile, and clocks run at unequal speed."""
_LOOK: Final = timedelta(seconds=1)


class Membership(Lease):
    """This broker among others, while `run` runs."""

    def __init__(self, store: MemberStore, me: Callable[[], Member], clock: Clock, meter: Meter) -> None:
        """No lease yet; `me` is what this broker says of itself, asked at each renewal."""
        self._store = store
        self._me = me
        self._clock = clock
        self._meter = meter
        self.skew = ClockSkew(meter)
        self.known = KnownMembers(store, me, self.stands)
        self._unread = False
        """Whether members were removed by this broker itself, of which it hears nothing from the change feed."""
        self._renewed: tuple[float, datetime] | None = None
        """When the renewal that stands was asked for, by both clocks: one may be set, the other may stand still."""
        self._term = 0
        self._said_lost = False
        self._failing = False

    @property
    @override
    def shared(self) -> bool:
        return True

    @override
    def stands(self) -> bool:
        if self._renewed is None:
            return False
        monotonic, time = self._renewed
        past = max(timedelta(seconds=self._clock.monotonic() - monotonic), self._clock.now() - time)
        return past < SPAN - _MARGIN

    @property
    @override
    def term(self) -> int:
        return self._term

    async def join(self) -> None:
        """Take the first lease.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        asked = self._clock.monotonic(), self._clock.now()
        renewal = await self._store.renew(replace(self._me(), clock_skew=self.skew.current), SPAN)
        if self._renewed is not None and not (renewal.stood and self.stands()):
            # What the database found counts only if it was durable in time: others see a lease that is renewed once
            # that is committed, and a commit may wait (for a standby, a disk). And the lease that stood may be that of
            # a try before, which was written and whose answer was lost.
            self._term += 1
            if not self._said_lost:
                logger.warning("this broker's lease had ended before it was renewed; what it ran is taken anew")
        self._renewed = asked
        self.skew.note(skew_of(asked[1], self._clock.now(), renewal.time))
        self._unread = self._unread or renewal.removed
        self._meter.level(metrics.LEASE, 1)

    async def run(self) -> None:
        """Renew on and on, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renew_on())
            group.create_task(self._watch())

    async def leave(self) -> None:
        """Give the lease back: what is left of this broker's orders, others take at once. Never raises."""
        self._renewed = None
        try:
            await self._store.leave()
        except RefusalError as error:
            logger.warning("the lease could not be given back and will end by itself: %s", error)

    async def _renew_on(self) -> None:
        while True:
            await self._clock.sleep(_RENEWAL)
            try:
                await self.join()
            except RefusalError as error:
                if not self._failing:
                    logger.warning("this broker's lease could not be renewed; will retry: %s", error)
                self._failing = True
            else:
                self._failing = False
                await self._tell()

    async def _tell(self) -> None:
        """Let whoever compares the brokers see what this one says of itself now, and who has gone."""
        if not self._unread:
            self.known.tell()
            return
        with contextlib.suppress(RefusalError):  # the next renewal tries again
            await self.known.read()
            self._unread = False

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(_LOOK)
            lost = not self.stands()
            self._meter.level(metrics.LEASE, 0 if lost else 1)
            if lost != self._said_lost:
                self._said_lost = lost
                if lost:
                    logger.error("this broker has lost its lease: it runs and opens no order until it has one again")
                else:
                    logger.warning("this broker has its lease again")
