"""What watching services need from the store. The rules of `certplane.broker.ports` hold here too."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from certplane.broker.watches.model import HeldByService, ServiceWatch


class HeldCertificates(Protocol):
    """What services have."""

    async def held_by(self, identities: Collection[str], now: datetime) -> Sequence[HeldByService]:
        """The certificates of these identities that are in force, with their plans, and those revoked before their end.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class WatchStore(Protocol):
    """Which services watch, at which broker."""

    broker_id: str
    """This broker's."""

    async def record_watches(self, watches: Sequence[ServiceWatch], telling: Collection[str] = ()) -> None:
        """Keep what is known of these services at this broker, durable, in one transaction.

        What brokers that are gone have left of the same services is removed. Safe to repeat.

        Args:
            watches: One of each service; `broker_id` is taken for this broker's, whatever it says.
            telling: The services whose watching is another one than before: other brokers hear of those.

        Raises:
            RefusalError: STORE_UNAVAILABLE; nothing changed.
        """
        ...

    async def watches_of(self, identities: Collection[str]) -> Sequence[ServiceWatch]:
        """What is recorded of these services at any broker, those that are gone included; by service and broker.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...
