"""What `OrderStore`, `SharedOrders` and `MemberStore` promise to brokers that share a database, asked of each kind of store."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from typing_extensions import override

from certplane.broker.members.model import AccountKey
from certplane.broker.model import ChangeKind, Order, OrderState, TxtRecord
from certplane.broker.ports import CacheLook, ChangeFollower, DurableLimits, OrderChange
from certplane.broker.renewal.model import RenewalPlan, RequestedRenewal
from certplane.broker.store.schema import SCHEMA_REVISION
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
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


async def test_some_orders_are_given_back_and_others_kept(store: StoreHarness, other: StoreHarness) -> None:
    """Those that were named, and are its own."""
    await store.stores.members.renew(member(store), SPAN)
    await other.stores.members.renew(member(other), SPAN)
    waiting, running = [await store.open_order(public_key_sha256=key) for key in ("a", "b")]
    await other.stores.orders.give_back_orders([running.order_id])
    await store.stores.orders.give_back_orders([waiting.order_id])
    await store.stores.orders.give_back_orders([])
    assert [order.order_id for order in await other.stores.orders.take_orders(10)] == [waiting.order_id]


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


LANE = "lane-a"


async def live(*stores: StoreHarness) -> None:
    for each in stores:
        await each.stores.members.renew(member(each), SPAN)


async def take_lane(store: StoreHarness, order: Order, lane: str = LANE) -> tuple[Order, str]:
    taken: tuple[Order, str] = await store.stores.shared_orders.take_lane(order, lane)
    return taken


async def orders_of_age(*stores: StoreHarness) -> list[Order]:
    """An order of each broker, each younger than the one before."""
    made = []
    for number, each in enumerate(stores):
        made.append(await each.open_order(public_key_sha256=f"key-{number}"))
        each.clock.advance(timedelta(seconds=1))
    return made


async def test_a_lane_is_one_order_s(store: StoreHarness, other: StoreHarness) -> None:
    """Another broker's waits behind it, and so does one more; another lane is free. Asked again, it has it still."""
    await live(store, other)
    first, second, third, elsewhere = await orders_of_age(store, other, other, other)
    taken, behind = await take_lane(store, first)
    assert (taken.lane, taken.turn_time, behind) == (LANE, store.clock.now(), "")
    assert await store.stores.orders.get_order(first.order_id) == taken
    assert await take_lane(store, first) == (taken, "")
    waiting, behind = await take_lane(other, second)
    assert (waiting.lane, waiting.turn_time, behind) == (LANE, None, first.order_id)
    assert await other.stores.orders.get_order(second.order_id) == waiting
    assert (await take_lane(other, third))[1] == first.order_id
    assert (await take_lane(other, elsewhere, "lane-b"))[1] == ""


async def test_two_that_want_a_lane_in_one_moment(store: StoreHarness, other: StoreHarness) -> None:
    """Exactly one has it."""
    await live(store, other)
    for number in range(20):
        first, second = await orders_of_age(store, other)
        lane = f"lane-{number}"
        tries = await asyncio.gather(take_lane(store, first, lane), take_lane(other, second, lane))
        assert sorted(bool(behind) for _, behind in tries) == [False, True]
        for each, (order, _) in zip((store, other), tries, strict=True):
            await each.stores.orders.change_order(order, OrderChange(state=OrderState.FAILED))


async def test_a_turn_ends_with_the_order_and_its_records(store: StoreHarness, other: StoreHarness) -> None:
    """Not before they are removed; the next one has the lane then, without another word."""
    await live(store, other)
    first, second = await orders_of_age(store, other)
    await take_lane(store, first)
    change = store.stores.orders.change_order
    await change(first, OrderChange(txt_records=RECORDS))
    ended = await change(first, OrderChange(state=OrderState.FAILED))
    assert ended.lane == LANE
    assert (await take_lane(other, second))[1] == first.order_id
    cleared = await change(first, OrderChange(txt_records=()))
    assert (cleared.lane, cleared.turn_time) == (None, None)
    assert await store.stores.orders.get_order(first.order_id) == cleared
    taken, behind = await take_lane(other, second)
    assert behind == ""
    record = certificate(taken, "certificate-1", store.clock.now(), timedelta(days=90))
    issued = await other.stores.orders.finish_order(taken, record, [])
    assert (issued.lane, issued.turn_time) == (None, None)


async def test_another_issuer_is_another_lane(store: StoreHarness, other: StoreHarness) -> None:
    """An order that fails over leaves its lane in the same transaction."""
    await live(store, other)
    first, second = await orders_of_age(store, other)
    await take_lane(store, first)
    moved = await store.stores.orders.change_order(first, OrderChange(issuer="second", acme_order_url=""))
    assert (moved.lane, moved.turn_time) == (None, None)
    assert (await take_lane(other, second))[1] == ""
    assert (await take_lane(store, moved, "lane-of-second"))[0].lane == "lane-of-second"


async def test_a_lane_may_be_left(store: StoreHarness, other: StoreHarness) -> None:
    """By one whose records can't be removed, say; it keeps them."""
    await live(store, other)
    first, second = await orders_of_age(store, other)
    await take_lane(store, first)
    await store.stores.orders.change_order(first, OrderChange(txt_records=RECORDS))
    left = await store.stores.shared_orders.leave_lane(first)
    assert (left.lane, left.turn_time, left.txt_records) == (None, None, RECORDS)
    assert await store.stores.shared_orders.leave_lane(first) == left
    assert (await take_lane(other, second))[1] == ""


async def test_the_oldest_of_those_that_wait_is_next(store: StoreHarness, other: StoreHarness) -> None:
    """Whichever broker asks first when the lane is free."""
    await live(store, other)
    holder, older, younger = await orders_of_age(store, store, other)
    await take_lane(store, holder)
    await take_lane(other, younger)
    await take_lane(store, older)
    await store.stores.orders.change_order(holder, OrderChange(state=OrderState.FAILED))
    assert (await take_lane(other, younger))[1] == older.order_id
    assert (await take_lane(store, older))[1] == ""


async def test_one_that_waited_and_does_not_ask_any_more_holds_up_nobody(
    store: StoreHarness, other: StoreHarness
) -> None:
    """Nor does one whose broker has gone. A broker's own go as it asks for them."""
    await live(store, other)
    holder, oldest, old, young = await orders_of_age(other, store, store, other)
    await take_lane(other, holder)
    await take_lane(store, oldest)
    _, behind = await take_lane(store, old)
    assert behind == holder.order_id
    assert (await other.stores.orders.get_order(oldest.order_id)).lane is None
    await other.stores.orders.change_order(holder, OrderChange(state=OrderState.FAILED))
    assert (await take_lane(other, young))[1] == old.order_id
    await store.stores.members.renew(member(store), timedelta())
    assert (await take_lane(other, young))[1] == ""


async def test_who_takes_an_order_has_its_lane(store: StoreHarness, other: StoreHarness) -> None:
    """Its turn, not its waiting: that is asked for anew."""
    first, second = await orders_of_age(store, store)
    await live(store)
    await take_lane(store, first)
    await take_lane(store, second)
    await store.stores.orders.give_back_orders()
    heir = {order.order_id: order for order in await other.stores.orders.take_orders(10)}
    assert heir[first.order_id].lane == LANE
    assert heir[second.order_id].lane is None
    assert (await take_lane(other, heir[first.order_id]))[1] == ""
    assert (await take_lane(other, heir[second.order_id]))[1] == first.order_id
    await not_found(take_lane(store, first))
    await not_found(store.stores.shared_orders.leave_lane(second))


async def test_an_order_that_has_ended_takes_no_lane(store: StoreHarness) -> None:
    """Somebody else has ended it while it waited: who runs it is told."""
    order = await store.open_order()
    ended = await store.stores.orders.change_order(order, OrderChange(state=OrderState.FAILED))
    assert await take_lane(store, order) == (ended, "")


async def test_records_that_another_open_order_lists_are_needed(store: StoreHarness, other: StoreHarness) -> None:
    """By name and value, whichever broker runs it; an order that has ended needs none."""
    first, second = await orders_of_age(store, other)
    records = [TxtRecord("", f"_acme-challenge.{number}.example.org", f"value_{number}") for number in range(20)]
    alike = TxtRecord("", "_acme-challenge.0.example.org", "valueX0")  # what `_` would match in LIKE
    needed = store.stores.shared_orders.needed_records
    assert await needed(records) == set()
    await store.stores.orders.change_order(first, OrderChange(txt_records=tuple(records[:15])))
    await other.stores.orders.change_order(second, OrderChange(txt_records=(*records[10:], alike)))
    named = [(record.name, record.value) for record in records]
    assert await needed(records) == set(named)
    assert await needed(records, but=first.order_id) == set(named[10:])
    assert await needed([TxtRecord("", "another.example.org", "value_3")]) == set()
    assert await needed([]) == set()
    assert await store.stores.shared_orders.leaving_records(records) == set()
    await other.stores.orders.change_order(second, OrderChange(state=OrderState.FAILED))
    assert await needed(records, but=first.order_id) == set()
    assert await store.stores.shared_orders.leaving_records(records) == set(named[10:])


async def test_a_limit_is_kept_by_brokers_that_are_asked_in_one_moment(
    store: StoreHarness, other: StoreHarness
) -> None:
    """Of an identity, and of a name set that many identities share: exactly as many orders as it allows."""
    tries = [(each, number) for number in range(8) for each in (store, other)]
    limits = DurableLimits(per_identity_per_hour=3)
    opened = await asyncio.gather(
        *(
            each.stores.orders.open_order(
                draft(public_key_sha256=f"key-{each is store}-{number}", dns_names=(f"{number}.example.org",)),
                limits,
                [],
            )
            for each, number in tries
        ),
        return_exceptions=True,
    )
    assert [isinstance(one, RefusalError) for one in opened].count(False) == 3
    limits = DurableLimits(certificates_per_name_set_per_week=5)
    opened = await asyncio.gather(
        *(
            each.open_order(limits=limits, public_key_sha256=f"{each is store}-{number}", identity=f"host-{number}")
            for each, number in tries
        ),
        return_exceptions=True,
    )
    assert [isinstance(one, RefusalError) for one in opened].count(False) == 5


async def test_a_request_for_renewals_at_two_brokers_is_one(store: StoreHarness, other: StoreHarness) -> None:
    """Of those that come in the same moment one sets the plans, with its event; both have its answer."""
    record = await store.issue()
    now = store.clock.now()
    for number in range(20):
        requested = [RequestedRenewal(f"r-{number}", 1, 1, now + timedelta(hours=hours)) for hours in (1, 2)]
        plans = [
            RenewalPlan(record.certificate_id, record.identity, now + timedelta(hours=hours), RenewalCause.OPERATOR)
            for hours in (1, 2)
        ]
        kept = await asyncio.gather(
            *(
                each.stores.renewal_plans.set_requested([plan], "alice", mine, now, [each.event()])
                for each, plan, mine in zip((store, other), plans, requested, strict=True)
            )
        )
        assert kept[0] == kept[1]
        (planned,) = await store.stores.renewal_plans.planned([record.certificate_id])
        assert planned == plans[requested.index(kept[0])]
    assert len(await store.event_ids()) == 20


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
        "schema_revision": SCHEMA_REVISION,
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
    assert timedelta() <= await store.stores.members.time() - renewal.time < timedelta(seconds=HANG)
    assert abs(renewal.time - before) < timedelta(seconds=HANG)


async def test_a_member_whose_lease_has_ended_is_removed(store: StoreHarness, other: StoreHarness) -> None:
    """By whoever renews next: the table has those that run, and what died lately."""
    await store.stores.members.renew(member(store), timedelta())
    await other.stores.members.renew(member(other), SPAN)
    await store.stores.members.renew(member(store), timedelta())
    assert [each.broker_id for each in await other.stores.members.living()] == [other.stores.members.broker_id]


async def test_a_member_that_is_stopped_while_it_renews_is_not_waited_for(
    store: StoreHarness, other: StoreHarness
) -> None:
    """Its row is locked for as long; were it waited for, the lease of each other broker would end too."""
    if store.place.kind != "postgresql":
        pytest.skip("one broker has no others")
    await store.stores.members.renew(member(store), timedelta())
    stopped = await psycopg.AsyncConnection.connect(store.place.url)
    async with stopped:
        await stopped.execute("UPDATE brokers SET stream_count = 1")
        assert not (await other.stores.members.renew(member(other), SPAN)).removed
        await stopped.rollback()
    assert (await other.stores.members.renew(member(other), SPAN)).removed


class Heard(ChangeFollower):
    """How often a store was told of its kind of change."""

    def __init__(self) -> None:
        self.count = 0

    @override
    async def reread(self, since: datetime) -> None:
        pass

    @override
    async def changed(self, keys: Collection[str]) -> None:
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
