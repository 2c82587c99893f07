"""What is to be said now of the troubles that there are, by what was said before. Pure.

For one notifier:

    a trouble that lasts `after`                     opened
    told, and its health is worse than was said      worse, at once
    told, and it has ten times as many certificates  worse, at once
    told `repeat` ago, and still there               still
    told, and gone for `SETTLED`                     over

One that comes and goes within these times is one trouble, or none. When very many begin or end together, one message
tells of them all: nobody reads a hundred, and receivers refuse them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from certplane.broker.notify.model import FleetState, Message, MessageKind, Told, Trouble
from certplane.broker.notify.settings import RulesSettings

SETTLED: Final = timedelta(minutes=5)
"""For how long a trouble must be gone to be over: a retry that fails again is the same trouble."""
ROOM: Final = 100
"""Messages of one notifier that may wait. While there are more, nothing is added: what is to be said then is worked out
anew from the fleet as it is when there is room again."""
_AT_ONCE: Final = 10
"""Messages of one kind that are made for one look; more troubles than that share a message."""
_MOST: Final = 1000
"""Troubles that a notifier is told of at a time, the worst: causes are groups, but what hosts say may be anything."""
_NAMED: Final = 20
"""Troubles that such a message, or a digest, has in full."""
_MANY: Final = 10
"""How many times as many certificates as was said is news."""


@dataclass(slots=True)
class Seen:
    """What the broker that looks has seen itself of one notifier's troubles, by cause; another one sees it anew."""

    since: dict[str, datetime] = field(default_factory=dict)
    """Since when those are there that aren't told of."""
    gone: dict[str, datetime] = field(default_factory=dict)
    """Since when those are gone that are told of."""

    def note(self, troubles: Collection[str], told: Collection[str], now: datetime) -> None:
        """Note what there is now."""
        self.since = {cause: self.since.get(cause, now) for cause in troubles if cause not in told}
        self.gone = {cause: self.gone.get(cause, now) for cause in told if cause not in troubles}


@dataclass(frozen=True, slots=True)
class Planned:
    """Messages, and what is told when they are in the outbox: both are written together, or neither."""

    messages: tuple[Message, ...] = ()
    told: tuple[Told, ...] = ()
    """New or changed."""
    over: tuple[Told, ...] = ()
    """Ended."""

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.messages or self.told or self.over)


def plan(
    notifier: str,
    rules: RulesSettings,
    troubles: Mapping[str, Trouble],
    told: Mapping[str, Told],
    *,
    seen: Seen,
    fleet: FleetState,
    now: datetime,
    new_id: Callable[[], str],
) -> Planned:
    """What to say now.

    Args:
        notifier: Whose.
        rules: Its rules; `troubles` are what they pick.
        troubles: What there is, by cause.
        told: What it was told of, by cause.
        seen: What was seen before; noted anew.
        fleet: For the messages.
        now: The time.
        new_id: Makes message ids.
    """
    seen.note(troubles, told, now)

    def lasts(trouble: Trouble) -> bool:
        since = seen.since[trouble.cause]
        return now - min(since, trouble.since or since) >= rules.after

    begun = _worst_first(troubles[cause] for cause in seen.since if lasts(troubles[cause]))
    opened = begun[: max(0, _MOST - len(told))]
    worse, still = [], []
    for cause, before in told.items():
        trouble = troubles.get(cause)
        if trouble is not None and _is_worse(trouble, before):
            worse.append(trouble)
        elif trouble is not None and rules.repeat and now - before.tell_time >= rules.repeat:
            still.append(trouble)
    ended = [told[cause] for cause, gone in seen.gone.items() if now - gone >= SETTLED]

    make = partial(_message, notifier, fleet=fleet, now=now, new_id=new_id)
    messages: list[Message] = []
    for kind, about in (
        (MessageKind.OPENED, opened),
        (MessageKind.WORSE, worse),
        (MessageKind.STILL, still),
        (MessageKind.OVER, [_ended(each) for each in ended] if rules.over else []),
    ):
        worst = _worst_first(about)
        together = [worst] if len(worst) > _AT_ONCE else [[trouble] for trouble in worst]
        messages += [make(kind, each) for each in together if each]
    return Planned(
        tuple(messages),
        tuple(
            Told(
                notifier,
                trouble.cause,
                trouble.word,
                trouble.certificate_count,
                told[trouble.cause].open_time if trouble.cause in told else trouble.since or now,
                now,
            )
            for trouble in (*opened, *worse, *still)
        ),
        tuple(ended),
    )


def digest(
    notifier: str, troubles: Iterable[Trouble], *, fleet: FleetState, now: datetime, new_id: Callable[[], str]
) -> Message:
    """The week's message: how the fleet is, and what troubles there are."""
    return _message(notifier, MessageKind.DIGEST, _worst_first(troubles), fleet=fleet, now=now, new_id=new_id)


def _message(
    notifier: str,
    kind: MessageKind,
    troubles: Sequence[Trouble],
    *,
    fleet: FleetState,
    now: datetime,
    new_id: Callable[[], str],
) -> Message:
    return Message(new_id(), notifier, kind, now, tuple(troubles[:_NAMED]), len(troubles), fleet)


def _is_worse(trouble: Trouble, told: Told) -> bool:
    more = 0 < told.certificate_count * _MANY <= trouble.certificate_count
    return trouble.word.rank < told.word.rank or more


def _worst_first(troubles: Iterable[Trouble]) -> list[Trouble]:
    return sorted(troubles, key=lambda trouble: (trouble.word.rank, -trouble.certificate_count, trouble.cause))


def _ended(told: Told) -> Trouble:
    """What is said of one that is over: since when it was, and how bad; nobody has it any more."""
    return replace(Trouble(told.cause, told.word, 0, 0), since=told.open_time)
