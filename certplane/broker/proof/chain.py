"""The chains of audit events: each writer's own, so that none waits for another's.

    genesis         = SHA-256(which chain, whose, since when, and the newest event of the log when it began)
    hash of event n = SHA-256(hash of event n - 1, n, its time, its id, its stored octets)

A writer is one start of a broker, or one command.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

_DOMAIN: Final = "certplane audit chain 1"
_head: Final = struct.Struct(">Qq?H").pack
_sha256: Final = hashlib.sha256


class Stored(Protocol):
    """What a chain proves of an event."""

    @property
    def event_id(self) -> str:
        """The event's own id."""
        ...

    @property
    def create_time(self) -> int:
        """Microseconds since 1970 UTC."""
        ...

    @property
    def record(self) -> str:
        """The event as text, where it has no `body`."""
        ...

    @property
    def body(self) -> bytes | None:
        """The event as octets."""
        ...


def next_hash(before: bytes, number: int, event: Stored) -> bytes:
    """The hash of an event, from that of the one before it in its chain and from what is stored."""
    name = event.event_id.encode()
    body = event.body
    # Its length goes before the id, so that no two events are one sequence of octets.
    head = _head(number, event.create_time, body is not None, len(name))
    return _sha256(b"".join((before, head, name, event.record.encode() if body is None else body))).digest()


class Head(NamedTuple):
    """How far a chain has come."""

    chain_id: int
    number: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class ChainStart:
    """What a chain begins with: `after_*` is the newest event of the log then, of whichever chain; 0 if of none.

    `start_time` is in microseconds since 1970 UTC.
    """

    chain_id: int
    writer_id: str
    start_time: int
    after_chain_id: int
    after_number: int
    after_hash: bytes

    @property
    def genesis(self) -> bytes:
        """The hash before the first event's."""
        after = (self.after_chain_id, self.after_number, self.after_hash.hex())
        said = (_DOMAIN, self.chain_id, self.writer_id, self.start_time, *after)
        return _sha256(json.dumps(said, separators=(",", ":")).encode()).digest()


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of the log, none of whose events stands before `first_sequence`.

    Events up to `pruned_number`, which has a checkpoint, were removed by age, or are being.
    """

    start: ChainStart
    first_sequence: int = 0
    pruned_number: int = 0


class LoggedEvent(NamedTuple):
    """A row of the log; without a chain it is of a release that had none."""

    sequence: int
    event_id: str
    create_time: int
    record: str
    body: bytes | None
    chain_id: int | None
    number: int | None
    hash: bytes | None
