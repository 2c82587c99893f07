"""What `RoleStore` promises to brokers that share a database, asked of each kind of store."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tests.support.stores import StoreHarness, member

SPAN = timedelta(seconds=20)
ROLES = ("one", "other")


async def join(*stores: StoreHarness) -> None:
    for store in stores:
        await store.stores.members.renew(member(store), SPAN)


async def test_a_role_is_one_broker_s(store: StoreHarness, other: StoreHarness) -> None:
    """Whoever comes first has it, for as long as its own lease stands; nothing is to be renewed."""
    await join(store, other)
    assert await store.stores.roles.take(ROLES) == {"one": 1, "other": 1}
    assert await other.stores.roles.take(ROLES) == {}
    assert await other.stores.members.roles() == {store.stores.members.broker_id: [*ROLES]}


async def test_a_role_of_a_broker_that_has_gone_is_free(store: StoreHarness, other: StoreHarness) -> None:
    """Its epoch rises with each take."""
    await join(store, other)
    await store.stores.roles.take(ROLES)
    await store.stores.members.leave()
    assert await other.stores.roles.take(["one"]) == {"one": 2}
    assert (await other.stores.members.roles())[other.stores.members.broker_id] == ["one"]


async def test_a_role_of_a_lease_that_has_ended_is_free(store: StoreHarness, other: StoreHarness) -> None:
    """The broker that stood still finds it taken."""
    await store.stores.members.renew(member(store), timedelta())
    await join(other)
    await store.stores.roles.take(ROLES)
    assert await other.stores.roles.take(["one"]) == {"one": 2}
    await join(store)
    assert await store.stores.roles.take(ROLES) == {"other": 2}


async def test_a_role_that_was_given_back_is_free(store: StoreHarness, other: StoreHarness) -> None:
    """Only one's own can be given back, and others hear of it."""
    await join(store, other)
    await store.stores.roles.take(ROLES)
    await other.stores.roles.give_back(ROLES)
    assert await other.stores.roles.take(ROLES) == {}
    await store.stores.roles.give_back(["one"])
    assert await other.stores.roles.take(ROLES) == {"one": 2}


async def test_two_that_take_at_once_share_the_roles(store: StoreHarness, other: StoreHarness) -> None:
    """None has two holders, and none stays without."""
    await join(store, other)
    for number in range(20):
        roles = [f"{number}-{role}" for role in ROLES]
        taken = await asyncio.gather(*(each.stores.roles.take(roles) for each in (store, other)))
        assert sorted([*taken[0], *taken[1]]) == roles
        holders = await store.stores.members.roles()
        for each, its in zip((store, other), taken, strict=True):
            assert its.keys() <= {*holders.get(each.stores.members.broker_id, ())}


async def test_nothing_is_taken_or_given_back(store: StoreHarness) -> None:
    """No transaction for no role."""
    assert await store.stores.roles.take([]) == {}
    await store.stores.roles.give_back([])
