"""What renewal planning needs from outside. The rules of `certplane.broker.ports` hold here too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from certplane.broker.model import AuditEvent
    from certplane.broker.renewal.model import InForce, RenewalPlan, Selection

__all__ = ["RenewalPlanStore"]


class RenewalPlanStore(Protocol):
    """The durable plans, one for each certificate at most, and the certificates that they are for."""

    async def set_plans(self, plans: Sequence[RenewalPlan], events: Sequence[AuditEvent] = ()) -> None:
        """Replace the plans of these certificates, durable, in one transaction with their events.

        Raises:
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; nothing changed.
        """
        ...

    async def in_force(self, host: str, now: datetime) -> Sequence[InForce]:
        """The certificates in force of one identity, with their plans."""
        ...

    async def select(self, selection: Selection, now: datetime) -> Sequence[InForce]:
        """The certificates in force that match, by host."""
        ...

    async def to_check(self, now: datetime, limit: int) -> Sequence[InForce]:
        """Those whose CA should be asked about them now, oldest first.

        That is: without a plan yet, or with a `next_check_time` that is past.
        """
        ...
