"""What a DNS API does for the solver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from certplane.broker.issuers.attempts import Deadline
    from certplane.broker.model import DnsChallenge, Profile, TxtRecord

__all__ = ["DnsProvider"]


class DnsProvider(Protocol):
    """A way to write TXT records. Methods may be called concurrently from the event loop.

    Both writing methods end by the deadline, repeat until then what is safe to repeat, and can be called again after a
    lost answer: a record that stands already is the record, one that is gone already is removed.

    Raises (both writing methods):
        RefusalError: DNS_UNAVAILABLE (try again), DNS_REJECTED (credentials, zone, permission: a person's job).
    """

    def plan(self, challenge: DnsChallenge, profile: Profile) -> TxtRecord:
        """The record to journal before anything is written. Pure; zone and id may be empty."""
        ...

    async def add_txt(self, record: TxtRecord, deadline: Deadline) -> TxtRecord:
        """Add the record beside those that stand there; returns it with its zone (if known) and id (if any)."""
        ...

    async def remove_txt(self, record: TxtRecord, deadline: Deadline) -> None:
        """Remove this record and no other: by id if it has one, else by name and value."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...
