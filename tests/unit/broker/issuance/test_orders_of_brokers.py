"""Orders of several brokers as operators see them at any of them; and a broker that is taken out of service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from certplane.broker.issuance.listing import OrderQuery
from certplane.broker.issuance.overview import OrdersView, OrderView
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.model import OrderState
from certplane.errors import Reason, RefusalError
from tests.support.issuance import NO_WAIT, World, caller, csr, issue, kill_all, settle
from tests.support.issuing_brokers import IssuingBroker, tick

Brokers = tuple[IssuingBroker, IssuingBroker]


@pytest.fixture
def world() -> World:
    return World(settings=IssuanceSettings(parallel_orders=1))


@pytest_asyncio.fixture
async def brokers(world: World) -> AsyncIterator[Brokers]:
    """Two that run."""
    yield await IssuingBroker(world).start(), await IssuingBroker(world).start()
    await kill_all()


def view_at(broker: IssuingBroker, *, gone: bool = False) -> OrdersView:
    """What an operator sees there; who is `gone` is known to nobody."""

    def find(broker_id: str) -> Any:
        return None if gone else type("Other", (), {"broker_id": broker_id, "name": "other-machine"})()

    return broker.authority.overview(broker.database_stores.order_listing, find, name="here")


async def shown(broker: IssuingBroker, *, gone: bool = False) -> list[OrderView]:
    views, _ = await view_at(broker, gone=gone).page(OrderQuery(), None, 50)
    return views


async def ask(broker: IssuingBroker, number: int = 1, *, profile: str = "shop") -> None:
    names = {"shop": ("*.shop.test", "shop.test"), "mail": ("mail.test",)}[profile]
    who = replace(caller(f"web{number}.test"), profiles=("shop", "mail"))
    command = issue(csr_pem=csr(f"key-{number}-{profile}", names), profile=profile, wait=NO_WAIT)
    await broker.authority.issue(who, command)
    await settle()


async def test_the_trouble_of_one_broker_is_seen_at_the_other(world: World, brokers: Brokers) -> None:
    """With its step, tries and next try, some seconds later, and which broker it is; when that has gone, that as well."""
    first, second = brokers
    first.issuer.faults.fail_always("create_order", RefusalError(Reason.ISSUER_UNAVAILABLE, "the CA answers 500"))
    await ask(first)
    (view,) = await shown(second)
    assert view.wait == "its turn, or the CA's first answer, at the broker that runs it"
    await tick(world, first, second)
    (view,) = await shown(second)
    assert view.order.trouble == "ISSUER_UNAVAILABLE: the CA answers 500"
    assert (view.order.progress.step, view.broker_id, view.broker_name) == (
        "create",
        first.orders.holder,
        "other-machine",
    )
    assert view.order.progress.failures >= 1
    (own,) = await shown(first)
    assert own.broker_name == "here"
    (left,) = await shown(second, gone=True)
    assert (left.broker_id, left.wait) == ("", "a broker that takes it over: the one that ran it has gone")


async def test_an_order_of_another_broker_is_watched(world: World, brokers: Brokers) -> None:
    """From its beginning to its end, by the feed: what is told is read when it is told."""
    first, second = brokers
    gate = first.issuer.faults.hold("finalize")
    await tick(world, first, second)
    with view_at(second).watchers.watching() as watcher:
        await ask(first)
        await second.look()
        changes = await watcher.next_changes()
        assert changes is not None
        (order_id,) = changes
        assert changes[order_id] is None
        (view,) = await view_at(second).read([], changes)
        assert view.order.state is OrderState.FINALIZING
        gate.set()
        await settle()
        await second.look()
        ended = await watcher.next_changes()
        assert ended is not None
        (view,) = await view_at(second).read([], ended)
        assert view.order.state is OrderState.ISSUED


async def test_a_broker_out_of_service_lets_others_do_what_waits(world: World, brokers: Brokers) -> None:
    """What has begun ends there, what waits for its turn the other one takes; it opens none before it is back."""
    first, second = brokers
    gate = first.issuer.faults.hold("finalize")
    await ask(first, 1)
    await ask(first, 2, profile="mail")
    assert [order.state for order in world.orders] == [OrderState.FINALIZING, OrderState.PENDING]
    await first.authority.rest()
    await settle()
    with pytest.raises(RefusalError) as refused:
        await ask(first, 1, profile="mail")
    assert refused.value.refusal.reason is Reason.DRAINING
    await tick(world, first, second, seconds=2)
    states = {order.profile: (order.state, order.holder) for order in world.orders}
    assert states["mail"] == (OrderState.ISSUED, second.orders.holder)
    assert states["shop"] == (OrderState.FINALIZING, first.orders.holder)
    assert first.authority.running_count == 1
    gate.set()
    await settle()
    assert first.authority.running_count == 0
    first.authority.resume()
    await ask(first, 1, profile="mail")
    assert {order.holder for order in world.orders if order.profile == "mail"} == {
        first.orders.holder,
        second.orders.holder,
    }


async def test_a_broker_out_of_service_that_loses_its_lease_takes_nothing_back(world: World, brokers: Brokers) -> None:
    """What it ran is given to others once its lease stands again."""
    first, second = brokers
    first.issuer.faults.hold("create_order")
    await ask(first)
    await first.authority.rest()
    await first.stop_for()
    await tick(world, first)
    await first.renew(timedelta(hours=1))
    first.lease.held, first.lease.number = True, 1
    await tick(world, first, second, seconds=3)
    (order,) = world.orders
    assert (order.state, order.holder) == (OrderState.ISSUED, second.orders.holder)
    assert first.authority.running_count == 0
