"""What `AllAccounts` promises, of the fake and of each kind of store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from certplane.broker.accounts.model import Account
from certplane.broker.accounts.ports import AllAccounts
from certplane.broker.model import ChangeKind
from tests.contract.test_change_feed import Follower
from tests.fakes.accounts import FakeAccounts
from tests.support.stores import StoreHarness

DIRECTORY = "https://ca.example/directory"
FIRST = Account("default", DIRECTORY, "a" * 64, bytes(range(256)))


@pytest_asyncio.fixture(params=["stored", "fake"])
async def pair(request: pytest.FixtureRequest, store: StoreHarness) -> AsyncIterator[tuple[AllAccounts, AllAccounts]]:
    """The rows as two programs see them."""
    if request.param == "fake":
        if store.place.kind != "memory":
            pytest.skip("the fake has one kind")
        yield (fake := FakeAccounts()), fake
    elif store.place.kind == "memory":
        yield store.stores.accounts, store.stores.accounts
    else:
        async with store.place.open(store.clock, exclusive=False) as stores:
            yield store.stores.accounts, stores.accounts


async def test_what_is_written_is_found(pair: tuple[AllAccounts, AllAccounts]) -> None:
    """Octets and all, by issuer and directory; another directory is another account."""
    rows, others = pair
    assert await rows.find("default", DIRECTORY) is None
    assert await rows.change(None, FIRST) == FIRST
    assert await others.find("default", DIRECTORY) == FIRST
    assert await others.find("default", "https://staging.example/directory") is None
    elsewhere = replace(FIRST, directory_url="https://staging.example/directory", sealed_key=None)
    assert await others.change(None, elsewhere) == elsewhere
    assert await rows.all() == [FIRST, elsewhere]


async def test_only_what_was_seen_is_changed(pair: tuple[AllAccounts, AllAccounts]) -> None:
    """Who is late gets what stands; who repeats what an answer got lost of finds it done."""
    rows, others = pair
    await rows.change(None, FIRST)
    assert await others.change(None, replace(FIRST, public_key_sha256="b" * 64)) == FIRST
    begun = replace(FIRST, next_key_sha256="c" * 64, sealed_next_key=b"\0next")
    assert await others.change(FIRST, begun) == begun
    assert await rows.change(FIRST, replace(FIRST, next_key_sha256="d" * 64)) == begun
    assert await rows.change(FIRST, begun) == begun
    ended = Account("default", DIRECTORY, "c" * 64, b"\0next")
    assert await rows.change(begun, ended) == ended == await others.find("default", DIRECTORY)


async def test_the_first_insert_decides(pair: tuple[AllAccounts, AllAccounts]) -> None:
    """Of brokers that start at the same moment all have the same account."""
    made = [replace(FIRST, public_key_sha256=f"{number:064x}") for number in range(8)]
    stand = await asyncio.gather(*(pair[number % 2].change(None, each) for number, each in enumerate(made)))
    assert len(set(stand)) == 1
    assert await pair[0].all() == [stand[0]]


async def test_a_row_that_is_gone_is_written_again(pair: tuple[AllAccounts, AllAccounts]) -> None:
    """The server was restored to a time before it: the account is still the one that was seen."""
    after = replace(FIRST, public_key_sha256="b" * 64)
    assert await pair[0].change(FIRST, after) == after == await pair[1].find("default", DIRECTORY)


async def test_others_hear_of_it(store: StoreHarness) -> None:
    """Also a broker beside which a command changes the key, whatever the database."""
    if store.place.kind == "memory":
        pytest.skip("there is no other program")
    follower = Follower()
    store.stores.changes.follow(ChangeKind.ACCOUNT, follower, what="accounts")
    await store.stores.changes.look()
    async with store.place.open(store.clock, exclusive=False) as stores:
        await stores.accounts.change(None, FIRST)
        await stores.accounts.change(None, FIRST)  # which changes nothing
        await store.stores.changes.look()
        assert follower.told == ["default"]
