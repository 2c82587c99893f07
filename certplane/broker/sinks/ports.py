"""What copying the audit log needs from outside. The rules of `certplane.broker.ports` hold here too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from certplane.broker.sinks.position import SinkPosition


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event of the log: `text` is the JSON object of the public format, in ASCII, on one line."""

    sequence: int
    event_id: str
    time: datetime
    text: str


class StoredEvents(Protocol):
    """The audit log of all brokers of the database, by its rows' numbers, and how far its copies are.

    Every method raises RefusalError: STORE_UNAVAILABLE; then nothing changed.
    """

    async def sequences(self, after: int, most: int) -> Sequence[int]:
        """The numbers of the events after that one, upwards."""
        ...

    async def newest(self) -> int:
        """The highest number there is; 0 if there are no events."""
        ...

    async def events(self, sequences: Sequence[int]) -> Sequence[StoredEvent]:
        """These events, upwards; at most 256. One that this release can't read is left out, with a line in the log."""
        ...

    async def position(self, sink: str) -> SinkPosition | None:
        """How far the sink is; None if nothing was ever noted of it."""
        ...

    async def advance(self, sink: str, before: SinkPosition | None, after: SinkPosition) -> bool:
        """Note that it is at `after`, durable; False, and nothing changes, if it isn't at `before` any more."""
        ...


class SinkError(Exception):
    """A sink doesn't have the events, or that isn't known; the text says why, and shows no secret."""


class AuditSink(Protocol):
    """Takes copies of events, a batch at a time."""

    async def send(self, events: Sequence[StoredEvent]) -> None:
        """Return when the sink has them all, as far as it lets anybody know. They may come again: ids tell.

        Raises:
            SinkError: it doesn't have all of them.
        """
        ...

    async def close(self) -> None:
        """Let go of files and connections. Never raises."""
        ...
