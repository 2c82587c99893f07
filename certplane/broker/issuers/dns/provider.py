"""What a DNS API does for the solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.model import DnsChallenge, Profile, TxtRecord
from certplane.errors import Reason, RefusalError


class NoSuchZoneError(RefusalError):
    """DNS_REJECTED: none of the zones that the provider's account has holds the name, so nothing was written there."""

    def __init__(self, message: str) -> None:
        """`message` names the record."""
        super().__init__(Reason.DNS_REJECTED, message)


class DnsProvider(Protocol):
    """A way to write TXT records. Methods may be called concurrently from the event loop, but for one name only one.

    Both writing methods end by the deadline, repeat until then what is safe to repeat, and can be called again after a
    lost answer: a record that stands already is the record, one that is gone already is removed.

    Raises (both writing methods):
        RefusalError: DNS_UNAVAILABLE (try again), DNS_REJECTED (credentials, zone, permission: a person's job), as
            NoSuchZoneError where the account is known to have no zone for the record.
    """

    def plan(self, challenge: DnsChallenge, profile: Profile) -> TxtRecord:
        """The record to journal before anything is written. Pure; zone and id may be empty.

        The challenge's `record_name` is where the record is to stand: the end of a delegation if there is one.
        """
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


@dataclass(frozen=True, slots=True)
class AccountFinding:
    """What is wrong with an account; `fatal`: it can't be used at all."""

    message: str
    remedy: str
    fatal: bool = False


@runtime_checkable
class CheckableProvider(Protocol):
    """A provider that can tell what its credentials allow, and changes nothing to find out.

    Raises (both methods):
        RefusalError: DNS_UNAVAILABLE: it can't be told now; DNS_REJECTED: the secret or the zone can't be used.
    """

    async def check_account(self, credentials: str, deadline: Deadline) -> Sequence[AccountFinding]:
        """What is wrong with these credentials (empty: the provider's own); nothing is good."""
        ...

    async def check_zone(self, name: str, credentials: str, deadline: Deadline) -> str:
        """The zone in which a record at `name` would be written."""
        ...


@runtime_checkable
class BatchingProvider(Protocol):
    """A provider that makes one call of the writes of many orders."""

    @property
    def gathers_writes(self) -> bool:
        """True: give it all writes at once, those for one name too; it limits and orders its calls itself."""
        ...
