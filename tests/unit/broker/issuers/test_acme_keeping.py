"""Where an account's key is kept, and what a change of it leaves wherever it is cut off."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.broker.accounts.seal import SealKeys, account_context
from certplane.broker.issuers.acme_account import AccountKey, AccountKeyFile
from certplane.broker.issuers.acme_keeping import AccountKeeper, KeptInFile, KeptInSecret, KeptInStore, Seal
from certplane.errors import ConfigurationError, Reason, RefusalError
from certplane.pki.keys import KeyType, generate_private_key, private_key_pem
from certplane.runtime.pool import BlockingPool
from tests.fakes.accounts import FakeAccounts
from tests.fakes.secrets import FakeSecretSource

DIRECTORY = "https://ca.example/directory"
WHICH = ("default", DIRECTORY)
SEALS = [base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2)]


def pem() -> str:
    return private_key_pem(generate_private_key(KeyType.EC_P256)).decode()


class Places:
    """One of each, and what is behind it."""

    def __init__(self, folder: Path, pool: BlockingPool) -> None:
        self.folder = folder
        self.secrets = FakeSecretSource({"acme/key": pem(), "acme/key.next": pem(), "seal": SEALS[0]})
        self.rows = FakeAccounts()
        self.pool = pool

    def keeper(self, kind: str) -> AccountKeeper:
        """Another broker's, or the next start's, of the same key."""
        if kind == "file":
            return KeptInFile(AccountKeyFile(self.folder / "account.key"), self.pool)
        if kind == "secret":
            return KeptInSecret(self.secrets, "acme/key", "issuer.acme.account_key.secret")
        seal = Seal(self.secrets, "seal")
        return KeptInStore(self.rows, *WHICH, seal, "issuer.acme.account_key.store")


@pytest_asyncio.fixture
async def places(tmp_path: Path) -> AsyncIterator[Places]:
    with closing(BlockingPool("files", 1)) as pool:
        yield Places(tmp_path, pool)


def sha(key: AccountKey | None) -> str:
    return "" if key is None else key.public_key_sha256


KINDS = pytest.mark.parametrize("kind", ["file", "secret", "store"])


@KINDS
async def test_one_key_for_all(places: Places, kind: str) -> None:
    """Who comes second has the key of the first; a change isn't under way by itself."""
    first = await places.keeper(kind).load()
    assert sha(await places.keeper(kind).load()) == sha(await places.keeper(kind).find()) == sha(first)
    if kind != "secret":
        assert await places.keeper(kind).pending() is None


@pytest.mark.parametrize("kind", ["file", "store"])
async def test_nothing_is_made_by_looking(places: Places, kind: str) -> None:
    """Commands look, and a broker makes."""
    assert await places.keeper(kind).find() is None
    assert await places.keeper(kind).pending() is None
    assert not places.rows.rows
    assert not list(places.folder.iterdir())


@KINDS
async def test_a_change_that_is_cut_off_goes_on_with_the_same_key(places: Places, kind: str) -> None:
    """The CA may have it already."""
    old = await places.keeper(kind).load()
    new = await places.keeper(kind).prepare()
    assert sha(await places.keeper(kind).pending()) == sha(await places.keeper(kind).prepare()) == sha(new) != sha(old)
    assert sha(await places.keeper(kind).find()) == sha(old)


@pytest.mark.parametrize("kind", ["file", "store"])
@pytest.mark.parametrize("taken", [True, False])
async def test_a_change_ends(places: Places, kind: str, taken: bool) -> None:
    """With the key that the CA has; again is nothing."""
    old = await places.keeper(kind).load()
    new = await places.keeper(kind).prepare()
    for _ in range(2):
        await places.keeper(kind).settle(new, taken=taken)
        assert sha(await places.keeper(kind).find()) == sha(new if taken else old)
        assert await places.keeper(kind).pending() is None


async def test_the_operator_ends_a_change_of_a_secret(places: Places, caplog: pytest.LogCaptureFixture) -> None:
    """The broker says once what to do, and finds nothing to do when it is done."""
    keeper = places.keeper("secret")
    new = await keeper.prepare()
    for _ in range(2):
        await keeper.settle(new, taken=True)
        assert sha(await keeper.find()) == sha(new)
    assert caplog.text.count("put it into 'acme/key' too") == 1
    taken = places.secrets.secrets.pop("acme/key.next")
    with pytest.raises(ConfigurationError, match="isn't the account's key any more, which is " + sha(new)):
        await keeper.find()
    places.secrets.secrets["acme/key"], old = pem(), places.secrets.secrets["acme/key"]
    assert sha(await keeper.find()) not in ("", sha(new)), "a later change, of which this broker hasn't heard"
    places.secrets.secrets |= {"acme/key": old, "acme/key.next": taken}
    places.secrets.secrets["acme/key"] = places.secrets.secrets["acme/key.next"]
    assert sha(await keeper.find()) == sha(new)
    with pytest.raises(ConfigurationError, match=r"hold the same key; put a new one into 'acme/key\.next'"):
        await keeper.prepare()
    del places.secrets.secrets["acme/key.next"]
    assert await keeper.pending() is None
    with pytest.raises(ConfigurationError, match=r"put a new key into the secret 'acme/key\.next'"):
        await keeper.prepare()


async def test_brokers_that_start_at_once_have_one_key(places: Places) -> None:
    """The first row decides."""
    keys = await asyncio.gather(*(places.keeper("store").load() for _ in range(5)))
    assert len({sha(key) for key in keys}) == 1
    assert [row.public_key_sha256 for row in places.rows.rows.values()] == [sha(keys[0])]


async def test_nothing_in_the_database_is_readable(places: Places) -> None:
    """Neither key is, without the secret."""
    keeper = places.keeper("store")
    keys = await keeper.load(), await keeper.prepare()
    (row,) = places.rows.rows.values()
    assert row.sealed_key is not None
    assert row.sealed_next_key is not None
    for key, sealed in zip(keys, (row.sealed_key, row.sealed_next_key), strict=True):
        der = key.jwk.key.private_numbers().private_value.to_bytes(32, "big")
        assert der not in sealed
        assert b"PRIVATE" not in sealed
        assert SealKeys(SEALS[0]).unseal(sealed, account_context(*WHICH)) == key.pem()
    assert "sealed" not in repr(row)


async def test_a_change_that_another_program_threw_away_is_kept(places: Places) -> None:
    """Of two that change the key at once one is refused by the CA: what the other one has is not lost with it."""
    await places.keeper("store").load()
    new = await places.keeper("store").prepare()
    await places.keeper("store").settle(new, taken=False)
    await places.keeper("store").settle(new, taken=True)
    assert sha(await places.keeper("store").find()) == sha(new)


async def test_a_write_that_is_cut_off_is_repeated(places: Places) -> None:
    """The row says which key is next until it says that it is the key."""
    await places.keeper("store").load()
    new = await places.keeper("store").prepare()
    unavailable = RefusalError(Reason.STORE_UNAVAILABLE, "away")
    for fail in (places.rows.faults.fail, places.rows.faults.fail_after):
        fail("change", unavailable)
        with pytest.raises(RefusalError):
            await places.keeper("store").settle(new, taken=True)
    assert sha(await places.keeper("store").find()) == sha(new)
    await places.keeper("store").settle(new, taken=True)
    assert sha(await places.keeper("store").find()) == sha(new)
    assert await places.keeper("store").pending() is None


async def _no_secret(places: Places) -> None:
    del places.secrets.secrets["seal"]


async def _another_secret(places: Places) -> None:
    places.secrets.secrets["seal"] = SEALS[1]


async def _a_password(places: Places) -> None:
    places.secrets.secrets["seal"] = "opensesame"


async def _another_issuers(places: Places) -> None:
    row = places.rows.rows.pop(WHICH)
    places.rows.rows[WHICH] = replace(
        row, sealed_key=SealKeys(SEALS[0]).seal(pem().encode(), account_context("other", DIRECTORY))
    )


async def _another_key(places: Places) -> None:
    row = places.rows.rows[WHICH]
    places.rows.rows[WHICH] = replace(row, public_key_sha256="0" * 64)


async def _kept_elsewhere(places: Places) -> None:
    row = places.rows.rows[WHICH]
    places.rows.rows[WHICH] = replace(row, sealed_key=None)


@pytest.mark.parametrize(
    ("spoil", "setting", "said"),
    [
        (_no_secret, "store.seal_secret", "there is no secret named 'seal'"),
        (_another_secret, "store.seal_secret", "was sealed with another secret .*; this broker's secret is 'seal'"),
        (_a_password, "store.seal_secret", "the secret 'seal' isn't base64; make one with"),
        (_another_issuers, "store.seal_secret", "was sealed for another issuer or directory, or is damaged"),
        (_another_key, "issuer.acme.account_key.store", "and 0000.* stands beside it"),
        (_kept_elsewhere, "issuer.acme.account_key.store", "`certplane-broker account import FILE --issuer default`"),
    ],
)
async def test_what_cannot_be_unsealed(
    places: Places, spoil: Callable[[Places], Awaitable[None]], setting: str, said: str
) -> None:
    """The secret is named, nothing of it is quoted, and no other key is made in place of the one that is there."""
    await places.keeper("store").load()
    await spoil(places)
    before = dict(places.rows.rows)
    with pytest.raises(ConfigurationError, match=said) as caught:
        await places.keeper("store").load()
    (problem,) = caught.value.problems
    assert problem.key == setting
    assert problem.remedy
    assert not [seal for seal in (*SEALS, "opensesame") if seal in str(problem)]
    assert places.rows.rows == before


async def test_the_seal_secret_is_replaced_without_a_restart(places: Places) -> None:
    """It is read at each use: a new one first, the old one behind it until all is sealed anew."""
    keeper = places.keeper("store")
    key = await keeper.load()
    places.secrets.secrets["seal"] = "\n".join(reversed(SEALS))
    assert sha(await keeper.find()) == sha(key)
    await keeper.settle(new := await keeper.prepare(), taken=True)
    places.secrets.secrets["seal"] = SEALS[1]
    assert sha(await keeper.find()) == sha(new)


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("", "there is no secret named 'acme/key'; put the account's key there, PEM; for a new account, `openssl"),
        ("tell", "the account key can't be used: not a private key in PEM"),
    ],
)
async def test_a_secret_that_is_no_key(places: Places, secret: str, said: str) -> None:
    """It is refused with its name, and not quoted."""
    places.secrets.secrets["acme/key"] = secret
    with pytest.raises(ConfigurationError, match=said) as caught:
        await places.keeper("secret").load()
    assert "'acme/key'" in str(caught.value)
    assert "tell" not in str(caught.value)


@pytest.mark.parametrize("kind", ["secret", "store"])
async def test_what_is_away_is_no_reason_for_another_key(places: Places, kind: str) -> None:
    """A store or vault that doesn't answer is told as such."""
    await places.keeper(kind).load()
    fault, name = (places.secrets.faults, "read") if kind == "secret" else (places.rows.faults, "find")
    reason = Reason.DNS_UNAVAILABLE if kind == "secret" else Reason.STORE_UNAVAILABLE
    for ask in ("load", "find", "pending"):
        fault.fail(name, RefusalError(reason, "away"))
        with pytest.raises(RefusalError) as caught:
            await getattr(places.keeper(kind), ask)()
        assert caught.value.refusal.reason is reason
