"""`IssuingProcess`: keeps one child running, and makes calls of the one that is there.

Rules it keeps:

- A child that ended is started again after a pause that grows while children end soon, and is counted as out while
  there is none. Calls wait for the next one, but not for long; calls under way are cut off.
- A child that gives no sign of life is killed. Beats are counted, not time: a broker that was held up itself, or a
  machine that slept, kills nobody.
- One that has grown is replaced: the next one takes all new calls, the old one ends when its calls have, and is watched
  until then. There is one old one at most. One that has grown beyond measure is killed.
- Two children never write DNS records at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import msgspec
from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.issuing import messages as m
from certplane.broker.issuing.accounts import AccountAnswers
from certplane.broker.issuing.child import Child, ChildEndedError, not_started
from certplane.broker.issuing.remote import Calls
from certplane.broker.ports import Meter
from certplane.errors import ConfigurationError
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock, SystemClock

R = TypeVar("R")
_logger = logging.getLogger("certplane.broker")

_BEAT: Final = timedelta(seconds=3)
_MOST_UNANSWERED: Final = 5
"""Beats without an answer, fifteen seconds: more than anything in the child holds its loop, less than orders notice."""

_START: Final = timedelta(seconds=60)
"""For a child to be ready: its imports on a slow and busy machine."""

_RESTART: Final = Backoff(timedelta(milliseconds=200), timedelta(seconds=30), floor=timedelta(milliseconds=100))
_STABLE: Final = timedelta(minutes=1)
"""A child that lasted for as long counts as well: the next pause is the first one again."""

_FOR_A_CHILD: Final = timedelta(seconds=10)
"""How long a call waits for a child to be there: for a restart, not for a mend."""

_LARGE: Final = 512 * 1024 * 1024
_TOO_LARGE: Final = 1024 * 1024 * 1024
"""Octets of a child's memory: at the first another one takes its place, at the second it is killed. With two hundred
orders under way it has about 100 MiB."""

_RETIRING: Final = timedelta(minutes=10)
"""For the calls of a child that was replaced: `IssuanceSettings.order_time_limit`, which no call outlasts."""

_CLOSE: Final = timedelta(seconds=5)
_LATE: Final = timedelta(seconds=15)
"""After a call's timeout: an answer that hasn't come by then got lost."""

_FAILPOINTS: Final = "CERTPLANE_FAILPOINTS"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a child may take; tests have shorter ones."""

    beat: timedelta = _BEAT
    most_unanswered: int = _MOST_UNANSWERED
    start: timedelta = _START
    restart: Backoff = _RESTART
    stable: timedelta = _STABLE
    for_a_child: timedelta = _FOR_A_CHILD
    large: int = _LARGE
    too_large: int = _TOO_LARGE
    retiring: timedelta = _RETIRING


class IssuingProcess(Calls):
    """The child, whichever it is just now. For the event loop's thread."""

    def __init__(
        self,
        begin: m.Begin,
        *,
        meter: Meter,
        secret_changed: Callable[[str], None],
        started_again: Callable[[], None],
        accounts: AccountAnswers | None = None,
        environment: Mapping[str, str] | None = None,
        bounds: Bounds | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            begin: What each child begins with.
            meter: Shows whether there is one, its memory, and calls under way.
            secret_changed: Hears the names of secrets that are others now.
            started_again: Called when a child has taken another's place: what failed may succeed.
            accounts: Answers what children ask of accounts.
            environment: The children's; this process's own by default.
            bounds: What a child may take.
            clock: For pauses: the life of a process is measured by the machine's clock, whatever the broker's is.
            rng: For the pauses' jitter.
        """
        self._begin, self._meter = begin, meter
        self._secret_changed, self._started_again = secret_changed, started_again
        self.accounts = accounts or AccountAnswers()
        self._environment = dict(os.environ if environment is None else environment)
        self._bounds = bounds or Bounds()
        self._clock = clock or SystemClock()
        self._rng = rng or random.SystemRandom()
        self._child: Child | None = None
        """The one that is watched; it may have ended a moment ago."""
        self._there = asyncio.Event()
        """Whether it takes calls."""
        self._left = self._clock.monotonic()
        """Since when there is none."""
        self._old: dict[Child, asyncio.Task[None]] = {}
        self._calls = 0
        meter.watch(metrics.ISSUING_CALLS, lambda: self._calls)
        self.in_trouble: Callable[[], bool] = lambda: False
        """Whether something has failed for which a secret may be to blame."""

    @property
    def up(self) -> bool:
        """Whether there is a child that takes calls."""
        return self._there.is_set()

    @property
    def out(self) -> bool:
        """Whether there has been none for longer than calls wait for one."""
        return not self.up and self._clock.monotonic() - self._left > self._bounds.for_a_child.total_seconds()

    @property
    def pid(self) -> int:
        """The child's, 0 without one."""
        return self._child.pid if self._child is not None else 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[dict[str, str]]]:
        """Keep a child running beside the block.

        The task that is given ends when the first one is ready, with the SHA-256 of each account's public key by
        issuer. It raises ConfigurationError if the adapters can't be made, OperationError if no child can be started.
        """
        loop = asyncio.get_running_loop()
        starting = loop.create_task(self._first(), name="issuing process: start")
        keeping = loop.create_task(self._keep(starting), name="issuing process")
        keeping.add_done_callback(_report_end)
        try:
            yield starting
        finally:
            for task in (starting, keeping, *self._old.values()):
                task.cancel()
            await asyncio.wait([starting, keeping, *self._old.values()])
            await self._close_all()

    @override
    async def ask(self, call: m.Call[R], tell: Callable[[str], object] | None = None) -> R:
        if not self.up:
            began = self._clock.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._bounds.for_a_child, call.timeout).total_seconds()):
                    await self._there.wait()
            waited = timedelta(seconds=self._clock.monotonic() - began)
            call = msgspec.structs.replace(call, timeout=max(call.timeout - waited, timedelta()))
        self._calls += 1
        try:
            async with asyncio.timeout((call.timeout + _LATE).total_seconds()):
                while call.writes_dns and (writing := [child for child in self._old if child.writes]):
                    await writing[0].quiet(writes_alone=True)
                # Chosen after that wait: the child of before may be an old one by now, or none.
                if (child := self._child) is None or not self.up:
                    raise ChildEndedError("there is none")
                return await child.ask(call, tell)
        except TimeoutError as error:
            raise ChildEndedError("it gave no answer in time") from error
        finally:
            self._calls -= 1

    def set_level(self, level: str) -> None:
        """Log at this level from now on."""
        self._begin = m.Begin(self._begin.file, self._begin.text, level)
        for child in (self._child, *self._old):
            if child is not None:
                child.set_level(level)

    async def _first(self) -> dict[str, str]:
        await self.accounts.until_open()
        child = Child(self._secret_changed, self.accounts)
        try:
            ready = await child.start(self._begin, self._environment, self._bounds.start)
        except ChildEndedError as error:
            raise not_started(child.how or str(error)) from error
        # What a failpoint did once it doesn't do to the child that takes this one's place.
        self._environment.pop(_FAILPOINTS, None)
        self._put(child)
        return ready.accounts

    async def _keep(self, starting: asyncio.Task[dict[str, str]]) -> None:
        """Keep one there until cancelled, from the first one on."""
        with contextlib.suppress(Exception):  # whoever waits for the start is told
            await asyncio.shield(starting)
        child, soon, not_before = self._child, 0, 0.0
        while child is not None:
            began = self._clock.monotonic()
            if await self._watch(child, may_be_replaced=not_before):
                child = await self._replace(child) or child
                not_before = self._clock.monotonic() + self._bounds.stable.total_seconds()
                continue
            self._put(None)
            how = await child.reap()
            soon = 0 if self._clock.monotonic() - began >= self._bounds.stable.total_seconds() else soon + 1
            _logger.error("the issuing process has ended and is started again: %s", how)
            child = await self._again(soon)

    async def _again(self, failures: int) -> Child:
        """Start until one is ready."""
        while True:
            await self._clock.sleep(self._bounds.restart.wait(max(failures, 1), self._rng))
            if (child := await self._started()) is not None:
                self._put(child)
                self._meter.count(metrics.ISSUING_RESTARTS, reason="ended")
                self._started_again()
                return child
            failures += 1

    async def _started(self) -> Child | None:
        child = Child(self._secret_changed, self.accounts)
        try:
            await child.start(self._begin, self._environment, self._bounds.start)
        except ChildEndedError:
            _logger.error("the issuing process can't be started, no certificate is issued: %s", child.how)  # noqa: TRY400 - an event, no fault here
        except ConfigurationError as error:
            for problem in error.problems:
                _logger.error("the issuing process can't be started, no certificate is issued: %s", problem)  # noqa: TRY400 - as above
        else:
            _logger.info("the issuing process is ready", extra={"fields": {"pid": child.pid}})
            return child
        return None

    async def _watch(
        self, child: Child, *, may_be_replaced: float = math.inf, beside: asyncio.Future[Any] | None = None
    ) -> bool:
        """Ask for signs of life until the child has ended, or `beside` has; True if it has grown and is to be replaced.

        The last not before that moment (monotonic): if no other one can be started, this one goes on for a while.
        """
        bounds = self._bounds
        ended = asyncio.ensure_future(child.ended.wait())
        until = {ended} if beside is None else {ended, beside}
        try:
            while not any(future.done() for future in until) and not child.ended.is_set():
                if child is self._child:
                    self._meter.level(metrics.ISSUING_MEMORY, child.resident)
                if child.unanswered >= bounds.most_unanswered:
                    child.kill(f"it gave no sign of life for {bounds.most_unanswered} beats and was killed")
                elif child.resident > bounds.too_large:
                    child.kill(f"it had {child.resident >> 20} MiB of memory and was killed")
                elif child.resident > bounds.large and not self._old and self._clock.monotonic() >= may_be_replaced:
                    return True
                child.beat(in_trouble=self.in_trouble())
                await asyncio.wait(until, timeout=bounds.beat.total_seconds(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        return False

    async def _replace(self, old: Child) -> Child | None:
        """Have another child take the place of one that has grown, which is watched until it is gone."""
        _logger.warning("the issuing process has %d MiB of memory and is replaced", old.resident >> 20)
        async with asyncio.TaskGroup() as both:
            starting = both.create_task(self._started(), name="issuing process: another one")
            await self._watch(old, beside=starting)
        child = starting.result()
        if child is not None:
            self._old[old] = asyncio.create_task(self._retire(old), name="issuing process: the old one")
            self._put(child)
            self._meter.count(metrics.ISSUING_RESTARTS, reason="memory")
            self._started_again()
        return child

    async def _retire(self, child: Child) -> None:
        """Let the calls of a child that was replaced end, then the child."""
        async with asyncio.TaskGroup() as both:
            quiet = both.create_task(self._quiet(child), name="issuing process: calls of the old one")
            await self._watch(child, beside=quiet)
        lost = child.ended.is_set()
        how = await child.close(_CLOSE)
        if lost:
            _logger.error("the issuing process that was replaced has ended before its calls: %s", how)
        del self._old[child]

    async def _quiet(self, child: Child) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._bounds.retiring.total_seconds()):
                await child.quiet()

    def _put(self, child: Child | None) -> None:
        self._child = child
        if child is None or child.ended.is_set():
            self._note_gone()
            return
        child.on_end = self._ended
        child.set_level(self._begin.level)  # another one may have come into force while it started
        self._there.set()
        self._meter.level(metrics.ISSUING_UP, 1)

    def _ended(self, child: Child) -> None:
        """Calls wait for the next one from now on, even where the next one is being started already (`_replace`)."""
        if child is self._child:
            self._note_gone()

    def _note_gone(self) -> None:
        if self._there.is_set():
            self._left = self._clock.monotonic()
        self._there.clear()
        self._meter.level(metrics.ISSUING_UP, 0)

    async def _close_all(self) -> None:
        children = [child for child in (self._child, *self._old) if child is not None]
        self._put(None)
        await asyncio.gather(*(child.close(_CLOSE) for child in children))


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        message = "the watch of the issuing process has ended unexpectedly; restart the broker"
        _logger.critical(message, exc_info=task.exception())
