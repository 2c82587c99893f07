"""Where an account's key is kept: in a file, in a secret, or sealed in the database.

A change of the key begins by keeping the new one beside it, before the CA hears of it, and ends when the CA has
answered (`acme_registration`). So there are two keys meanwhile, of which the CA knows one.

| kept in | made on first use | the new key of a change | a change ends |
|---|---|---|---|
| a file | yes | the file `NAME.next` | that file is renamed |
| a secret | no: brokers write no secrets | the secret `NAME.next`, an operator's | when the operator has copied it |
| the database | yes, sealed; the first broker's is everybody's | in the same row | the row is written |
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final, Protocol

from typing_extensions import override

from certplane.broker.accounts.model import Account
from certplane.broker.accounts.ports import AccountRows
from certplane.broker.accounts.seal import HOW_TO_MAKE, SealError, SealKeys, account_context
from certplane.broker.issuers.acme_account import AccountKey, AccountKeyFile
from certplane.broker.ports import SecretSource
from certplane.errors import ConfigurationError, ConfigurationProblem, Reason, RefusalError
from certplane.pki.keys import KeyType, generate_private_key, private_key_pem
from certplane.runtime.pool import BlockingPool

_log = logging.getLogger(__name__)

NEXT: Final = ".next"
"""After the name of a secret: that of the new key while a change is under way."""
_SEAL_SETTING: Final = "store.seal_secret"
_HOW_TO_MAKE_A_KEY: Final = "`openssl ecparam -name prime256v1 -genkey -noout` makes one"


class AccountKeeper(Protocol):
    """Keeps the key of one account.

    All methods raise `ConfigurationError` where what is kept can't be used or isn't there, and `RefusalError` where it
    can't be reached now (STORE_UNAVAILABLE of the database, DNS_UNAVAILABLE of what keeps secrets).
    """

    async def find(self) -> AccountKey | None:
        """The key, None if there is none yet."""
        ...

    async def load(self) -> AccountKey:
        """The key, made and durable if there was none."""
        ...

    async def pending(self) -> AccountKey | None:
        """The new key of a change that has begun, None if there is no such change."""
        ...

    async def prepare(self) -> AccountKey:
        """A new key, durable before the CA hears of it; that of a change that was cut off is used again."""
        ...

    async def settle(self, new: AccountKey, *, taken: bool) -> None:
        """End a change: the CA answers to the new key, which is the key from now on, or has refused it."""
        ...


class KeptInFile(AccountKeeper):
    """`AccountKeeper` over the file of one machine."""

    def __init__(self, file: AccountKeyFile, pool: BlockingPool) -> None:
        """Nothing is read yet; `pool` is where files are read and written."""
        self._file, self._pool = file, pool

    @override
    async def find(self) -> AccountKey | None:
        return await self._pool.run(lambda: self._file.load() if self._file.exists else None)

    @override
    async def load(self) -> AccountKey:
        return await self._pool.run(self._file.load)

    @override
    async def pending(self) -> AccountKey | None:
        return await self._pool.run(self._file.pending)

    @override
    async def prepare(self) -> AccountKey:
        return await self._pool.run(self._file.prepare)

    @override
    async def settle(self, new: AccountKey, *, taken: bool) -> None:
        await self._pool.run(self._file.confirm if taken else self._file.discard)


class KeptInSecret(AccountKeeper):
    """`AccountKeeper` over a secret that operators put where brokers read secrets."""

    def __init__(self, secrets: SecretSource, name: str, setting: str) -> None:
        """Nothing is read yet; `setting` is the key that names the secret, for errors."""
        self._secrets, self._name, self._setting = secrets, name, setting
        self._settled: tuple[str, bool] = ("", False)
        self._replaced: dict[str, str] = {}
        """The keys that were the account's, and which took their places (SHA-256), as far as this process knows."""

    @override
    async def find(self) -> AccountKey:
        key = await self._read(self._name)
        taken = self._replaced.get(key.public_key_sha256)
        if taken is None:
            return key
        # It isn't copied yet. Whoever asked the CA with the old key would make a second account.
        new = await self.pending()
        if new is not None and new.public_key_sha256 == taken:
            return new
        message = f"the secret {self._name!r} isn't the account's key any more, which is {taken}"
        remedy = f"put into it what was in {self._name + NEXT!r}; for another account, restart the broker"
        raise _problem(self._setting, message, remedy)

    @override
    async def load(self) -> AccountKey:
        return await self.find()

    @override
    async def pending(self) -> AccountKey | None:
        try:
            return await self._read(self._name + NEXT, there=False)
        except RefusalError as error:
            if error.refusal.reason is Reason.DNS_REJECTED:  # of a secret source: there is none, or not for us
                return None
            raise

    @override
    async def prepare(self) -> AccountKey:
        name = self._name + NEXT
        new = await self.pending()
        if new is None:
            remedy = f"put a new key into the secret {name!r} ({_HOW_TO_MAKE_A_KEY}), then repeat the command"
            raise _problem(self._setting, f"the broker writes no secrets, and there is none named {name!r}", remedy)
        if new.public_key_sha256 == (await self._read(self._name)).public_key_sha256:
            message = f"the secrets {self._name!r} and {name!r} hold the same key"
            raise _problem(self._setting, message, f"put a new one into {name!r}: {_HOW_TO_MAKE_A_KEY}")
        return new

    @override
    async def settle(self, new: AccountKey, *, taken: bool) -> None:
        name, sha256 = self._name + NEXT, new.public_key_sha256
        before, self._settled = self._settled, (sha256, taken)
        if before == self._settled:
            return
        if not taken:
            _log.warning("the CA has refused the key of the secret %r, which isn't used", name)
        elif (old := (await self._read(self._name)).public_key_sha256) != sha256:
            self._replaced[old] = sha256
            _log.warning("the account's key is that of the secret %r now: put it into %r too", name, self._name)

    async def _read(self, name: str, *, there: bool = True) -> AccountKey:
        try:
            pem = await self._secrets.read(name)
        except RefusalError as error:
            if there and error.refusal.reason is Reason.DNS_REJECTED:
                remedy = f"put the account's key there, PEM; for a new account, {_HOW_TO_MAKE_A_KEY}"
                raise _problem(self._setting, error.refusal.message, remedy) from error
            raise
        return AccountKey.from_pem(pem.encode(), f"the secret {name!r}", self._setting)


class Seal:
    """The secret of `store.seal_secret`, read anew for each use, so that one that was replaced is taken at once."""

    def __init__(self, secrets: SecretSource, name: str) -> None:
        """Nothing is read yet."""
        self._secrets, self.name = secrets, name

    async def keys(self) -> SealKeys:
        """What seals and unseals.

        Raises:
            ConfigurationError: there is no such secret, or it can't seal.
            RefusalError: DNS_UNAVAILABLE, what keeps secrets can't be reached.
        """
        try:
            return SealKeys(await self._secrets.read(self.name))
        except RefusalError as error:
            if error.refusal.reason is not Reason.DNS_REJECTED:
                raise
            remedy = f"give this broker the secret that the other brokers have; for the first one {HOW_TO_MAKE}"
            raise _problem(_SEAL_SETTING, error.refusal.message, remedy) from error
        except SealError as error:
            raise _problem(_SEAL_SETTING, f"the secret {self.name!r} {error}", HOW_TO_MAKE) from None


class KeptInStore(AccountKeeper):
    """`AccountKeeper` over the brokers' database: one key for all of them.

    Every write is over what was read: who is late takes what stands. The key of a change that the CA has taken is
    written from memory, so that nothing that another program does to the row meanwhile can lose it.
    """

    def __init__(self, rows: AccountRows, issuer: str, directory_url: str, seal: Seal, setting: str) -> None:
        """Nothing is read yet; `setting` is the issuer's `account_key`, for errors."""
        self._rows, self._issuer, self._directory, self._seal = rows, issuer, directory_url, seal
        self._setting = setting
        self._context = account_context(issuer, directory_url)

    @override
    async def find(self) -> AccountKey | None:
        row = await self._row()
        return None if row is None else await self._key(row)

    @override
    async def load(self) -> AccountKey:
        row = await self._row()
        if row is None:
            made = _new_key()
            mine = Account(self._issuer, self._directory, made.public_key_sha256, await self._sealed(made))
            row = await self._rows.change(None, mine)
            if row == mine:
                fields = {"issuer": self._issuer, "public_key_sha256": made.public_key_sha256}
                _log.warning("the account's key was made and is in the database, sealed", extra={"fields": fields})
        return await self._key(row)

    @override
    async def pending(self) -> AccountKey | None:
        row = await self._row()
        return None if row is None else await self._next(row)

    @override
    async def prepare(self) -> AccountKey:
        row = await self._row()
        if row is None:
            raise RuntimeError("a change of a key begins with the key")
        if row.sealed_next_key is None:
            made = _new_key()
            begun = replace(row, next_key_sha256=made.public_key_sha256, sealed_next_key=await self._sealed(made))
            row = await self._rows.change(row, begun)
        new = await self._next(row)
        if new is None:  # another program has ended the change of before between the two
            raise RefusalError(Reason.STORE_UNAVAILABLE, "the account's key was just changed by another program")
        return new

    @override
    async def settle(self, new: AccountKey, *, taken: bool) -> None:
        sha256 = new.public_key_sha256
        sealed = await self._sealed(new) if taken else None
        while True:
            row = await self._row()
            after = Account(self._issuer, self._directory, sha256, sealed)
            if not taken:
                if row is None or row.next_key_sha256 != sha256:
                    return
                after = replace(row, next_key_sha256="", sealed_next_key=None)
            elif row is not None and row.public_key_sha256 == sha256 and not row.next_key_sha256:
                return  # another broker has found it out before
            if await self._rows.change(row, after) == after:
                return

    async def _row(self) -> Account | None:
        return await self._rows.find(self._issuer, self._directory)

    async def _key(self, row: Account) -> AccountKey:
        if row.sealed_key is None:
            message = f"the database doesn't have the account's key {row.public_key_sha256}, which was elsewhere"
            remedy = f"take it in: `certplane-broker account import FILE --issuer {self._issuer}`"
            raise _problem(self._setting, message, remedy)
        return await self._unsealed(row.sealed_key, row.public_key_sha256)

    async def _next(self, row: Account) -> AccountKey | None:
        if row.sealed_next_key is None:
            return None
        return await self._unsealed(row.sealed_next_key, row.next_key_sha256)

    async def _sealed(self, key: AccountKey) -> bytes:
        return (await self._seal.keys()).seal(key.pem(), self._context)

    async def _unsealed(self, sealed: bytes, sha256: str) -> AccountKey:
        keys = await self._seal.keys()
        try:
            pem = keys.unseal(sealed, self._context)
        except SealError as error:
            message = f"the account's key in the database {error}; this broker's secret is {self._seal.name!r}"
            remedy = "give this broker the secret that the other brokers have, or restore the row from a backup"
            raise _problem(_SEAL_SETTING, message, remedy) from None
        key = AccountKey.from_pem(pem, "the database", self._setting)
        if key.public_key_sha256 != sha256:  # which no seal is about, so that rows can be compared without a secret
            message = f"the account's key in the database is {key.public_key_sha256}, and {sha256} stands beside it"
            raise _problem(self._setting, message, "restore the row from a backup, or correct `public_key_sha256`")
        return key


def _problem(setting: str, message: str, remedy: str) -> ConfigurationError:
    return ConfigurationError([ConfigurationProblem("", None, setting, message, remedy)])


def _new_key() -> AccountKey:
    return AccountKey.from_pem(private_key_pem(generate_private_key(KeyType.EC_P256)), "a new key")
