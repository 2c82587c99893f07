"""Keeps what is known: what the watch tells, and what it doesn't, for which the broker is asked every few seconds."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from google.protobuf.message import Message
from typing_extensions import override

from certplane.ctl.watch.feed import MOST, Feed, FleetSource, WatchDisplay, WatchSource
from certplane.ctl.watch.known import Answer, Known
from certplane.ctl.watch.page import Page, Question, Topic, questions
from certplane.ctl.watch.streams import Streams
from certplane.errors import OperationError, RefusalError
from certplane.runtime.clock import Clock
from certplane.v1 import audit_pb2, order_pb2, renewal_pb2

_EACH: Final = timedelta(seconds=5)
"""Between two questions."""
_LEAST: Final = 0.2
"""Seconds between two rounds of questions, however fast pages are opened."""
_SHARE: Final = 25
"""A broker that needs long for its answers is asked more seldom: for a 25th of the time."""


class Listener(WatchDisplay):
    """Keeps what is known of a watch; `changed` is called after each message, `begun` when the fleet is complete."""

    def __init__(
        self, known: Known, now: Callable[[], datetime], changed: Callable[[], None], begun: Callable[[], None]
    ) -> None:
        self._known = known
        self._now = now
        self._changed = changed
        self._begun = begun

    @override
    def show(self, message: renewal_pb2.WatchRenewalsResponse) -> None:
        known = self._known
        known.fleet.apply(message)
        known.heard, known.trouble, known.again = self._now(), "", None
        known.changes += 1
        if message.HasField("snapshot_end"):
            self._begun()
        self._changed()

    @override
    def interrupted(self, text: str, again: timedelta) -> None:
        self._known.fleet.begin_again()
        self._known.trouble, self._known.again = text, self._now() + again
        self._changed()


class Polling:
    """Asks while the watch runs. `wake` is set to ask at once; `page` says what is open; `changed` hears of answers."""

    def __init__(
        self,
        feed: Feed,
        known: Known,
        clock: Clock,
        wake: asyncio.Event,
        *,
        page: Callable[[], Page],
        changed: Callable[[], None],
    ) -> None:
        self._feed = feed
        self._known = known
        self._clock = clock
        self._page = page
        self._changed = changed
        self._wake = wake
        self._due = -math.inf
        """When the summary is asked for again, on the monotonic clock."""

    def hurry(self) -> None:
        """Ask everything now."""
        self._due = -math.inf
        self._wake.set()

    async def run(self) -> None:
        """Ask until cancelled. While the watch is interrupted nothing is asked: what was known stays."""
        streams = Streams(self._known, self._changed)
        try:
            await self._rounds(streams)
        finally:
            await streams.only(None, ())

    async def _rounds(self, streams: Streams) -> None:
        while True:
            self._wake.clear()
            begun = self._clock.monotonic()
            source, wanted = self._feed.source, questions(self._page())
            await streams.only(source, (each for each in wanted if each.topic is Topic.ROLLOUT))
            if source is not None and self._known.fleet.complete:
                for question in wanted:
                    if question.topic is not Topic.ROLLOUT:
                        await self._ask(source, question)
                if begun >= self._due:  # somebody who leafs through pages asks for these alone
                    await self._summarize(source)
                    self._due = begun + self._pause(begun)
            pause = self._pause(begun)
            await asyncio.sleep(_LEAST)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    def _pause(self, begun: float) -> float:
        return max(_EACH.total_seconds(), (self._clock.monotonic() - begun) * _SHARE)

    async def _summarize(self, source: FleetSource) -> None:
        try:
            self._known.summary = await source.summarize()
            self._known.heard, self._known.summary_trouble = self._clock.now(), ""
        except (RefusalError, OperationError) as error:
            self._known.summary_trouble = f"no newer summary: {error}" if self._known.summary else str(error)
        self._changed()

    async def _ask(self, source: WatchSource, question: Question) -> None:
        before = self._known.answers.get(question, Answer())
        try:
            answer = Answer(tuple(await _answer(source, question)))
            self._known.heard = self._clock.now()
        except (RefusalError, OperationError) as error:
            answer = Answer(before.messages, str(error))
        self._known.keep(question, answer)
        self._changed()


async def _answer(source: WatchSource, question: Question) -> Sequence[Message]:
    identities = [question.host] if question.host else []
    profiles = [question.profile] if question.profile else []
    match question.topic:
        case Topic.HOST:
            return [await source.host(question.host)]
        case Topic.EVENTS:
            events = audit_pb2.AuditFilter(identities=identities, profiles=profiles)
            return await source.last_events(events, MOST)
        case Topic.ORDERS:
            orders = order_pb2.OrderFilter(identities=identities, profiles=profiles, open_only=not identities)
            return await source.last_orders(orders, MOST)
        case Topic.ROLLOUTS:
            return await source.last_rollouts(MOST)
        case Topic.INCIDENTS:
            return await source.last_incidents(MOST)
        case Topic.BUDGET:
            return [await source.budget()]
        case Topic.ROLLOUT:
            raise AssertionError("rollouts are heard (`streams`)")
