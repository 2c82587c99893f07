"""What proving the log asks of the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from certplane.broker.metrics import Gauge
from certplane.broker.proof.chain import Chain, Head, LoggedEvent
from certplane.broker.proof.checkpoints import Checkpoint


class Levels(Protocol):
    """Where it is shown that the log gets no checkpoint."""

    def level(self, gauge: Gauge, value: float, **labels: str) -> None:
        """Set a gauge."""
        ...


class AuditProof(Protocol):
    """The rows of the log as they are proven. All methods raise `RefusalError` STORE_UNAVAILABLE."""

    async def head(self, last: Head | None) -> tuple[Head, int] | None:
        """How far this program's own chain has come, durably, and its last event's place; None if that is `last`."""
        ...

    async def newest(self) -> int:
        """The place of the newest event; 0 of an empty log."""
        ...

    async def chains(self) -> Sequence[Chain]:
        """All chains."""
        ...

    async def chain(self, chain_id: int) -> Chain | None:
        """One of them."""
        ...

    async def ended(self) -> Sequence[Chain]:
        """Some of the chains of programs that have ended, and whose ends have no checkpoint yet."""
        ...

    async def checkpoints(self, after: tuple[int, int], limit: int) -> Sequence[Checkpoint]:
        """Checkpoints by chain and number, those after one of them; those of one chain may follow another's."""
        ...

    async def last_checkpoint(self, chain_id: int) -> Checkpoint | None:
        """The newest one of a chain."""
        ...

    async def events(self, after: int, limit: int, *, chain_id: int | None = None) -> Sequence[LoggedEvent]:
        """Events after a place, in their order; `chain_id`: of one chain alone."""
        ...

    async def seal(self, checkpoint: Checkpoint | None, *, ended: int | None = None) -> None:
        """Write a checkpoint, unless its event has one; `ended` is the chain that gets no other after it."""
        ...
