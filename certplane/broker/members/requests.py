"""What an operator asks of brokers through one of them: to read their files again, to go out of service and back.

Brokers don't speak to each other: what is asked is a row for the broker that it is asked of, which the change feed
tells of, and so is the answer. A broker that has gone, or is of a release that doesn't know such rows, gives none;
whoever waits says so. Rows stay no longer than somebody may wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

from typing_extensions import override

from certplane.broker.ports import ChangeFollower
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

logger = logging.getLogger(__name__)

PATIENCE: Final = timedelta(seconds=60)
"""For an answer: the largest policy takes some."""
STALE: Final = timedelta(minutes=5)
"""Nobody waits for the answer any more."""
_LOOK: Final = timedelta(seconds=2)
"""Without news."""


class BrokerCommand(StrEnum):
    """What can be asked; values are stored."""

    RELOAD = "reload"
    DRAIN = "drain"
    SERVE = "serve"


@dataclass(frozen=True, slots=True)
class BrokerRequest:
    """What is asked of one broker.

    Attributes:
        request_key: New with each.
        broker_id: Of whom.
        command: What.
        asked_by: Who asks, for people.
        confirmed: Whether it is meant that a file takes much away.
        identity: The operator's.
        request_id: Of the operator's call.
        reason: Why, for people.
        create_time: When it was asked.
    """

    request_key: str
    broker_id: str
    command: BrokerCommand
    asked_by: str
    confirmed: bool
    identity: str
    request_id: str
    reason: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class BrokerAnswer:
    """What came of it.

    Attributes:
        done: Whether it was done.
        lines: What was done, and what was refused and why, for people.
        confirmation_required: Whether something was refused that could have been confirmed.
        streams: Streams of hosts that it has.
        orders: Orders that it runs.
        draining: Whether it drains now.
    """

    done: bool
    lines: tuple[str, ...] = ()
    confirmation_required: bool = False
    streams: int = 0
    orders: int = 0
    draining: bool = False


class BrokerRequestStore(Protocol):
    """Requests in the database; the rules of `certplane.broker.ports` hold here.

    Brokers hear of what is asked of them, and of answers, by `ChangeKind.BROKER_REQUEST`: of the first the key is the
    broker, of the second the request.
    """

    async def ask(self, requests: Sequence[BrokerRequest]) -> None:
        """Write them, durable; those that are `STALE` are removed on the way.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def asked_of(self, broker_id: str) -> Sequence[BrokerRequest]:
        """What is asked of a broker and not answered, the oldest first.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def answer(self, request_key: str, answer: BrokerAnswer) -> None:
        """Write an answer, durable; the first one stays.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def answers(self, request_keys: Collection[str]) -> Mapping[str, BrokerAnswer]:
        """Those that there are.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


CarryOut = Callable[[BrokerRequest], Awaitable[BrokerAnswer]]


class BrokerRequests(ChangeFollower):
    """Asks other brokers, and carries out what they ask of this one. For the event loop's thread."""

    def __init__(self, store: BrokerRequestStore, broker_id: str, carry_out: CarryOut, clock: Clock) -> None:
        self._store = store
        self._broker_id = broker_id
        self._carry_out = carry_out
        self._clock = clock
        self._taken: dict[str, asyncio.Task[None]] = {}
        """What was asked of this broker lately, so that what is told twice is done once."""
        self._news = asyncio.Event()

    async def ask(
        self, requests: Sequence[BrokerRequest], living: Callable[[], Awaitable[Collection[str]]]
    ) -> Mapping[str, BrokerAnswer]:
        """The answers by broker; those that gave none within `PATIENCE`, or aren't among the `living`, are left out.

        What is asked of this broker is done here, the database or not.

        Raises:
            RefusalError: STORE_UNAVAILABLE: nothing was asked of the others.
        """
        others = {each.request_key: each.broker_id for each in requests if each.broker_id != self._broker_id}
        if others:
            await self._store.ask([each for each in requests if each.request_key in others])
        own = [await self._carry_out(each) for each in requests if each.broker_id == self._broker_id]
        found = dict.fromkeys([self._broker_id], own[0]) if own else {}
        until = self._clock.monotonic() + PATIENCE.total_seconds()
        while others:
            self._news.clear()
            for key, answer in (await self._answers(others)).items():
                found[others.pop(key)] = answer
            with contextlib.suppress(RefusalError):  # else the next look says who has gone
                there = await living()
                others = {key: broker_id for key, broker_id in others.items() if broker_id in there}
            if not others or self._clock.monotonic() >= until:
                break
            await self._some_news()
        return found

    async def _answers(self, keys: Collection[str]) -> Mapping[str, BrokerAnswer]:
        try:
            return await self._store.answers(keys)
        except RefusalError:  # the next look may find them
            return {}

    async def _some_news(self) -> None:
        sleep, news = (asyncio.ensure_future(wait) for wait in (self._clock.sleep(_LOOK), self._news.wait()))
        try:
            await asyncio.wait({sleep, news}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            news.cancel()

    @override
    async def changed(self, keys: Collection[str]) -> None:
        self._news.set()
        if self._broker_id in keys:
            await self._take()

    @override
    async def reread(self, since: datetime) -> None:
        self._news.set()
        await self._take()

    async def _take(self) -> None:
        now = self._clock.now()
        asked = [each for each in await self._store.asked_of(self._broker_id) if now - each.create_time < STALE]
        self._taken = {key: task for key, task in self._taken.items() if not task.done()}
        for request in asked:
            if request.request_key not in self._taken:
                task = asyncio.create_task(self._do(request), name=f"{request.command} for {request.asked_by}")
                self._taken[request.request_key] = task

    async def _do(self, request: BrokerRequest) -> None:
        try:
            answer = await self._carry_out(request)
        except Exception:
            logger.exception(
                "what an operator asked of this broker failed", extra={"fields": {"asked": request.command}}
            )
            answer = BrokerAnswer(done=False, lines=("failed on an unexpected error; this broker's log has it",))
        try:
            await self._store.answer(request.request_key, answer)
        except RefusalError as error:
            fields = {"asked": request.command, "by": request.asked_by}
            logger.warning("an answer to an operator could not be stored: %s", error, extra={"fields": fields})

    async def end(self) -> None:
        """Let what is being carried out go: the broker stops."""
        for task in self._taken.values():
            task.cancel()
        if self._taken:
            await asyncio.wait(set(self._taken.values()))
