"""What notifications need from outside. The rules of `certplane.broker.ports` hold here too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from certplane.broker.notify.model import Message, Told


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message in the outbox."""

    message: Message
    attempts: int = 0
    """How often its delivery was begun."""
    next_attempt_time: datetime | None = None
    """Not before; None: it wasn't tried yet."""
    error: str = ""
    """Why the last attempt failed, if it did; cleaned."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands in the database.

    Attributes:
        revision: Another text after each `record`; what it says is the outbox's own.
        told: What notifiers were told of.
        digests: Up to which of its weekly moments each notifier had its digest.
        waiting: How many messages wait, by notifier; those that have none are left out.
    """

    revision: str = ""
    told: Sequence[Told] = ()
    digests: Mapping[str, datetime] = field(default_factory=dict)
    waiting: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Records:
    """What is written together.

    Attributes:
        messages: For the outbox. Each has an id of its own, and none was there before.
        told: New or changed.
        over: To be removed.
        digests: All of them, as in `Standing`.
    """

    messages: Sequence[Message] = ()
    told: Sequence[Told] = ()
    over: Sequence[Told] = ()
    digests: Mapping[str, datetime] = field(default_factory=dict)


class Outbox(Protocol):
    """What was told, and the messages that wait to be delivered: one of all brokers of a database.

    Every method raises RefusalError: STORE_UNAVAILABLE; then nothing changed.
    """

    async def standing(self) -> Standing:
        """What stands in it."""
        ...

    async def record(self, records: Records, revision: str) -> bool:
        """Write all of it in one transaction, durable; False, and nothing is written, if `revision` is of before.

        So of two brokers that take themselves for the one, during a second or two, one writes.
        """
        ...

    async def waiting(self, notifier: str, most: int) -> Sequence[Waiting]:
        """The notifier's messages, the oldest first."""
        ...

    async def claim(self, waiting: Waiting, until: datetime) -> bool:
        """Begin an attempt: count it, durable, before anything is sent; nobody begins another one before `until`.

        False if it isn't there any more as it was read: it was delivered, or another broker has begun an attempt.
        """
        ...

    async def finish(self, message_id: str, retry: tuple[datetime, str] | None) -> None:
        """End an attempt: with None the message goes; else it waits until that time, for that reason."""
        ...


class NotDeliveredError(Exception):
    """A receiver doesn't have a message, or hasn't said that it has; the text says why, and shows no secret.

    Attributes:
        refused: The receiver has answered that it doesn't want this message; another one it may take.
        retry_after: The receiver has asked to wait so long.
    """

    def __init__(self, text: str, *, refused: bool = False, retry_after: timedelta | None = None) -> None:
        super().__init__(text)
        self.refused = refused
        self.retry_after = retry_after


class Notifier(Protocol):
    """Delivers messages to one receiver, one at a time."""

    async def deliver(self, message: Message) -> str:
        """Return when the receiver has said that it has the message: what it said, for the log.

        Ends within the time that it is configured with. A message may come twice; its id says so.

        Raises:
            NotDeliveredError: the receiver doesn't have it, or that isn't known.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and threads. Never raises."""
        ...
