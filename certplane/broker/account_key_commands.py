"""An account's key in the database: taken in from a file, put out into one, sealed anew.

Each function answers one command, as those of `account_commands`. What it does is in the audit log before and after.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from certplane.broker.account_commands import Ca, configured_ca, key_event, print_records
from certplane.broker.accounts.model import Account
from certplane.broker.accounts.seal import SealError, SealKeys, account_context
from certplane.broker.commands import Row
from certplane.broker.configured import located, secret_source
from certplane.broker.database import open_store
from certplane.broker.events import AuditTrail
from certplane.broker.issuers.acme_account import AccountKey, create_key_file, unusable_file
from certplane.broker.issuers.acme_keeping import KeptInStore, Seal
from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.broker.settings import BrokerSettings
from certplane.broker.store import Stores
from certplane.config.files import read_argument
from certplane.errors import ConfigurationError, ConfigurationProblem, OperationError
from certplane.runtime.clock import SystemClock
from certplane.runtime.pool import BlockingPool

RESEAL_COLUMNS: Final = ("issuer", "directory_url", "key_sha256", "result")


@dataclass(frozen=True, slots=True)
class _Store:
    """The database, and what seals in it."""

    stores: Stores
    seal: Seal
    trail: AuditTrail

    async def audit(self, issuer: str, directory_url: str, what: str) -> None:
        await self.stores.audit.append([key_event(self.trail, issuer, directory_url, what)])


async def import_account_key(settings: BrokerSettings, path: Path, name: str = "") -> tuple[Row, str]:
    """Take the account's key of the issuer `name`, or the default one, from a file into the database.

    What is kept, and what an operator has to do beside; empty if nothing.

    Raises:
        ConfigurationError: it is no key, or the seal secret can't be used.
        OperationError: the issuer's key isn't to be in the database, another one is there or in use, or it is another
            issuer's.
        RefusalError: AUDIT_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    ca = _stored(configured_ca(settings, name))
    key = AccountKey.from_pem(read_argument(path), str(path), "account import")
    which = ca.name, ca.acme.directory_url
    async with _open(settings) as store:
        row = await store.stores.accounts.find(*which)
        for other in await store.stores.accounts.all():
            if other.public_key_sha256 == key.public_key_sha256 and other.issuer != ca.name:
                # As two issuers of the configuration may not name one file.
                message = f"this is also the key of the issuer {other.issuer}"
                raise OperationError(message, remedy="give each issuer its own key")
        if row is not None and row.public_key_sha256 != key.public_key_sha256:
            await _need_nobody(store.stores, row)
        elif row is not None and row.sealed_key is not None:
            return _row(ca, key), ""
        with located(settings):
            sealed = (await store.seal.keys()).seal(key.pem(), account_context(*which))
        await store.audit(*which, f"the account's key {key.public_key_sha256} is to be kept in the database")
        imported = Account(*which, key.public_key_sha256, sealed)
        if await store.stores.accounts.change(row, imported) != imported:
            raise OperationError("the account was changed by another program meanwhile", remedy="repeat the command")
        await store.audit(*which, f"the account's key {key.public_key_sha256} is kept in the database, sealed")
    another = row is not None and row.public_key_sha256 != key.public_key_sha256
    if another and ca.acme.challenge is ChallengeKind.DNS_PERSIST_01:
        notice = "standing records name the account of the key of before, and the CA takes none of them from now on"
        return _row(ca, key), f"{notice}: publish them anew; {print_records(ca.name)}"
    return _row(ca, key), ""


async def export_account_key(settings: BrokerSettings, path: Path, name: str = "") -> Row:
    """Put the account's key of the issuer `name`, or the default one, into a new file, 0600, unsealed.

    Raises:
        ConfigurationError: it can't be unsealed, or the file can't be made.
        OperationError: there is no key in the database, or there is such a file.
        RefusalError: AUDIT_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    ca = _stored(configured_ca(settings, name))
    which = ca.name, ca.acme.directory_url
    async with _open(settings) as store:
        keeper = KeptInStore(store.stores.accounts, *which, store.seal, "account export")
        with located(settings):
            key = await keeper.find()
        if key is None:
            raise OperationError(
                "the database has no key of this account yet", remedy="the broker makes it at its start"
            )
        await store.audit(*which, f"the account's key {key.public_key_sha256} is to be put into {path}")
        try:
            made = create_key_file(path, key.pem())
        except OSError as error:
            raise unusable_file(path, error, "account export") from error
        if not made:
            raise OperationError(f"{path} is there already", remedy="name a new file: none is overwritten")
    return _row(ca, key)


async def reseal_account_keys(settings: BrokerSettings) -> list[Row]:
    """Seal each key that the database keeps with the first key of the seal secret; a row for each.

    Raises:
        ConfigurationError: the seal secret can't be used, or doesn't unseal a key, which is left with those after it.
        RefusalError: AUDIT_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    if not settings.store.seal_secret:
        raise OperationError("nothing is sealed: store.seal_secret isn't set", remedy="name the seal secret there")
    async with _open(settings) as store:
        with located(settings):
            keys = await store.seal.keys()
            return [await _reseal(store, keys, row) for row in await store.stores.accounts.all() if row.sealed_key]


async def _reseal(store: _Store, keys: SealKeys, row: Account) -> Row:
    resealed = replace(
        row, sealed_key=_anew(keys, row, row.sealed_key), sealed_next_key=_anew(keys, row, row.sealed_next_key)
    )
    result = "was sealed with it already"
    if resealed != row:
        await store.audit(row.issuer, row.directory_url, f"the account's key {row.public_key_sha256} is sealed anew")
        stands = await store.stores.accounts.change(row, resealed)
        if stands != resealed:  # its key was changed meanwhile
            return await _reseal(store, keys, stands)
        result = "sealed anew"
    return {
        "issuer": row.issuer,
        "directory_url": row.directory_url,
        "key_sha256": row.public_key_sha256,
        "result": result,
    }


def _anew(keys: SealKeys, row: Account, sealed: bytes | None) -> bytes | None:
    if sealed is None or keys.is_current(sealed):
        return sealed
    context = account_context(row.issuer, row.directory_url)
    try:
        return keys.seal(keys.unseal(sealed, context), context)
    except SealError as error:
        remedy = "put the old seal key after the new one into the secret, with a line break between them"
        problem = ConfigurationProblem("", None, "store.seal_secret", f"the key of {row.issuer} {error}", remedy)
        raise ConfigurationError([problem]) from None


async def _need_nobody(stores: Stores, row: Account) -> None:
    """See that another key may take the place of the row's.

    Raises:
        OperationError: the database keeps that one, or a broker orders with it.
    """
    if row.sealed_key is not None:
        message = f"the database keeps another key of this account already ({row.public_key_sha256})"
        raise OperationError(message, remedy="`account rollover` gives the account a new key")
    for member in await stores.members.living():
        if row.public_key_sha256 in {key.public_key_sha256 for key in member.account_keys}:
            message = (
                f"the broker on {member.name} at {member.address} orders with another key ({row.public_key_sha256})"
            )
            raise OperationError(message, remedy="take in the key that it has, or stop it first")


def _stored(ca: Ca) -> Ca:
    if not ca.acme.account_key.store:
        message = f"the account's key of {ca.name} is in {ca.acme.account_key.place}"
        raise OperationError(message, remedy="write `account_key: {store: true}` first")
    return ca


def _row(ca: Ca, key: AccountKey) -> Row:
    return {
        "issuer": ca.name,
        "directory_url": ca.acme.directory_url,
        "key_sha256": key.public_key_sha256,
        "key_kept_in": ca.acme.account_key.place,
    }


@asynccontextmanager
async def _open(settings: BrokerSettings) -> AsyncIterator[_Store]:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(open_store(settings, clock=clock))
        pool = BlockingPool("broker-files", 1)
        stack.callback(pool.close)
        seal = Seal(secret_source(settings, pool, clock), settings.store.seal_secret)
        yield _Store(stores, seal, AuditTrail(clock))
