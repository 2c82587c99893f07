"""What a DNS API does for the solver, and what every provider's section of broker.yml has.

A provider is one module here with its section, which makes the provider, and is registered by a field of
`providers.ProviderSections`.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from certplane.broker.issuers.attempts import Deadline, repeat
from certplane.broker.model import DnsChallenge, Profile, TxtRecord
from certplane.broker.ports import SecretSource
from certplane.config.values import PositiveSpan
from certplane.errors import Reason, RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock

T = TypeVar("T")


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

    gathers_writes: ClassVar[bool] = False
    """Whether it makes one call of the writes of many orders: it is given all at once then, those for one name too, and
    limits and orders its calls itself."""

    def plan(self, challenge: DnsChallenge, profile: Profile) -> TxtRecord:
        """The record to journal before anything is written. Pure; zone and id may be empty.

        The challenge's `record_name` is where the record is to stand: the end of a delegation if there is one.
        """
        return TxtRecord("", challenge.record_name, challenge.record_value, credentials=profile.credentials)

    async def add_txt(self, record: TxtRecord, deadline: Deadline) -> TxtRecord:
        """Add the record beside those that stand there; returns it with its zone (if known) and id (if any)."""
        ...

    async def remove_txt(self, record: TxtRecord, deadline: Deadline) -> None:
        """Remove this record and no other: by id if it has one, else by name and value."""
        ...

    async def close(self) -> None:
        """Close connections; unless a provider says otherwise, none stays open."""
        return


RETRY = Backoff(first=timedelta(seconds=1), most=timedelta(seconds=10), floor=timedelta(milliseconds=200))


async def while_unavailable(
    attempt: Callable[[], Awaitable[T]], deadline: Deadline, rng: random.Random, backoff: Backoff = RETRY
) -> T:
    """`repeat` an attempt that fails with DNS_UNAVAILABLE."""
    return await repeat(
        attempt,
        deadline=deadline,
        backoff=backoff,
        rng=rng,
        on=RefusalError,
        when=lambda error: error.refusal.reason is Reason.DNS_UNAVAILABLE,
    )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings(ABC):
    """A provider's section below `issuer.acme`; its fields are keys.

    Keys that end in `_secret` name secrets, and so does `profiles_key`, for profiles that name none: `check` reads
    these secrets. The two times count for this provider's records instead of those of `propagation`. broker.yml is read
    without the package that a provider is made with: a large one is imported in `make`.
    """

    profiles_key: ClassVar[str] = "credentials"
    propagation_timeout: PositiveSpan | None = None
    polling_interval: PositiveSpan | None = None

    @abstractmethod
    def make(self, secrets: SecretSource, clock: Clock, rng: random.Random) -> DnsProvider:
        """The provider; nothing is sent yet, and secrets are read at each use.

        Raises:
            ConfigurationError: something in the section can't be used, told with its whole key.
        """
