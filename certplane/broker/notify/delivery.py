"""Takes messages out of the outbox and delivers them: one at a time for each notifier, oldest first.

An attempt is counted in the database before anything is sent, and a message leaves it as soon as the receiver has said
that it has it. So a broker that is killed in between has another one try again, after the time of the attempt: what was
answered but not noted yet comes twice, with the same id; nothing else does.

A receiver that is out of reach, or says so (5xx of HTTP, 4xx of SMTP), holds up all messages of the notifier; one that
refuses a message holds up that one alone. What isn't delivered within `KEEP` is given up: the log says so, level ERROR.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from certplane.broker import metrics
from certplane.broker.notify.model import Message
from certplane.broker.notify.ports import NotDeliveredError, Notifier, Outbox, Waiting
from certplane.broker.notify.text import subject
from certplane.broker.ports import Meter
from certplane.errors import RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock
from certplane.runtime.failpoints import failpoint
from certplane.runtime.text import printable

_logger = logging.getLogger("certplane.broker.notify")

KEEP: Final = timedelta(days=3)
"""For a receiver to come back: a weekend. Later nobody wants the message; what is still wrong is told anew."""
_ATTEMPT: Final = timedelta(minutes=2)
"""Longer than any attempt may take (`timeout` is at most a minute): until then no other broker begins one."""
_BACKOFF: Final = Backoff(timedelta(seconds=10), timedelta(minutes=15), floor=timedelta(seconds=5))
_LONGEST_PATIENCE: Final = timedelta(hours=1)
"""However long a receiver asks to wait."""
_LOOK: Final = timedelta(seconds=15)
"""Between looks at the outbox when nothing is known to be due: `wake` is how new messages are heard of."""
_READ: Final = 128
"""More than may wait (`planning.ROOM`), mostly."""
_ERROR: Final = 300


class Delivery:
    """Delivers, while `run` runs. For the event loop's thread."""

    def __init__(
        self,
        outbox: Outbox,
        notifiers: Mapping[str, Notifier],
        *,
        clock: Clock,
        rng: random.Random,
        meter: Meter,
    ) -> None:
        """Nothing is read yet.

        Args:
            outbox: Where messages wait.
            notifiers: By name.
            clock: The time.
            rng: For the jitter of waits.
            meter: Counts messages.
        """
        self._outbox = outbox
        self._notifiers = notifiers
        self._clock = clock
        self._rng = rng
        self._meter = meter
        self._awake = {name: asyncio.Event() for name in notifiers}
        self._unnoted: dict[str, set[str]] = {name: set() for name in notifiers}
        """Ids of messages that were delivered, which the outbox couldn't be told yet."""

    def wake(self) -> None:
        """There are new messages."""
        for event in self._awake.values():
            event.set()

    async def run(self) -> None:
        """Deliver until cancelled; an attempt that is under way then is begun again later."""
        async with asyncio.TaskGroup() as group:
            for name in self._notifiers:
                group.create_task(self._deliver_all(name), name=f"notifier {name}")

    async def _deliver_all(self, name: str) -> None:
        failures = 0
        while True:
            self._awake[name].clear()
            try:
                wait = await self._round(name, failures)
            except RefusalError as error:
                failures += 1
                if failures == 1:
                    _logger.warning("the outbox of notifications could not be read or written; will retry: %s", error)
                wait = _BACKOFF.wait(failures, self._rng)
            except _HeldUpError as held_up:
                failures += 1
                wait = held_up.wait
            except Exception:  # a bug, or a row of a newer release: of this notifier, and others go on
                failures += 1
                if failures == 1:
                    _logger.exception("taking notifications of %s from the outbox failed; will retry", name)
                wait = _BACKOFF.wait(failures, self._rng)
            else:
                failures = 0
            await self._sleep(name, wait, held_up=failures > 0)

    async def _round(self, name: str, failures: int) -> timedelta:
        """Deliver what is due. Returns when to look again; new messages wake earlier.

        Raises:
            _HeldUpError: the receiver is out of reach.
        """
        for message_id in list(self._unnoted[name]):
            await self._outbox.finish(message_id, None)
            self._unnoted[name].discard(message_id)
        waiting = await self._outbox.waiting(name, _READ)
        self._meter.level(metrics.NOTIFICATIONS_WAITING, len(waiting), notifier=name)
        nearest: datetime | None = None
        for each in waiting:
            now = self._clock.now()
            due = each.next_attempt_time
            if each.message.create_time + KEEP <= now:
                await self._give_up(each)
            elif due is not None and now < due <= now + _LONGEST_PATIENCE:  # further off, it is another clock's
                nearest = due if nearest is None else min(nearest, due)
            elif await self._outbox.claim(each, now + _ATTEMPT):
                await self._attempt(name, each, failures)
        return _LOOK if nearest is None else min(_LOOK, nearest - self._clock.now())

    async def _attempt(self, name: str, waiting: Waiting, failures: int) -> None:
        message = waiting.message
        about = {"notifier": name, "message_id": message.message_id, "attempts": waiting.attempts + 1}
        try:
            failpoint("notification.deliver.before")
            answer = await self._delivered(name, message)
            failpoint("notification.deliver.after")
        except NotDeliveredError as error:
            text = printable(str(error), _ERROR)
            result = "refused" if error.refused else "failed"
            self._meter.count(metrics.NOTIFICATIONS, notifier=name, result=result)
            wait = max(
                _BACKOFF.wait(max(failures, waiting.attempts) + 1, self._rng),
                min(error.retry_after or timedelta(), _LONGEST_PATIENCE),
            )
            level = logging.WARNING if waiting.attempts == 0 else logging.INFO
            _logger.log(
                level,
                "the notifier %s could not deliver %r; will retry: %s",
                name,
                subject(message),
                text,
                extra={"fields": about},
            )
            await self._outbox.finish(message.message_id, (self._clock.now() + wait, text))
            if not error.refused:
                raise _HeldUpError(wait) from error
            return
        self._meter.count(metrics.NOTIFICATIONS, notifier=name, result="delivered")
        _logger.info("notified %s: %s", name, subject(message), extra={"fields": {**about, "answer": answer}})
        self._unnoted[name].add(message.message_id)
        await self._outbox.finish(message.message_id, None)
        self._unnoted[name].discard(message.message_id)

    async def _delivered(self, name: str, message: Message) -> str:
        try:
            return await self._notifiers[name].deliver(message)
        except NotDeliveredError:
            raise
        except Exception as error:  # a bug, here or in a library: this message waits, and others are tried
            _logger.exception("the notifier %s failed unexpectedly", name)
            raise NotDeliveredError(f"it failed unexpectedly: {type(error).__name__}", refused=True) from error

    async def _give_up(self, waiting: Waiting) -> None:
        message = waiting.message
        await self._outbox.finish(message.message_id, None)
        self._meter.count(metrics.NOTIFICATIONS, notifier=message.notifier, result="given_up")
        _logger.error(
            "gave up the notification %r of the notifier %s, which could not be delivered for %d days: %s",
            subject(message),
            message.notifier,
            KEEP.days,
            waiting.error or "it was not tried",
            extra={"fields": {"message_id": message.message_id, "attempts": waiting.attempts}},
        )

    async def _sleep(self, name: str, span: timedelta, *, held_up: bool) -> None:
        """Sleep; news end it, unless the receiver is what is waited for."""
        sleeping = asyncio.ensure_future(self._clock.sleep(span))
        waking = asyncio.ensure_future(self._awake[name].wait())
        try:
            await asyncio.wait([sleeping] if held_up else [sleeping, waking], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sleeping, waking):
                task.cancel()


class _HeldUpError(Exception):
    """The receiver is out of reach; nothing is delivered to it for a while."""

    def __init__(self, wait: timedelta) -> None:
        super().__init__()
        self.wait = wait
