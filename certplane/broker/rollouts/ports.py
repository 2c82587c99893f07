"""What rollouts need from outside. The rules of `certplane.broker.ports` hold here too."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from certplane.broker.events import AuditEvent
from certplane.broker.renewal.model import HostActivation
from certplane.broker.rollouts.model import ItemState, Rollout, RolloutItem, RolloutState


@dataclass(frozen=True, slots=True)
class RolloutPlace:
    """Where a rollout is in the list: those that run first, then the newest."""

    has_ended: bool
    create_time: datetime
    rollout_id: str


@dataclass(frozen=True, slots=True)
class ItemPlace:
    """Where an item is in its rollout's list: by `ItemState.place`, then by its certificate."""

    place: int
    certificate_id: str


class RolloutStore(Protocol):
    """The durable rollouts, for all brokers of a database."""

    async def create(
        self, rollout: Rollout, items: Sequence[RolloutItem], events: Sequence[AuditEvent] = ()
    ) -> Rollout:
        """Keep a new rollout with all of its items, in one transaction with the events.

        The first of a `created_by` and `request_id` is the only one: of a later one nothing is written, and the answer
        is the first as it is now.

        Raises:
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; nothing is there then, or all of it.
        """
        ...

    async def save(
        self, before: Rollout, after: Rollout, items: Sequence[RolloutItem] = (), events: Sequence[AuditEvent] = ()
    ) -> bool:
        """Replace a rollout, and those of its items, in one transaction with the events.

        `after.version` is `before.version` plus one. All brokers are told (`ChangeKind.ROLLOUT`), and hosts that have
        something to activate or to abandon by it (`ChangeKind.ACTIVATION`).

        Returns:
            Whether it was still as it was read; if not nothing was written, and whoever asked reads again.

        Raises:
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; it was written or not: read again.
        """
        ...

    async def get(self, rollout_id: str) -> Rollout | None:
        """The rollout; None if there is none."""
        ...

    async def find(self, created_by: str, request_id: str) -> Rollout | None:
        """The rollout that this caller has created with this id; None if it created none."""
        ...

    async def open_rollouts(self) -> Sequence[Rollout]:
        """Those that haven't ended, the oldest first."""
        ...

    async def list(self, states: Collection[RolloutState], after: RolloutPlace | None, limit: int) -> Sequence[Rollout]:
        """Rollouts in these states, or in any if there are none, after a place in the list."""
        ...

    async def items(self, rollout_id: str) -> Sequence[RolloutItem]:
        """All items, by `ItemPlace`; the event loop is held for some milliseconds at a time."""
        ...

    async def list_items(
        self,
        rollout_id: str,
        states: Collection[ItemState],
        ring: int | None,
        after: ItemPlace | None,
        limit: int,
    ) -> Sequence[RolloutItem]:
        """Items in these states, or in any if there are none, and of this ring or any, after a place in the list."""
        ...

    async def open_items_of(self, certificate_ids: Collection[str]) -> Sequence[RolloutItem]:
        """The items that replace one of these certificates, of rollouts that haven't ended."""
        ...

    async def activations_of(self, hosts: Collection[str]) -> Sequence[HostActivation]:
        """What hosts are to be told of certificates that they hold.

        That is: released and not seen in use. Or abandoned: what was never released of a rollout that has ended, even
        if it was issued after that, and what a rollout has skipped. Until what is replaced has expired. More may be
        told than a host has to know.
        """
        ...
