"""What `OrderListing` promises, and what is written of orders that fail or wait, asked of every kind of store."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.issuance.listing import OrderPlace, OrderQuery
from certplane.broker.model import NO_PROGRESS, Order, OrderProgress, OrderState
from certplane.broker.ports import OrderChange
from certplane.broker.store import order_listing
from certplane.errors import Reason, Refusal
from tests.support.stores import StoreHarness

HOUR = timedelta(hours=1)
REJECTED = Refusal(Reason.DNS_REJECTED, "no such zone")


async def opened(store: StoreHarness, count: int, **values: Any) -> list[Order]:
    """Orders, a second apart."""
    orders = []
    for _ in range(count):
        store.clock.advance(timedelta(seconds=1))
        orders.append(await store.open_order(public_key_sha256=f"key-{next(store.numbers)}", **values))
    return orders


async def failed(store: StoreHarness, order: Order) -> Order:
    store.clock.advance(timedelta(seconds=1))
    change = OrderChange(state=OrderState.FAILED, error=REJECTED, retry_time=store.clock.now() + HOUR)
    ended: Order = await store.stores.orders.change_order(order, change)
    return ended


async def listed(store: StoreHarness, query: OrderQuery | None = None, *, size: int = 100) -> list[str]:
    """All pages."""
    found: list[str] = []
    after: OrderPlace | None = None
    while True:
        page = await store.stores.order_listing.page(query or OrderQuery(), after, size)
        assert len(page.orders) <= size
        found += [order.order_id for order in page.orders]
        after = page.after
        if after is None:
            return found


async def test_open_orders_come_first_and_each_part_newest_first(store: StoreHarness) -> None:
    """In pages of every size each order is there once. An identity's are newest by their creation, ended ones too."""
    orders = await opened(store, 6)
    for order in orders[4], orders[1]:
        await failed(store, order)
    expected = [orders[number].order_id for number in (5, 3, 2, 0, 1, 4)]
    of_one = [orders[number].order_id for number in (5, 3, 2, 0, 4, 1)]
    for size in (1, 2, 3, 4, 5, 6, 100):
        assert await listed(store, size=size) == expected
        assert await listed(store, OrderQuery(identities=frozenset({orders[0].identity})), size=size) == of_one
    assert await store.stores.order_listing.count_open() == 4


async def test_a_list_that_changes_under_its_reader_loses_nothing(store: StoreHarness) -> None:
    """What is opened or ends between two pages moves no other order out of the pages to come."""
    orders = await opened(store, 6)
    first = await store.stores.order_listing.page(OrderQuery(), None, 2)
    (new,) = await opened(store, 1)
    await failed(store, orders[5])  # told already
    await failed(store, orders[1])  # not yet
    rest: list[str] = []
    after = first.after
    while after is not None:
        page = await store.stores.order_listing.page(OrderQuery(), after, 2)
        rest += [order.order_id for order in page.orders]
        after = page.after
    seen = [order.order_id for order in first.orders] + rest
    assert set(seen) == {order.order_id for order in orders}
    assert new.order_id not in seen


@pytest.mark.parametrize(
    ("query", "picked"),
    [
        pytest.param({"open_only": True}, "bcd", id="open"),
        pytest.param({"states": {OrderState.FAILED}}, "a", id="state"),
        pytest.param({"identities": {"spiffe://example.org/host/web2"}}, "b", id="identity"),
        pytest.param(
            {"identities": {"spiffe://example.org/host/web2", "spiffe://example.org/host/web1"}}, "abcd", id="two"
        ),
        pytest.param({"profiles": {"mail"}}, "c", id="profile"),
        pytest.param({"issuers": {"other"}}, "d", id="issuer"),
        pytest.param({"dns_names": {"mail.example.org", "nobody.example"}}, "c", id="name"),
        pytest.param({"reasons": {"DNS_REJECTED"}}, "a", id="reason of the end"),
        pytest.param({"reasons": {"ISSUER_UNAVAILABLE"}}, "d", id="reason of the last step"),
        pytest.param({"request_id": "request-b"}, "b", id="call"),
        pytest.param({"profiles": {"none"}}, "", id="nothing"),
        pytest.param({"open_only": True, "issuers": {"acme"}}, "bc", id="two conditions"),
    ],
)
async def test_a_filter_picks(store: StoreHarness, query: dict[str, Any], picked: str) -> None:
    """Each condition that is set has to be met, of one with several values by one of them."""
    (a,) = await opened(store, 1)
    (b,) = await opened(store, 1, identity="spiffe://example.org/host/web2", request_id="request-b")
    (c,) = await opened(store, 1, profile="mail", dns_names=("mail.example.org",))
    (d,) = await opened(store, 1, issuer="other")
    await failed(store, a)
    at = OrderProgress("create", trouble="ISSUER_UNAVAILABLE: it is away", failures=1)
    await store.stores.orders.note_progress([replace(d, progress=at)])
    values: Any = {name: frozenset(value) if isinstance(value, set) else value for name, value in query.items()}
    names = {order.order_id: letter for letter, order in zip("abcd", (a, b, c, d), strict=True)}
    found = await listed(store, OrderQuery(**values), size=2)
    assert "".join(sorted(names[order_id] for order_id in found)) == picked


async def test_orders_of_some_time(store: StoreHarness) -> None:
    """What was opened or has changed within it."""
    old, changed = await opened(store, 2)
    store.clock.advance(3 * HOUR)
    await failed(store, changed)
    (new,) = await opened(store, 1)
    found = await listed(store, OrderQuery(since=store.clock.now() - HOUR))
    assert found == [new.order_id, changed.order_id]
    assert old.order_id not in found


async def test_orders_by_id(store: StoreHarness) -> None:
    """However many, those that there are."""
    orders = await opened(store, 5)
    ids = frozenset(order.order_id for order in orders[:4]) | {f"none-{number}" for number in range(100)}
    assert await listed(store, OrderQuery(order_ids=ids), size=3) == [order.order_id for order in reversed(orders[:4])]


async def test_a_page_ends_where_it_would_look_at_too_much(
    store: StoreHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter that matches nothing is answered in pieces; who goes on gets to the end."""
    monkeypatch.setattr(order_listing, "_MOST_LOOKED_AT", 256)
    await asyncio.gather(*(store.open_order(public_key_sha256=f"key-{number}") for number in range(300)))
    page = await store.stores.order_listing.page(OrderQuery(profiles=frozenset({"none"})), None, 10)
    assert page.orders == []
    assert page.after is not None
    assert await listed(store, OrderQuery(profiles=frozenset({"none"}))) == []


async def test_certificates_of_the_same_names_are_counted(store: StoreHarness) -> None:
    """As the limit counts them: open orders and those that were finalised, within the time."""
    names = ("www.example.org",)
    await store.issue(dns_names=names)
    store.clock.advance(10 * HOUR)
    await store.issue(dns_names=names)
    ended, _ = await opened(store, 2, dns_names=names)
    await failed(store, ended)
    since = store.clock.now() - HOUR
    assert await store.stores.order_listing.count_certificates([names, ("other.example",)], since) == {
        names: 2,
        ("other.example",): 0,
    }


AT = OrderProgress("answer", failures=3, trouble="ISSUER_UNAVAILABLE: it is away", wait="its next try")


async def test_what_an_order_is_at_is_read_back(store: StoreHarness) -> None:
    """By whoever reads the order, until its state is another."""
    (order,) = await opened(store, 1)
    at = replace(AT, step_time=store.clock.now(), next_attempt=store.clock.now() + HOUR)
    await store.stores.orders.note_progress([replace(order, progress=at)])
    found = await store.stores.orders.get_order(order.order_id)
    assert (found.progress, found.trouble) == (at, "ISSUER_UNAVAILABLE: it is away")
    changed = await store.stores.orders.change_order(order, OrderChange(acme_order_url="https://ca.example/o/1"))
    assert changed.progress == at
    changed = await store.stores.orders.change_order(order, OrderChange(state=OrderState.AUTHORIZED))
    assert changed.progress == NO_PROGRESS


async def test_who_takes_an_order_knows_what_it_was_at(store: StoreHarness, other: StoreHarness) -> None:
    """And what the broker writes of it that had it before counts no more."""
    (order,) = await opened(store, 1)
    await store.stores.orders.note_progress([replace(order, progress=AT)])
    await store.stores.orders.give_back_orders()
    (taken,) = await other.stores.orders.take_orders(10)
    assert taken.progress == AT
    await store.stores.orders.note_progress([replace(order, progress=replace(AT, failures=9))])
    assert (await other.stores.orders.get_order(order.order_id)).progress == AT


async def test_nothing_is_written_of_an_order_that_went_on(store: StoreHarness) -> None:
    """What is at an end, or at another state, was at something else."""
    on, end = await opened(store, 2)
    await store.stores.orders.change_order(on, OrderChange(state=OrderState.AUTHORIZED))
    await failed(store, end)
    await store.stores.orders.note_progress([replace(on, progress=AT), replace(end, progress=AT)])
    for order in on, end:
        assert (await store.stores.orders.get_order(order.order_id)).progress == NO_PROGRESS
