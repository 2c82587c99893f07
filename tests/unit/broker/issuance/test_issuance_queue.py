"""Whose turn it is: one ACME order at a time per name set, first come first served, so many at once at most."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from certplane.broker import metrics
from certplane.broker.issuance.holds import IssuerHolds
from certplane.broker.issuance.queue import Lane, OrderQueue
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.model import IssuerOrderStatus, OrderState, Scope, ScopeKind
from certplane.errors import Reason, Refusal
from tests.fakes.clock import ManualClock
from tests.support.issuance import NO_WAIT, World, caller, csr, issue, settle
from tests.support.memory_store import MemoryStores
from tests.support.waiting import no_hang

LANE = Lane("ca", "", ("shop.test",))


async def test_a_lane_serves_in_order_of_arrival_one_at_a_time() -> None:
    """FIFO within a name set."""
    queue = OrderQueue(5)
    running: list[int] = []
    served: list[int] = []

    async def use(number: int) -> None:
        async with queue.turn(LANE):
            running.append(number)
            assert len(running) == 1
            await asyncio.sleep(0)
            running.remove(number)
            served.append(number)

    await asyncio.gather(*(use(number) for number in range(20)))

    assert served == list(range(20))


async def test_lanes_do_not_wait_for_each_other_below_the_limit() -> None:
    """Other names, another CA profile or another issuer is another lane."""
    queue = OrderQueue(10)
    inside: set[Lane] = set()
    gate = asyncio.Event()
    lanes = [
        LANE,
        LANE._replace(issuer="other"),
        LANE._replace(acme_profile="tlsserver"),
        LANE._replace(dns_names=("*.shop.test",)),
    ]

    async def use(lane: Lane) -> None:
        async with queue.turn(lane):
            inside.add(lane)
            await gate.wait()

    tasks = [asyncio.create_task(use(lane)) for lane in lanes]
    await settle()
    assert inside == set(lanes)
    gate.set()
    await asyncio.gather(*tasks)


async def test_at_most_so_many_orders_at_once_and_a_waiting_lane_takes_no_place() -> None:
    """Two of one lane and one of another with two places: the other lane isn't kept out by the lane's queue."""
    queue = OrderQueue(2)
    inside: list[str] = []
    gates = {name: asyncio.Event() for name in "abc"}

    async def use(name: str, lane: Lane) -> None:
        async with queue.turn(lane):
            inside.append(name)
            await gates[name].wait()

    tasks = [
        asyncio.create_task(use(name, LANE._replace(issuer=issuer)))
        for name, issuer in (("a", "one"), ("b", "one"), ("c", "two"))
    ]
    await settle()
    assert inside == ["a", "c"]
    for gate in gates.values():
        gate.set()
    await asyncio.gather(*tasks)
    assert inside == ["a", "c", "b"]


async def test_a_limit_that_one_meets_spares_the_ca_the_rest() -> None:
    """Twenty orders with a turn each, two of which may ask at once: one refusal of the account, and eighteen hold back."""
    queue, now = OrderQueue(20, asking=2), ManualClock().now()
    holds = IssuerHolds(MemoryStores.open(ManualClock()).holds, {}, str)
    asked: list[int] = []
    until = now + timedelta(hours=1)
    limited = Refusal(Reason.ISSUER_RATE_LIMITED, "too many new orders")

    async def order(number: int) -> None:
        lane = LANE._replace(dns_names=(f"{number}.shop.test",))
        async with queue.turn(lane):
            async with queue.asking(lane):
                if holds.held(lane, now) is not None:
                    return
                asked.append(number)
                await asyncio.sleep(0)
            holds.hold(lane, [Scope(ScopeKind.ACCOUNT)], until, limited, now)

    await asyncio.gather(*(order(number) for number in range(20)))

    assert asked == [0, 1]


async def test_issuers_are_asked_independently() -> None:
    """A CA that takes its time over new orders holds up nobody at another."""
    queue = OrderQueue(20, asking=1)
    async with queue.asking(LANE):
        async with no_hang(), queue.asking(LANE._replace(issuer="other")):
            pass
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), queue.asking(LANE):
                pass


async def test_one_that_is_cancelled_while_it_waits_leaves_the_queue() -> None:
    """The next one in the lane gets the turn."""
    queue = OrderQueue(1)
    gate = asyncio.Event()
    inside: list[str] = []

    async def use(name: str) -> None:
        async with queue.turn(LANE):
            inside.append(name)
            await gate.wait()

    tasks = [asyncio.create_task(use(name)) for name in "abc"]
    await settle()
    tasks[1].cancel()
    await settle()
    gate.set()
    await asyncio.wait(tasks)

    assert inside == ["a", "c"]
    assert not queue._lanes._gates


@pytest.mark.parametrize("reuses_pending", [False, True])
async def test_other_keys_of_the_same_names_queue_behind_the_running_order(reuses_pending: bool) -> None:
    """However a CA hands back pending orders, each key gets an ACME order and a certificate of its own."""
    world = World()
    world.ca.reuses_pending = reuses_pending
    authority = await world.started()
    hosts = ["web1.test", "web2.test"] * 4

    results = await asyncio.gather(
        *(authority.issue(caller(host), issue(f"{host}-{number}")) for number, host in enumerate(hosts))
    )

    assert [result.order.state for result in results] == [OrderState.ISSUED] * 8
    assert [order.finalisations for order in world.ca.orders.values()] == [1] * 8
    assert len({order.acme_order_url for order in world.orders}) == 8
    created = [order.create_time for order in world.orders]
    assert created == sorted(created)


async def test_only_one_order_of_a_name_set_is_at_the_ca_at_a_time() -> None:
    """The second is PENDING and unknown to the CA until the first has ended."""
    world = World()
    gate = world.issuer.faults.hold("answer_challenges")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await authority.issue(caller("web2.test"), issue("two", wait=NO_WAIT))
    mail = issue(csr_pem=csr("mail", ("mail.test",)), profile="mail", wait=NO_WAIT)
    await authority.issue(caller(), mail)
    await settle()

    assert [order.state for order in world.orders] == [
        OrderState.VALIDATING,
        OrderState.PENDING,
        OrderState.VALIDATING,
    ]
    assert world.issuer.faults.count("create_order") == 2
    gate.set()
    await world.run_on()
    assert all(order.status is IssuerOrderStatus.VALID for order in world.ca.orders.values())


async def test_the_number_of_orders_at_the_ca_is_bounded() -> None:
    """With one place, another name set waits as well."""
    world = World(settings=IssuanceSettings(parallel_orders=1))
    gate = world.issuer.faults.hold("answer_challenges")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    mail = issue(csr_pem=csr("mail", ("mail.test",)), profile="mail", wait=NO_WAIT)
    await authority.issue(caller(), mail)
    await settle()

    assert world.issuer.faults.count("create_order") == 1
    assert world.meter.levels[metrics.ORDERS_OPEN] == 2
    gate.set()
    await world.run_on()
    assert world.meter.levels[metrics.ORDERS_OPEN] == 0
