"""What `EpochStore` promises to brokers that share a database, asked of each kind of store."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from certplane.broker.model import ChangeKind
from tests.support.stores import StoreHarness, member

SPAN = timedelta(seconds=20)
REST = timedelta(seconds=30)


async def test_the_only_broker_begins_with_an_epoch_of_its_own(store: StoreHarness, other: StoreHarness) -> None:
    """At each start; a lease that has ended is nobody's, and its own doesn't count."""
    assert await store.stores.retry_epoch.current() == ""
    assert await store.stores.retry_epoch.begin("one") == "one"
    await store.stores.members.renew(member(store), SPAN)
    await other.stores.members.renew(member(other), timedelta())
    assert await store.stores.retry_epoch.begin("two") == "two"
    assert await other.stores.retry_epoch.current() == "two"


async def test_one_that_starts_where_others_live_takes_theirs(store: StoreHarness, other: StoreHarness) -> None:
    """No host hears of another one since a broker has come; the first one that shares it makes it."""
    await store.stores.members.renew(member(store), SPAN)
    assert await other.stores.retry_epoch.begin("one") == "one"
    assert await other.stores.retry_epoch.begin("two") == "one"


async def test_two_that_start_at_once_have_one(store: StoreHarness, other: StoreHarness) -> None:
    """Neither has a lease yet: whoever writes last hears what the other one has written, or both hear the last."""
    for number in range(10):
        begun = await asyncio.gather(
            store.stores.retry_epoch.begin(f"a{number}"), other.stores.retry_epoch.begin(f"b{number}")
        )
        assert await store.stores.retry_epoch.current() in begun


async def test_a_move_is_refused_while_the_last_one_is_young(store: StoreHarness, other: StoreHarness) -> None:
    """Whoever made it; what is in force is told then, and for how long it has been. A person isn't made to wait."""
    first, second = store.stores.retry_epoch, other.stores.retry_epoch
    assert await first.move("one", REST) == ("one", timedelta())
    store.clock.advance(timedelta(seconds=1))
    name, age = await second.move("two", REST)
    assert name == "one"
    assert timedelta() < age < REST
    assert await second.move("two", timedelta()) == ("two", timedelta())
    assert await first.current() == "two"


async def test_a_move_is_made_after_that(store: StoreHarness, other: StoreHarness) -> None:
    """By the database's clock, which a test of PostgreSQL can't set: it sets the row's time back."""
    await store.stores.retry_epoch.move("one", REST)
    store.clock.advance(REST)
    if store.place.kind == "postgresql":
        store.place.execute("UPDATE shared_values SET change_time = change_time - 30000000")
    assert await other.stores.retry_epoch.move("two", REST) == ("two", timedelta())


async def test_a_clock_that_was_set_back_does_not_keep_it(store: StoreHarness) -> None:
    """A move of the future is none."""
    await store.stores.retry_epoch.move("one", REST)
    if store.place.kind == "postgresql":
        store.place.execute("UPDATE shared_values SET change_time = change_time + 3600000000")
    else:
        store.clock.jump(-timedelta(hours=1))
    assert await store.stores.retry_epoch.move("two", REST) == ("two", timedelta())


async def test_other_brokers_are_told_of_each_move(store: StoreHarness) -> None:
    """Of a start's too, and of no move that wasn't made."""
    await store.stores.retry_epoch.begin("one")
    await store.stores.retry_epoch.move("two", REST)
    await store.stores.retry_epoch.move("three", timedelta())
    if store.place.kind == "memory":
        return
    told = store.place.query(f"SELECT key FROM changes WHERE kind = '{ChangeKind.RETRY_EPOCH}'")  # noqa: S608 - an enum's
    assert told == ([("",)] * 2 if store.place.kind == "postgresql" else [])
