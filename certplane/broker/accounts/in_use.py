"""Which account keys this broker orders with, beside the brokers that share its database.

Rules:

- All brokers of a database have one account at an issuer's CA. A start records which (`claim`); a broker whose file or
  secret doesn't hold the recorded key says so and ends, as long as another one lives that has another key than it.
- A key that the database keeps is never recorded over: nobody may have it elsewhere.
- What another program has changed is heard through the change feed. The issuing process reads the key again; it would
  find out by itself, but only when the CA has refused a request of the old key. Nobody else's news waits for that
  (`run`): a vault or the CA may be asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from typing_extensions import override

from certplane.broker.accounts.model import Account
from certplane.broker.accounts.ports import AccountRows
from certplane.broker.members.model import Member
from certplane.broker.ports import ChangeFollower
from certplane.errors import ConfigurationError, ConfigurationProblem, Reason, RefusalError
from certplane.runtime.clock import Clock

_log = logging.getLogger(__name__)

_RETRY: Final = timedelta(seconds=1)
"""Before the database is asked again."""
_TRIES: Final = 10
"""Each is lost to another broker's start in the same moment."""


@dataclass(frozen=True, slots=True)
class AccountPlace:
    """Where the configuration has the account of an issuer.

    Attributes:
        directory_url: Of its CA.
        setting: The key of broker.yml that says where the account's key is, for errors.
        in_store: Whether that is the database.
    """

    directory_url: str
    setting: str
    in_store: bool = False


class AccountsInUse(ChangeFollower, Collection[str]):
    """The keys in use. As a collection: SHA-256 of each that was one since the start, which no certificate may have."""

    def __init__(
        self,
        rows: AccountRows,
        places: Mapping[str, AccountPlace],
        look: Callable[[str], Awaitable[str]],
        clock: Clock,
    ) -> None:
        """Nothing is read yet.

        Args:
            rows: The accounts that all brokers share.
            places: By issuer.
            look: Has the issuing process read the issuer's key again; returns the SHA-256 of the one in use then.
            clock: For pauses.
        """
        self._rows, self._places, self._look, self._clock = rows, places, look, clock
        self._news: set[str] = set()
        """Issuers whose accounts may have changed."""
        self._wake = asyncio.Event()
        self._all: set[str] = set()
        self._foreign: dict[str, str] = {}
        """Keys of the record that this broker can't find where it looks, by issuer: said once each."""
        self.keys: dict[str, str] = {}
        """SHA-256 of the public key of each issuer's account."""

    @override
    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._all

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    @override
    def __len__(self) -> int:
        return len(self._all)

    def note(self, issuer: str, sha256: str) -> None:
        """The issuer's account has this key from now on."""
        self.keys[issuer] = sha256
        self._all.add(sha256)

    async def claim(self, own_id: str, living: Callable[[], Awaitable[Sequence[Member]]]) -> None:
        """Record which accounts this broker orders with, before it orders.

        Args:
            own_id: Its own among the members.
            living: The brokers that share the database. This broker is one of them already: of two that start at once
                with different keys, the one whose record comes second finds the first one living.

        Raises:
            ConfigurationError: others order with another account, or the database keeps another key.
            RefusalError: STORE_UNAVAILABLE.
        """
        for issuer, place in self._places.items():
            if not place.in_store:  # of that one the row says the key
                await self._claim(issuer, place, own_id, living)

    async def _claim(
        self, issuer: str, place: AccountPlace, own_id: str, living: Callable[[], Awaitable[Sequence[Member]]]
    ) -> None:
        for _ in range(_TRIES):
            row = await self._rows.find(issuer, place.directory_url)
            if row is not None and row.public_key_sha256 != self.keys[issuer]:
                await self._read_again(issuer)  # it may be in the midst of a change, of which the CA knows the end
            sha256 = self.keys[issuer]
            if row is not None and row.public_key_sha256 == sha256:
                return
            if row is not None and row.sealed_key is not None:
                raise _kept_elsewhere(issuer, place, row, sha256)
            if row is not None:
                for member in await living():
                    if member.broker_id != own_id and (theirs := _other_key(member, issuer, sha256)):
                        raise _others(issuer, place, member, theirs, sha256)
                message = "the account's key is another one than brokers of this database had before"
                fields = {"issuer": issuer, "key_sha256": sha256, "key_sha256_before": row.public_key_sha256}
                _log.warning(message, extra={"fields": fields})
            mine = Account(issuer, place.directory_url, sha256)
            if await self._rows.change(row, mine) == mine:
                return
        raise RefusalError(
            Reason.STORE_UNAVAILABLE, f"the account of {issuer} can't be recorded: others do all the time"
        )

    async def _read_again(self, issuer: str) -> bool:
        """Whether the key could be read: of a process that has ended the next one reads it anyway, and tells it."""
        try:
            self.note(issuer, await self._look(issuer))
        except RefusalError:
            return False
        return True

    @override
    async def changed(self, keys: Collection[str]) -> None:
        self._news.update(self._places.keys() & set(keys))
        self._wake.set()

    @override
    async def reread(self, since: datetime) -> None:
        await self.changed(self._places.keys())

    async def run(self) -> None:
        """Take in what others have changed, on and on, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self.catch_up():
                await self._clock.sleep(_RETRY)
                self._wake.set()

    async def catch_up(self) -> bool:
        """Take in what has changed; whether the database could be read."""
        while self._news:
            issuer = min(self._news)
            try:
                await self._compare(issuer)
            except RefusalError:  # who reads the feed says that the database is away
                return False
            self._news.discard(issuer)
        return True

    async def _compare(self, issuer: str) -> None:
        place = self._places[issuer]
        row = await self._rows.find(issuer, place.directory_url)
        if row is None or issuer not in self.keys or row.public_key_sha256 == self.keys[issuer]:
            self._foreign.pop(issuer, None)
            return
        if not await self._read_again(issuer) or self.keys[issuer] == row.public_key_sha256:
            self._foreign.pop(issuer, None)
        elif self._foreign.get(issuer) != row.public_key_sha256:
            self._foreign[issuer] = row.public_key_sha256
            message = "another broker has another key for the account: give this one the same, and look at %s"
            fields = {"issuer": issuer, "key_sha256": self.keys[issuer], "key_sha256_there": row.public_key_sha256}
            _log.error(message, place.setting, extra={"fields": fields})


def _other_key(member: Member, issuer: str, sha256: str) -> str:
    """The key that the member has for the issuer's account, if it isn't this one; as it said some seconds ago."""
    keys = {key.issuer: key.public_key_sha256 for key in member.account_keys}
    return keys[issuer] if keys.get(issuer, sha256) != sha256 else ""


def _others(issuer: str, place: AccountPlace, member: Member, theirs: str, mine: str) -> ConfigurationError:
    message = (
        f"this broker would order from {issuer} with another account ({mine}) than the broker on {member.name} at "
        f"{member.address}, which shares its database ({theirs})"
    )
    remedy = "give all brokers one key: copy it, or write `account_key: {secret: NAME}` or `account_key: {store: true}`"
    return ConfigurationError([ConfigurationProblem("", None, place.setting, message, remedy)])


def _kept_elsewhere(issuer: str, place: AccountPlace, row: Account, mine: str) -> ConfigurationError:
    message = (
        f"the database keeps the key of the account at {issuer} ({row.public_key_sha256}), and this is another ({mine})"
    )
    remedy = "write `account_key: {store: true}`, or take that key out first (`certplane-broker account export`)"
    return ConfigurationError([ConfigurationProblem("", None, place.setting, message, remedy)])
