"""Orders of several brokers on one database: who runs them, who waits for them, and what a stopped one may still do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from certplane.broker.model import OrderState
from certplane.errors import Reason, RefusalError
from tests.support.issuance import NO_WAIT, World, caller, ended, issue, kill_all, settle, unavailable
from tests.support.issuing_brokers import LONG, IssuingBroker, tick

Brokers = tuple[IssuingBroker, IssuingBroker]


@pytest.fixture
def world() -> World:
    return World()


@pytest_asyncio.fixture
async def brokers(world: World) -> AsyncIterator[Brokers]:
    """Two that run."""
    yield await IssuingBroker(world).start(), await IssuingBroker(world).start()
    await kill_all()


async def test_who_asks_another_broker_waits_for_the_same_order(world: World, brokers: Brokers) -> None:
    """One order at the CA; both callers get its certificate as soon as it is there."""
    first, second = brokers
    gate = first.issuer.faults.hold("finalize")
    calls = [asyncio.create_task(first.authority.issue(caller(), issue()))]
    await settle()
    calls.append(asyncio.create_task(second.authority.issue(caller(), issue())))
    await settle()
    assert not any(call.done() for call in calls)
    gate.set()
    await settle()
    await second.look()
    results = await asyncio.gather(*calls)
    assert {result.order.state for result in results} == {OrderState.ISSUED}
    assert len({result.certificate.certificate_id for result in results if result.certificate}) == 1
    assert len(world.orders) == 1
    assert world.ca.finalisations == 1


async def test_an_order_is_watched_from_another_broker(world: World, brokers: Brokers) -> None:
    """Each change of its state that is heard of, and the certificate."""
    first, second = brokers
    gate = first.issuer.faults.hold("finalize")
    await first.authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()

    async def watch() -> list[OrderState]:
        watched = second.authority.watch_order(caller(), "r", world.order.order_id)
        return [result.order.state async for result in watched]

    watching = asyncio.create_task(watch())
    await settle()
    gate.set()
    await settle()
    await second.look()
    assert await watching == [OrderState.FINALIZING, OrderState.ISSUED]


async def test_an_order_that_ends_while_it_is_joined_is_waited_for_by_nobody(
    world: World, brokers: Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed told of its end before anybody here followed it: the caller, and the next one, get the certificate."""
    first, second = brokers
    gate = first.issuer.faults.hold("finalize")
    await first.authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    opening = second.orders.open_order

    async def open_slowly(*arguments: Any, **named: Any) -> Any:
        opened = await opening(*arguments, **named)
        gate.set()
        await settle()
        await second.look()
        return opened

    monkeypatch.setattr(second.orders, "open_order", open_slowly)
    joining = asyncio.create_task(second.authority.issue(caller(), issue()))
    await settle()
    assert world.order.state is OrderState.ISSUED
    await tick(world, second, seconds=2)
    assert joining.done()
    assert (await joining).order.state is OrderState.ISSUED
    assert (await second.authority.issue(caller(), issue())).source == "cache"


async def test_an_order_that_a_restored_database_lacks_is_followed_no_more(world: World, brokers: Brokers) -> None:
    """Who waits for it is told to come back, and then orders anew."""
    first, second = brokers
    first.issuer.faults.hold("create_order")
    await first.authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    joining = asyncio.create_task(second.authority.issue(caller(), issue()))
    await settle()
    first.kill()
    world.database.forget("orders")
    second.database_stores.changes._positions.clear()
    second.database_stores.changes._look_time = None  # as after a connection to the server was lost
    await second.look()
    await settle()
    assert joining.done()
    assert second.authority._dispatcher.find((await joining).order.order_id) is None


@pytest.mark.parametrize("operation", ["create_order", "answer_challenges", "finalize", "download"])
async def test_an_order_of_a_killed_broker_goes_on_elsewhere(world: World, brokers: Brokers, operation: str) -> None:
    """After its lease, and within a second; who waits for it at the other broker gets its certificate."""
    first, second = brokers
    first.issuer.faults.hold(operation)
    await first.authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    waiting = asyncio.create_task(second.authority.issue(caller(), issue()))
    await settle()
    first.kill()
    await tick(world, second, seconds=2)
    assert not waiting.done()
    await first.renew(timedelta())
    for _ in range(100):
        await tick(world, second)
    result = await waiting
    assert result.order.state is OrderState.ISSUED
    assert world.ca.finalisations == 1
    assert ended(world.order)


async def test_a_broker_that_stops_gives_its_orders_back(world: World, brokers: Brokers) -> None:
    """The other one goes on as soon as it hears of it, whatever is left of the lease."""
    first, second = brokers
    gate = first.issuer.faults.hold("finalize")
    await first.authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    await first.drain()
    gate.set()
    await settle()
    await second.look()
    await settle()
    assert world.order.holder == second.orders.holder
    for _ in range(100):
        await tick(world, second)
    assert world.order.state is OrderState.ISSUED
    assert world.ca.finalisations == 1


async def test_a_broker_that_stops_gives_back_at_once_what_waits_for_its_turn(world: World, brokers: Brokers) -> None:
    """The other one goes on with it, while the stopping one still ends what it has begun, and is its own."""
    first, second = brokers
    gate = first.issuer.faults.hold("finalize")
    calls = [
        asyncio.create_task(first.authority.issue(caller(name), issue(name))) for name in ("web1.test", "web2.test")
    ]
    await settle()
    assert sum(flight.begun for flight in first.authority._dispatcher.flights) == 1, "of the same names"
    draining = asyncio.create_task(first.authority.drain(LONG))
    await settle()
    await tick(world, second, seconds=2)
    holders = [order.holder for order in world.orders]
    assert sorted(holders) == sorted((first.orders.holder, second.orders.holder))
    gate.set()
    await settle()
    await draining
    await asyncio.gather(*calls)
    for _ in range(100):
        await tick(world, second)
    assert [order.state for order in world.orders] == [OrderState.ISSUED] * 2
    assert world.ca.finalisations == 2


async def test_a_broker_without_its_lease_opens_no_order(brokers: Brokers) -> None:
    """It says what it has lost, and that another one can answer."""
    first, _ = brokers
    first.lease.held = False
    with pytest.raises(RefusalError) as caught:
        await first.authority.issue(caller(), issue())
    assert caught.value.refusal.reason is Reason.STORE_UNAVAILABLE
    assert "lease" in caught.value.refusal.message
    assert caught.value.refusal.retry_after is not None


async def test_a_broker_that_has_lost_its_lease_starts_no_step(world: World, brokers: Brokers) -> None:
    """What it waited for comes, and it does nothing more; the other one ends the order, by one finalisation."""
    first, second = brokers
    gate = first.issuer.faults.hold("answer_challenges")
    await first.authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    await first.stop_for()
    gate.set()
    await settle()
    assert first.issuer.faults.count("finalize") == 0
    for _ in range(100):
        await tick(world, first, second)
    assert world.order.state is OrderState.ISSUED
    assert first.issuer.faults.count("finalize") == 0
    assert world.ca.finalisations == 1


@pytest.mark.parametrize("operation", ["create_order", "finalize"])
async def test_a_broker_that_wakes_up_writes_on_no_order_that_was_taken(
    world: World, brokers: Brokers, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It was stopped while the CA worked. Who waits for the order at it is told how it ended elsewhere."""
    first, second = brokers
    gate = first.issuer.faults.hold(operation)
    waiting = asyncio.create_task(first.authority.issue(caller(), issue()))
    await settle()
    await first.renew(timedelta())  # as if it had stood still: it doesn't know
    await tick(world, second, seconds=2)
    assert world.order.holder == second.orders.holder
    gate.set()
    await settle()
    for _ in range(100):
        await tick(world, first, second)
    result = await waiting
    assert result.order.state is OrderState.ISSUED
    assert world.ca.finalisations == 1
    assert len(world.database.certificates) == 1
    # After a finalisation the CA tells it how the order ended, before it has anything to write.
    assert ("another broker has taken an order" in caplog.text) == (operation == "create_order")


async def test_an_order_that_a_restored_database_lacks_ends_with_a_warning(
    world: World, brokers: Brokers, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing can be written of it, and nothing is at fault: the next one is run as ever."""
    first, _ = brokers
    gate = first.issuer.faults.hold("answer_challenges")
    await first.authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    world.database.connection.execute("DELETE FROM orders")
    gate.set()
    await settle()
    assert "an order ends here: the order is not in the database any more" in caplog.text
    assert "Traceback" not in caplog.text
    assert (await first.authority.issue(caller(), issue())).order.state is OrderState.ISSUED


async def test_orders_are_taken_anew_when_the_lease_is_back(world: World, brokers: Brokers) -> None:
    """What nobody has taken meanwhile goes on where it was, under another epoch."""
    first, _ = brokers
    first.issuer.faults.fail_always("get_order", unavailable())
    gate = first.issuer.faults.hold("answer_challenges")
    await first.authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    epoch = world.order.epoch
    first.lease.held = False
    await tick(world, first, seconds=3)
    assert len(first.authority._dispatcher.flights) == 0
    gate.set()
    first.issuer.faults.heal()
    first.lease.held = True
    for _ in range(100):
        await tick(world, first)
    assert world.order.state is OrderState.ISSUED
    assert world.order.epoch > epoch
    assert world.ca.finalisations == 1


async def test_orders_that_were_taken_before_the_store_failed_are_run(
    world: World, brokers: Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many that a broker has left, some are its heir's by then: nobody else takes those."""
    first, second = brokers
    first.issuer.faults.hold("create_order")
    for name in ("web1.test", "web2.test"):
        await first.authority.issue(caller(name), issue(name, wait=NO_WAIT))
    await settle()
    first.kill()
    await first.renew(timedelta())
    monkeypatch.setattr("certplane.broker.issuance.tenure._AT_ONCE", 1)
    take, takes = second.orders.take_orders, 0

    async def take_once(limit: int) -> Any:
        nonlocal takes
        takes += 1
        if takes > 1:
            raise unavailable()
        return await take(limit)

    monkeypatch.setattr(second.orders, "take_orders", take_once)
    await tick(world, second, seconds=3)
    (taken,) = [order for order in world.orders if order.holder == second.orders.holder]
    for _ in range(100):
        await tick(world, second)
    (order,) = [order for order in world.orders if order.order_id == taken.order_id]
    assert order.state is OrderState.ISSUED


async def test_a_row_that_cannot_be_read_ends_no_order_of_its_heirs(
    world: World, brokers: Brokers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What one order brings out at who would take it is said once, and the others are run."""
    first, second = brokers

    async def fail(_limit: int) -> Any:
        raise ValueError("no such state")

    monkeypatch.setattr(second.orders, "take_orders", fail)
    await tick(world, first, second, seconds=3)
    assert (await second.authority.issue(caller(), issue())).order.state is OrderState.ISSUED
    monkeypatch.undo()
    first.issuer.faults.hold("create_order")
    await first.authority.issue(caller("web2.test"), issue("two", wait=NO_WAIT))
    first.kill()
    await first.renew(timedelta())
    for _ in range(100):
        await tick(world, second)
    assert [order.state for order in world.orders] == [OrderState.ISSUED] * 2
    assert caplog.text.count("could not take orders that others have left") == 1


async def test_who_watches_without_end_keeps_no_broker_from_its_orders(world: World, brokers: Brokers) -> None:
    """What it held isn't run before it is taken anew: each run would have to end first."""
    first, _ = brokers
    first.issuer.faults.hold("answer_challenges")
    await first.authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    epoch = world.order.epoch
    first.lease.held = False
    await tick(world, first, seconds=3)
    first.issuer.faults.heal()
    gate = first.issuer.faults.hold("get_order")
    first.lease.held = True

    async def watch() -> None:
        async for _ in first.authority.watch_order(caller(), "w", world.order.order_id):
            pass

    watching = []
    for _ in range(5):
        watching.append(asyncio.create_task(watch()))
        await settle()
        await tick(world, first)
    assert world.order.epoch > epoch
    gate.set()
    for _ in range(100):
        await tick(world, first)
    assert world.order.state is OrderState.ISSUED
    ends = await asyncio.gather(*watching, return_exceptions=True)
    assert isinstance(ends[0], RefusalError)
    assert ends[0].refusal.reason is Reason.STORE_UNAVAILABLE


async def disturb(rng: random.Random, broker: IssuingBroker, calls: list[asyncio.Task[Any]]) -> None:
    """One of the things that may happen to a broker."""
    match rng.randrange(5):
        case 0 | 1:
            name = rng.choice(("one", "two"))
            calls.append(asyncio.create_task(broker.authority.issue(caller(), issue(name, wait=NO_WAIT))))
            await settle(rng.randrange(200))
        case 2:
            await broker.renew(timedelta())  # it stands still, and doesn't know
        case 3:
            broker.lease.held = not broker.lease.held
        case _:
            await broker.renew(LONG if broker.lease.held else timedelta())


@pytest.mark.parametrize("seed", range(12))
async def test_pauses_and_lost_leases_at_any_moment(world: World, brokers: Brokers, seed: int) -> None:
    """Whichever broker stops, wakes up, or is asked: never two finalised orders for a key, and each order ends."""
    rng = random.Random(seed)
    calls: list[asyncio.Task[Any]] = []
    for broker in brokers:
        for operation in ("create_order", "answer_challenges", "finalize", "download"):
            broker.issuer.faults.fail(operation, unavailable(), times=2)
    for _ in range(60):
        await disturb(rng, rng.choice(brokers), calls)
        await tick(world, *brokers, seconds=rng.randrange(1, 4))
    for broker in brokers:
        broker.lease.held = True
        await broker.renew(LONG)
    for _ in range(300):
        await tick(world, *brokers)
        if all(ended(order) for order in world.orders):
            break
    await asyncio.gather(*calls, return_exceptions=True)
    assert all(ended(order) for order in world.orders)
    issued = [order for order in world.orders if order.state is OrderState.ISSUED]
    assert len({order.public_key_sha256 for order in issued}) == len(issued) == world.ca.finalisations
    assert world.dns.records == {}
