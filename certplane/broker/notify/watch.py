"""Looks at the fleet some times a minute, and puts into the outbox what notifiers are to be told.

A look goes through the index in memory, which gives others their turn; nothing is read from the database unless there
is something to say. What is said is recorded together with its messages, on the standing that it was planned on: where
another broker has recorded something meanwhile, nothing is written, and the next look plans anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.fleet.index import FleetIndex
from certplane.broker.model import IdentityKind
from certplane.broker.notify.delivery import Delivery
from certplane.broker.notify.model import FleetState, HealthCount, Message, OwnTrouble, Told, Trouble
from certplane.broker.notify.planning import ROOM, Planned, Seen, digest, plan
from certplane.broker.notify.ports import Outbox, Records, Standing
from certplane.broker.notify.rules import Gathering, of_broker
from certplane.broker.notify.settings import NotificationRule, RulesSettings
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.health import Health, HealthWord
from certplane.runtime.text import printable

_logger = logging.getLogger("certplane.broker.notify")

_LOOK: Final = timedelta(seconds=15)
_SHARE: Final = 50
"""A look takes at most this part of the time: a fleet that takes longer is looked at less often."""
_SLICE: Final = 64
"""Causes that are looked at before others get their turn."""
_SOON: Final = timedelta(days=7)
_TEXT: Final = 500
"""Octets, as in the proto."""

Explain = Callable[[str, str], Awaitable[Health | None]]
"""What is wrong with a certificate of a host, in words; None if nothing is known of it any more."""

LookAtSelf = Callable[[], Sequence[OwnTrouble]]
"""What is wrong with this broker itself now."""


@dataclass(slots=True)
class _Look:
    """What one look at the fleet has found."""

    now: datetime
    fleet: FleetState
    troubles: Mapping[str, Mapping[str, Trouble]]
    """By notifier and cause."""


class NotificationWatch:
    """Tells notifiers, while `run` runs. For the event loop's thread."""

    def __init__(
        self,
        *,
        index: FleetIndex,
        outbox: Outbox,
        delivery: Delivery,
        notifiers: Mapping[str, RulesSettings],
        explain: Explain,
        look_at_self: LookAtSelf,
        called: str,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        """Nothing is looked at yet.

        Args:
            index: The fleet.
            outbox: What was told, and what waits.
            delivery: Takes messages from there.
            notifiers: What each wants to be told.
            explain: Texts of one certificate, which the index doesn't have.
            look_at_self: What is wrong with this broker.
            called: What this broker is called.
            clock: The time.
            new_id: Makes ids of messages, which sort by age.
        """
        self._index = index
        self._outbox = outbox
        self._delivery = delivery
        self._notifiers = notifiers
        self._explain = explain
        self._look_at_self = look_at_self
        self._called = called
        self._clock = clock
        self._new_id = new_id
        self._seen: dict[str, Seen] = {}
        self._standing: Standing | None = None
        """As it was read; None if it is to be read anew."""

    async def run(self) -> None:
        """Look and deliver until cancelled; what was seen before is forgotten."""
        self._seen = {name: Seen() for name in self._notifiers}
        self._standing = None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._delivery.run(), name="notifications")
            await self._look_always()

    async def _look_always(self) -> None:
        said = ""
        while True:
            begun = self._clock.monotonic()
            try:
                if not self._index.ready:
                    await self._index.settled()
                await self._look()
            except RefusalError as error:
                if str(error) != said:
                    _logger.warning("what to notify of could not be told; will retry: %s", error)
                said = str(error)
            except Exception as error:
                if repr(error) != said:
                    _logger.exception("looking what to notify of failed; will retry")
                said = repr(error)
            else:
                said = ""
            spent = timedelta(seconds=self._clock.monotonic() - begun)
            await self._clock.sleep(max(_LOOK, spent * _SHARE))

    async def _look(self) -> None:
        look = await self._walk()
        if self._standing is None:
            self._standing = await self._outbox.standing()
        standing = self._standing
        planned, digests = self._plan(look, standing)
        messages = [message for each in planned for message in each.messages]
        told = [told for each in planned for told in each.told]
        over = [over for each in planned for over in each.over]
        over += [told for told in standing.told if told.notifier not in self._notifiers]
        if messages or told or over or digests != standing.digests:
            self._standing = None
            records = Records([await self._explained(message) for message in messages], told, over, digests)
            if await self._outbox.record(records, standing.revision):
                self._delivery.wake()
        gone = [name for name in standing.waiting if name not in self._notifiers]
        if gone:
            self._standing = None
        for name in gone:
            await self._drop_all(name)

    async def _walk(self) -> _Look:
        now = self._clock.now()
        # A notifier without rules has its digest of all that is wrong.
        gathered = {
            name: Gathering(wanted.rules or (NotificationRule(),), now) for name, wanted in self._notifiers.items()
        }
        counts: Counter[HealthWord] = Counter()
        hosts = connected = ending = 0
        async for host in self._index.walk():
            if host.kind is IdentityKind.HOST:
                hosts += 1
                connected += host.connected
            for certificate in host.certificates:
                counts[certificate.health] += 1
                ending += certificate.end is not None and now < certificate.end <= now + _SOON
            for each in gathered.values():
                each.add(host)
        shown = tuple(HealthCount(word, counts[word]) for word in HealthWord if counts[word])
        fleet = FleetState(hosts, connected, shown, ending)
        troubles = {name: await _troubles(each) for name, each in gathered.items()}
        own = self._look_at_self()
        for name, wanted in self._notifiers.items():
            of_self = of_broker(wanted.rules or (NotificationRule(),), own, self._called)
            troubles[name].update((each.cause, each) for each in of_self)
        return _Look(now, fleet, troubles)

    def _plan(self, look: _Look, standing: Standing) -> tuple[Sequence[Planned], Mapping[str, datetime]]:
        """What to say to each notifier, and up to when they have had their digests then."""
        planned = []
        digests: dict[str, datetime] = {}
        for name, wanted in self._notifiers.items():
            before = standing.digests.get(name)
            if standing.waiting.get(name, 0) >= ROOM:
                self._standing = None  # there may be room the next time
                if before is not None:
                    digests[name] = before
                continue
            told: dict[str, Told] = {each.cause: each for each in standing.told if each.notifier == name}
            troubles, fleet, now = look.troubles[name], look.fleet, look.now
            planned.append(
                plan(
                    name,
                    wanted,
                    troubles if wanted.rules else {},
                    told,
                    seen=self._seen[name],
                    fleet=fleet,
                    now=now,
                    new_id=self._new_id,
                )
            )
            due = wanted.digest.latest(now)
            if due is None:
                continue
            digests[name] = due
            if before is not None and before < due:  # the first one comes a week after it was asked for, at most
                made = digest(name, troubles.values(), fleet=fleet, now=now, new_id=self._new_id)
                planned.append(Planned((made,)))
        return planned, digests

    async def _explained(self, message: Message) -> Message:
        """The message with what is wrong, in words; by what is so now, which is a moment later than the look."""
        return replace(message, troubles=tuple([await self._explained_trouble(each) for each in message.troubles]))

    async def _explained_trouble(self, trouble: Trouble) -> Trouble:
        if not trouble.example_host or trouble.word is HealthWord.OK:
            return trouble
        health = await self._explain(trouble.example_host, trouble.example_certificate)
        if health is None or health.word is HealthWord.OK:
            return trouble
        return replace(trouble, text=printable(health.text, _TEXT), remedy=printable(health.remedy, _TEXT))

    async def _drop_all(self, name: str) -> None:
        """Drop what waits for a notifier that the configuration no longer has."""
        waiting = await self._outbox.waiting(name, ROOM)
        for each in waiting:
            await self._outbox.finish(each.message.message_id, None)
        _logger.warning("dropped notifications of %s, which is not configured any more", name)


async def _troubles(gathering: Gathering) -> dict[str, Trouble]:
    """What was gathered, by cause; others get their turn between."""
    troubles = {}
    for number, trouble in enumerate(gathering.troubles(), 1):
        troubles[trouble.cause] = trouble
        if number % _SLICE == 0:
            await asyncio.sleep(0)
    return troubles
