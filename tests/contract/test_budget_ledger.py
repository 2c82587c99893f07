"""What `BudgetLedger` and `BudgetReader` promise, asked of each kind of store."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import psycopg
import pytest

from certplane.broker.budget.claims import claim_of, failed_needs, refused_needs, urgency_of
from certplane.broker.budget.model import Claim, Exemption, IssuerLimits, Limit, LimitScope
from certplane.broker.model import Order, OrderState, Scope, ScopeKind
from certplane.broker.ports import OrderChange
from certplane.errors import Reason, RefusalError
from tests.support.stores import StoreHarness, member
from tests.support.waiting import until

HOUR = timedelta(hours=1)
URL = "https://ca.example/directory"
ALL = frozenset(Exemption)
ACCOUNT = Limit("orders", LimitScope.ACCOUNT, 3, 3 * HOUR, ALL)
DOMAIN = Limit("domain", LimitScope.REGISTERED_DOMAIN, 2, 2 * HOUR, ALL)
NAMES = Limit("names", LimitScope.NAMES, 5, 5 * HOUR, frozenset({Exemption.ARI}))
FAILURES = Limit("failures", LimitScope.FAILED_VALIDATIONS, 3, HOUR, frozenset({Exemption.ARI}))
CA = IssuerLimits("acme", URL, "configuration", (ACCOUNT, DOMAIN, NAMES, FAILURES))
BY_ACCOUNT = replace(CA, limits=(ACCOUNT,))
LEASE = timedelta(days=30)


def claim(order: Order, limits: IssuerLimits = CA, *, ends: datetime | None = None, ari: bool = False) -> Claim:
    urgency = urgency_of(order.order_id, ends, order.create_time)
    return claim_of(limits, order.dns_names, urgency=urgency, ari=ari)


async def order_of(store: StoreHarness, names: tuple[str, ...] = ("example.org",)) -> Order:
    return await store.open_order(public_key_sha256=f"key-{next(store.numbers)}", dns_names=names)


async def take(store: StoreHarness, order: Order, limits: IssuerLimits = CA, ends: datetime | None = None) -> str:
    """What it waits for; empty for a place."""
    done = await store.stores.budget.take_places(order, claim(order, limits, ends=ends))
    assert bool(done.order.places) is (done.shortage is None)
    return "" if done.shortage is None else done.shortage.text(store.clock.now())


async def test_a_place_is_taken_in_every_bucket_or_in_none(store: StoreHarness) -> None:
    """The second domain's bucket is empty for the third order, which takes none of the account's either."""
    await store.stores.members.renew(member(store), LEASE)
    orders = [await order_of(store, (f"{number}.example.org",)) for number in range(3)]
    assert [await take(store, order) for order in orders[:2]] == ["", ""]
    free = store.clock.now() + HOUR + timedelta(minutes=15)
    assert await take(store, orders[2]) == f"budget: 2 per 2h for example.org; free at {free:%Y-%m-%dT%H:%M:%SZ}"
    state = await store.stores.budget.state([URL])
    account = next(bucket for key, bucket in state.buckets.items() if key.limit == "orders")
    assert account.level.full_time - store.clock.now() == 2 * HOUR
    (waiter,) = state.waiters
    assert (waiter.order_id, {key.limit for key in waiter.keys}) == (orders[2].order_id, {"orders", "domain"})


async def test_places_come_back_evenly(store: StoreHarness) -> None:
    """Each after an interval, and as much later as the CA may count an order."""
    for _ in range(3):
        assert await take(store, await order_of(store), BY_ACCOUNT) == ""
    late = await order_of(store)
    assert "budget: 3 per 3h for the account" in await take(store, late, BY_ACCOUNT)
    store.clock.advance(HOUR)
    assert await take(store, late, BY_ACCOUNT) != ""
    store.clock.advance(timedelta(minutes=1))
    assert await take(store, late, BY_ACCOUNT) == ""
    assert (await store.stores.budget.state([URL])).waiters == []


async def test_an_order_takes_its_place_once(store: StoreHarness, other: StoreHarness) -> None:
    """Asked again, by who took the order over too, it has it; once the CA has made the order, another needs another."""
    await store.stores.members.renew(member(store), timedelta())
    order = await order_of(store)
    done = await store.stores.budget.take_places(order, claim(order, BY_ACCOUNT))
    (taken,) = await other.stores.orders.take_orders(10)
    again = await other.stores.budget.take_places(taken, claim(taken, BY_ACCOUNT))
    assert again.order.places == done.order.places != ()
    (bucket,) = (await store.stores.budget.state([URL])).buckets.values()
    assert bucket.level.full_time - store.clock.now() == HOUR
    made = await other.stores.orders.change_order(again.order, OrderChange(acme_order_url="https://ca.example/1"))
    assert made.places == done.order.places
    given_up = await other.stores.orders.change_order(made, OrderChange(acme_order_url=""))
    assert given_up.places == ()
    with pytest.raises(RefusalError) as caught:
        await store.stores.budget.take_places(order, claim(order, BY_ACCOUNT))
    assert caught.value.refusal.reason is Reason.ORDER_NOT_FOUND


async def test_what_was_not_used_is_given_back(store: StoreHarness) -> None:
    """A bucket of which nothing is taken is full."""
    order = await order_of(store)
    done = await store.stores.budget.take_places(order, asked := claim(order, BY_ACCOUNT))
    assert len(done.order.places) == 1
    await store.stores.budget.give_back(asked.needs)
    for _ in range(3):
        assert await take(store, await order_of(store), BY_ACCOUNT) == ""


async def test_who_is_more_urgent_goes_first(store: StoreHarness, other: StoreHarness) -> None:
    """The certificate that ends soonest, at whichever broker; a first issue after renewals. Nobody is passed over."""
    for each in (store, other):
        await each.stores.members.renew(member(each), LEASE)
    for _ in range(3):
        assert await take(store, await order_of(store), BY_ACCOUNT) == ""
    first, late, soon = await order_of(store), await order_of(store), await order_of(other)
    ends = store.clock.now() + timedelta(days=9)
    asked = [(store, first, None), (store, late, ends + HOUR), (other, soon, ends)]
    for where, order, end in asked:
        assert await take(where, order, BY_ACCOUNT, end) != ""
    assert [waiter.order_id for waiter in (await store.stores.budget.state([URL])).waiters] == [
        soon.order_id,
        late.order_id,
        first.order_id,
    ]
    for where, order, end in reversed(asked):
        store.clock.advance(HOUR + timedelta(minutes=1) if order is soon else HOUR)
        for elsewhere, less, its_end in asked[: asked.index((where, order, end))]:
            assert "after 1 more urgent" in await take(elsewhere, less, BY_ACCOUNT, its_end)
        assert await take(where, order, BY_ACCOUNT, end) == ""


async def test_a_place_that_nobody_fetches_is_kept_for_half_a_minute(store: StoreHarness, other: StoreHarness) -> None:
    """And not at all for the order of a broker that is dead, has ended, or can't go for another reason."""
    await store.stores.members.renew(member(store), LEASE)
    await other.stores.members.renew(member(other), LEASE)
    for _ in range(3):
        assert await take(store, await order_of(store), BY_ACCOUNT) == ""
    mine, urgent = await order_of(store), await order_of(other)
    ends = store.clock.now() + timedelta(days=9)
    assert await take(other, urgent, BY_ACCOUNT, ends) != ""
    store.clock.advance(HOUR + timedelta(minutes=1))
    assert "more urgent" in await take(store, mine, BY_ACCOUNT)
    store.clock.advance(timedelta(seconds=31))
    assert await take(store, mine, BY_ACCOUNT) == ""
    store.clock.advance(HOUR - timedelta(seconds=31))
    ended = await other.stores.orders.change_order(urgent, OrderChange(state=OrderState.FAILED))
    assert not ended.state.is_open
    assert await take(store, await order_of(store), BY_ACCOUNT) == ""
    assert (await store.stores.budget.state([URL])).waiters == []


async def test_who_waits_for_something_else_holds_up_nobody(store: StoreHarness) -> None:
    """Its names have no place for long: the account's places are others'."""
    await store.stores.members.renew(member(store), LEASE)
    ca = replace(CA, limits=(ACCOUNT, replace(NAMES, amount=1)))
    assert await take(store, await order_of(store, ("a.test",)), ca) == ""
    urgent = await order_of(store, ("a.test",))
    assert "for these names" in await take(store, urgent, ca, store.clock.now() + HOUR)
    for number in range(2):
        assert await take(store, await order_of(store, (f"{number}.test",)), ca) == ""
    last = await order_of(store, ("z.test",))
    assert "for the account" in await take(store, last, ca)
    store.clock.advance(HOUR + timedelta(minutes=1))
    assert await take(store, last, ca) == ""


async def test_what_the_ca_says_counts_more(store: StoreHarness) -> None:
    """Later or sooner than was computed; what the refused order took elsewhere is put back, and it waits."""
    await store.stores.members.renew(member(store), LEASE)
    order = await order_of(store)
    asked = claim(order)
    taken = (await store.stores.budget.take_places(order, asked)).order
    until = store.clock.now() + timedelta(days=9)
    refused = refused_needs(asked, [Scope(ScopeKind.DOMAIN, "example.org")], "")
    done = await store.stores.budget.correct(taken, asked, refused, until)
    assert done.order.places == ()
    assert done.shortage is not None
    assert done.shortage.told
    assert "as the CA says" in await take(store, done.order)
    state = await store.stores.budget.state([URL])
    told = {key.limit: bucket.told_until for key, bucket in state.buckets.items()}
    assert told["domain"] == until
    assert [waiter.order_id for waiter in state.waiters] == [order.order_id]
    assert await take(store, await order_of(store, ("example.net",))) == ""
    sooner = store.clock.now() + timedelta(minutes=5)
    await store.stores.budget.correct(done.order, asked, refused, sooner)
    store.clock.advance(timedelta(minutes=5))
    assert await take(store, done.order) == ""


async def test_names_that_had_a_certificate_are_exempt(store: StoreHarness) -> None:
    """As the CA counts a renewal: of its issuer, and not of long ago."""
    await store.issue(dns_names=("example.org",))
    digest = claim(await order_of(store)).names_sha256
    assert await store.stores.budget.known_names(["acme"], [digest, "other"]) == {digest}
    assert await store.stores.budget.known_names(["another"], [digest]) == set()
    for _ in range(5):
        assert await take(store, await order_of(store)) == ""
    assert "for these names" in await take(store, await order_of(store))
    store.clock.advance(timedelta(days=121))
    assert await store.stores.budget.known_names(["acme"], [digest]) == set()
    for _ in range(2):
        assert await take(store, await order_of(store)) == ""
    assert "for example.org" in await take(store, await order_of(store))


async def test_the_failure_that_would_lock_a_name_is_not_risked(store: StoreHarness) -> None:
    """Of three in an hour the second is the last; it is asked for again when one has come back."""
    order = await order_of(store)
    needs = failed_needs(CA, order.dns_names)
    assert await take(store, await order_of(store)) == ""
    await store.stores.budget.count(needs)
    assert await take(store, await order_of(store)) == ""
    await store.stores.budget.count(needs)
    store.clock.advance(timedelta(minutes=15))
    ca = replace(CA, limits=(FAILURES,))
    assert "for failed validations of example.org" in await take(store, order, ca)
    store.clock.advance(timedelta(minutes=5))
    done = await store.stores.budget.take_places(order, claim(order, ca))
    assert done.shortage is None


async def test_clocks_and_configuration_may_change(store: StoreHarness) -> None:
    """A bucket is never worse than empty: after a clock was set back, or with another amount, the wait has an end."""
    for _ in range(3):
        await take(store, await order_of(store), BY_ACCOUNT)
    store.clock.advance(-timedelta(days=30))
    late = await order_of(store)
    await take(store, late, BY_ACCOUNT)
    store.clock.advance(4 * HOUR)
    assert await take(store, late, BY_ACCOUNT) == ""
    fewer = replace(BY_ACCOUNT, limits=(replace(ACCOUNT, amount=1),))
    last = await order_of(store)
    assert await take(store, last, fewer) != ""
    store.clock.advance(6 * HOUR)
    assert await take(store, last, fewer) == ""


async def test_what_is_over_is_forgotten(store: StoreHarness) -> None:
    """Buckets that are full again, and what orders waited for that have ended: in passing, some with each take."""
    await store.stores.members.renew(member(store), LEASE)
    ca = replace(CA, limits=(replace(NAMES, amount=1),))
    assert await take(store, await order_of(store, ("old.test",)), ca) == ""
    late = await order_of(store, ("old.test",))
    assert await take(store, late, ca) != ""
    await store.stores.orders.change_order(late, OrderChange(state=OrderState.FAILED))
    store.clock.advance(timedelta(days=9))
    for number in range(64):
        assert await take(store, await order_of(store, (f"{number}.test",)), ca) == ""
    if store.place.kind != "memory":
        assert store.place.query("SELECT count(*) FROM budget_buckets") == [(64,)]
        assert store.place.query("SELECT count(*) FROM budget_waits") == [(0,)]


async def test_what_another_broker_takes_from_just_now_is_not_forgotten(store: StoreHarness) -> None:
    """Its bucket was full for long, and isn't any more once the removal has its row."""
    if store.place.kind != "postgresql":
        pytest.skip("one broker has no others")
    ca = replace(CA, limits=(replace(NAMES, amount=1),))
    assert await take(store, await order_of(store, ("old.test",)), ca) == ""
    store.clock.advance(timedelta(days=9))
    orders = [await order_of(store, (f"{number}.test",)) for number in range(31)]

    async def take_all() -> None:
        for order in orders:
            assert await take(store, order, ca) == ""

    def blocked() -> bool:
        return store.place.query("SELECT count(*) FROM pg_locks WHERE NOT granted") != [(0,)]

    async with await psycopg.AsyncConnection.connect(store.place.url) as taking:
        await taking.execute("UPDATE budget_buckets SET full_time = full_time + 2000000000000")
        async with asyncio.TaskGroup() as group:
            group.create_task(take_all())
            await until(blocked)
            await taking.commit()
    assert store.place.query("SELECT count(*) FROM budget_buckets WHERE label = 'old.test'") == [(1,)]


async def test_exempt_orders_take_nothing(store: StoreHarness) -> None:
    """What the CA knows as a renewal within its window needs no place in any of its limits."""
    order = await order_of(store)
    assert claim(order, ari=True).needs == ()


async def test_accounts_of_one_ca_share_what_it_counts_for_all(store: StoreHarness) -> None:
    """Names and domains are one bucket for two issuers of one directory; orders of the account are not."""
    order = await order_of(store)
    keys = [{need.key for need in claim(order, replace(CA, issuer=name)).needs} for name in ("one", "two")]
    assert {key.limit for key in keys[0] & keys[1]} == {"domain", "names"}
