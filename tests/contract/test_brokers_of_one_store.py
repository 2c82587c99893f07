"""What `OrderStore` and `MemberStore` promise to brokers that share a database, asked of each kind of store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typing_extensions import override

from certplane.broker.members.model import AccountKey
from certplane.broker.model import ChangeKind, Order, OrderState, TxtRecord
from certplane.broker.ports import CacheLook, ChangeFollower, OrderChange
from certplane.errors import Reason, RefusalError
from tests.support.stores import NO_LIMITS, StoreHarness, certificate, draft, member
from tests.support.waiting import HANG

SPAN = timedelta(seconds=20)
RECORDS = (TxtRecord("example.org", "_acme-challenge.example.org", "value-1"),)


async def not_found(waiting: Any) -> None:
    with pytest.raises(RefusalError) as caught:
        await waiting
    assert caught.value.refusal.reason is Reason.ORDER_NOT_FOUND


async def test_each_broker_has_an_id_of_its_own(store: StoreHarness, other: StoreHarness) -> None:
    """Orders name it as their holder."""
    order = await store.open_order()
    assert (order.holder, order.epoch) == (store.stores.members.broker_id, 1)
    assert store.stores.orders.holder == store.stores.members.broker_id != other.stores.members.broker_id


async def test_orders_of_a_living_broker_are_its_own(store: StoreHarness, other: StoreHarness) -> None:
    """Nobody takes them, nor does it take them again itself."""
    await store.stores.members.renew(member(store), SPAN)
    await store.open_order()
    assert await other.stores.orders.take_orders(10) == []
    assert await store.stores.orders.take_orders(10) == []


async def test_orders_whose_lease_has_ended_are_taken_once(store: StoreHarness, other: StoreHarness) -> None:
    """The oldest first, as many as were asked for; each has another holder, and its epoch has risen."""
    await store.stores.members.renew(member(store), timedelta())
    left = []
    for number in range(3):
        left.append(await store.open_order(public_key_sha256=f"key-{number}"))
        store.clock.advance(timedelta(seconds=1))
    await other.stores.members.renew(member(other), SPAN)
    taken = await other.stores.orders.take_orders(2)
    assert [order.order_id for order in taken] == [order.order_id for order in left[:2]]
    assert {(order.holder, order.epoch) for order in taken} == {(other.stores.members.broker_id, 2)}
    assert await other.stores.orders.get_order(left[0].order_id) == taken[0]
    assert [order.order_id for order in await other.stores.orders.take_orders(10)] == [left[2].order_id]
    assert await other.stores.orders.take_orders(10) == []


async def test_what_was_given_back_is_taken_at_once(store: StoreHarness, other: StoreHarness) -> None:
    """A broker that stops makes nobody wait for the end of its lease; what has ended whole is nobody's to take."""
    await store.stores.members.renew(member(store), SPAN)
    order = await store.open_order()
    ended = await store.open_order(public_key_sha256="key-b")
    await store.stores.orders.change_order(ended, OrderChange(state=OrderState.FAILED))
    await store.stores.orders.give_back_orders()
    (taken,) = await other.stores.orders.take_orders(10)
    assert (taken.order_id, taken.holder) == (order.order_id, other.stores.members.broker_id)
    assert taken.epoch > order.epoch
    assert (await store.stores.orders.get_order(ended.order_id)).holder == store.stores.members.broker_id


async def test_an_ended_order_with_records_is_taken_too(store: StoreHarness, other: StoreHarness) -> None:
    """Somebody has to remove them."""
    order = await store.open_order()
    await store.stores.orders.change_order(order, OrderChange(txt_records=RECORDS))
    await store.stores.orders.change_order(order, OrderChange(state=OrderState.FAILED))
    (taken,) = await other.stores.orders.take_orders(10)
    assert taken.txt_records == RECORDS
    assert (await other.stores.orders.change_order(taken, OrderChange(txt_records=()))).txt_records == ()


async def test_a_broker_that_was_stopped_writes_nothing_on_what_others_took(
    store: StoreHarness, other: StoreHarness
) -> None:
    """No change, no end and no certificate of it; and no event."""
    order = await store.open_order()
    (taken,) = await other.stores.orders.take_orders(10)
    late = store.stores.orders
    record = certificate(order, "certificate-1", store.clock.now(), timedelta(days=90))
    for write in (
        late.change_order(order, OrderChange(acme_order_url="https://ca.example/late"), [store.event()]),
        late.change_order(order, OrderChange(state=OrderState.FAILED, block_key=True), [store.event()]),
        late.finish_order(order, record, [store.event()]),
    ):
        await not_found(write)
    assert await other.stores.orders.get_order(order.order_id) == taken
    assert await other.stores.certificates.get_certificate("certificate-1") is None
    assert not (await other.stores.keys.key_use(order.public_key_sha256)).blocked
    assert await store.event_ids() == []


async def test_an_order_that_came_back_is_fenced_all_the_same(store: StoreHarness, other: StoreHarness) -> None:
    """Taken by another one and then taken again: what was decided before counts no more."""
    order = await store.open_order()
    await other.stores.orders.take_orders(10)
    await other.stores.orders.give_back_orders()
    (again,) = await store.stores.orders.take_orders(10)
    assert again.holder == order.holder
    await not_found(store.stores.orders.change_order(order, OrderChange(acme_order_url="https://ca.example/late")))
    changed = await store.stores.orders.change_order(again, OrderChange(acme_order_url="https://ca.example/1"))
    assert changed.acme_order_url == "https://ca.example/1"


async def test_two_that_take_at_once_share_what_is_left(store: StoreHarness, other: StoreHarness) -> None:
    """No order is taken twice."""
    for number in range(40):
        await store.open_order(public_key_sha256=f"key-{number}")
    await store.stores.orders.give_back_orders()

    async def take_all(mine: StoreHarness) -> list[Order]:
        await mine.stores.members.renew(member(mine), SPAN)
        taken: list[Order] = []
        while some := await mine.stores.orders.take_orders(4):
            taken += some
        return taken

    first, second = await asyncio.gather(take_all(store), take_all(other))
    ids = [order.order_id for order in (*first, *second)]
    assert len(ids) == len(set(ids)) == 40


async def test_equal_requests_at_two_brokers_are_one_order(store: StoreHarness, other: StoreHarness) -> None:
    """Whichever is second joins; it is told so, and its events aren't written."""
    for number in range(20):
        wanted = draft(public_key_sha256=f"key-{number}")
        opened = await asyncio.gather(
            *(each.stores.orders.open_order(wanted, NO_LIMITS, [each.event()]) for each in (store, other))
        )
        assert len({one.order.order_id for one in opened}) == 1
        assert sorted(one.created for one in opened) == [False, True]
    assert len(await store.event_ids()) == 20


async def test_a_key_at_two_brokers_is_one_identity_s(store: StoreHarness, other: StoreHarness) -> None:
    """The other one is refused, and has no order."""
    for number in range(20):
        key = f"key-{number}"
        results = await asyncio.gather(
            store.stores.orders.open_order(draft(public_key_sha256=key), NO_LIMITS, []),
            other.stores.orders.open_order(draft(public_key_sha256=key, identity="other"), NO_LIMITS, []),
            return_exceptions=True,
        )
        (error,) = [result for result in results if isinstance(result, RefusalError)]
        assert error.refusal.reason is Reason.KEY_REUSED
    assert len(await store.stores.orders.unfinished_orders()) == 20


async def test_a_certificate_that_came_since_the_look_is_found(store: StoreHarness, other: StoreHarness) -> None:
    """No second order for its key, whichever broker has worked on the first one."""
    wanted = draft()
    look = CacheLook((wanted.issuer,), "")
    order = await other.open_order()
    record = certificate(order, "certificate-1", store.clock.now(), timedelta(days=90))
    await other.stores.orders.finish_order(order, record, [])
    assert await store.stores.orders.open_order(wanted, NO_LIMITS, [store.event()], look=look) is None
    assert await store.event_ids() == []
    seen = CacheLook((wanted.issuer,), "certificate-1")
    assert (await store.stores.orders.open_order(wanted, NO_LIMITS, [], look=seen)).created


async def test_a_broker_that_is_known_to_have_ended_keeps_nothing(store: StoreHarness, other: StoreHarness) -> None:
    """Nobody waits for the end of its lease, and whoever said so is told whether it had one."""
    await store.stores.members.renew(member(store), SPAN)
    order = await store.open_order()
    assert await other.stores.members.end(store.stores.members.broker_id)
    assert not await other.stores.members.end(store.stores.members.broker_id)
    assert await other.stores.members.living() == []
    assert [taken.order_id for taken in await other.stores.orders.take_orders(10)] == [order.order_id]


async def test_members(store: StoreHarness, other: StoreHarness) -> None:
    """Who has a lease is there, with what it last said; a lease that ended, or was given back, is nobody's."""
    assert await store.stores.members.living() == []
    assert not (await store.stores.members.renew(member(store), SPAN)).stood
    facts = {
        "stream_count": 7,
        "audit_mode": "fail_open",
        "account_keys": (AccountKey("first", "a1"), AccountKey("second", "b2")),
        "clock_skew": timedelta(seconds=-3),
        "reuse_port": True,
    }
    assert (await store.stores.members.renew(member(store, **facts), SPAN)).stood
    store.clock.advance(timedelta(seconds=1))
    assert not (await other.stores.members.renew(member(other), SPAN)).stood
    first, second = await other.stores.members.living()
    assert first.lease_until is not None
    start = first.start_time
    assert replace(first, lease_until=None) == replace(member(store, **facts), start_time=start)
    assert (second.broker_id, second.account_keys) == (other.stores.members.broker_id, ())
    await store.stores.members.leave()
    assert [each.broker_id for each in await store.stores.members.living()] == [other.stores.members.broker_id]
    await other.stores.members.renew(member(other), timedelta())
    assert await store.stores.members.living() == []
    assert not (await other.stores.members.renew(member(other), SPAN)).stood


async def test_a_renewal_tells_the_database_s_time(store: StoreHarness) -> None:
    """From which the broker sees how far its own clock is off."""
    before = datetime.now(UTC) if store.place.kind == "postgresql" else store.clock.now()
    renewal = await store.stores.members.renew(member(store), SPAN)
    (me,) = await store.stores.members.living()
    assert me.lease_until == renewal.time + SPAN
    assert abs(renewal.time - before) < timedelta(seconds=HANG)


async def test_a_member_whose_lease_has_ended_is_removed(store: StoreHarness, other: StoreHarness) -> None:
    """By whoever renews next: the table has those that run, and what died lately."""
    await store.stores.members.renew(member(store), timedelta())
    await other.stores.members.renew(member(other), SPAN)
    await store.stores.members.renew(member(store), timedelta())
    assert [each.broker_id for each in await other.stores.members.living()] == [other.stores.members.broker_id]


class Heard(ChangeFollower):
    """How often a store was told of its kind of change."""

    def __init__(self) -> None:
        self.count = 0

    @override
    async def reread(self, since: datetime) -> None:
        pass

    @override
    async def changed(self, keys: Sequence[str]) -> None:
        self.count += 1


async def test_others_hear_of_what_a_member_says(store: StoreHarness, other: StoreHarness) -> None:
    """That it came, says something else, left, or died; not how many streams it has: that would be a row each time."""
    if store.place.kind != "postgresql":
        pytest.skip("one broker has no others")
    mine, heard = store.stores.members, Heard()
    other.stores.changes.follow(ChangeKind.MEMBER, heard, what="members")
    await other.stores.changes.look()

    async def told(change: Any) -> bool:
        before = heard.count
        await change
        await other.stores.changes.look()
        return heard.count > before

    assert await told(mine.renew(member(store), SPAN))
    assert not await told(mine.renew(member(store, stream_count=9, clock_skew=SPAN), SPAN))
    assert await told(mine.renew(member(store, audit_mode="off"), SPAN))
    assert await told(mine.leave())
    await other.stores.members.renew(member(other), timedelta())
    assert await told(mine.renew(member(store), timedelta()))
    assert await told(mine.renew(member(store), SPAN)), "its lease had ended"
