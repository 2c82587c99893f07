"""Orders of the same names at several brokers: one at the CA at a time, and TXT records that they share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from certplane.broker.model import Grant, IdentityKind, Order, OrderState, Profile
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.support.issuance import NAMES, NO_WAIT, World, caller, csr, issue, kill_all, settle, unavailable
from tests.support.issuing_brokers import LONG, SECOND, IssuingBroker, tick

Brokers = tuple[IssuingBroker, IssuingBroker]
HOSTS = tuple(f"web{number}.test" for number in range(1, 9))


@pytest.fixture
def world() -> World:
    """Two profiles that have a name in common."""
    profiles = [
        Profile("shop", "mixed", NAMES, hash="shop-hash"),
        Profile("more", "multi_san", ("more.test", "shop.test"), hash="more-hash"),
    ]
    grants = [Grant(host, IdentityKind.HOST, host, ("shop", "more")) for host in HOSTS]
    return World(policies=FakePolicySource(FakePolicy.of(grants, profiles)))


@pytest_asyncio.fixture
async def brokers(world: World) -> AsyncIterator[Brokers]:
    """Two that run."""
    yield await IssuingBroker(world).start(), await IssuingBroker(world).start()
    await kill_all()


async def ask(broker: IssuingBroker, number: int, *, profile: str = "shop") -> Order:
    """Have a broker open an order of a host and key of their own; what it has come to by itself."""
    names = NAMES if profile == "shop" else ("more.test", "shop.test")
    text = csr(f"key-{number}", names)
    command = issue(csr_pem=text, profile=profile, wait=NO_WAIT)
    result = await broker.authority.issue(caller(HOSTS[number]), command)
    await settle()
    return result.order


def states(world: World) -> list[OrderState]:
    return [order.state for order in world.orders]


async def hear(*brokers: IssuingBroker) -> None:
    """What others have changed, without time passing."""
    for broker in brokers:
        await broker.look()
        await settle()


async def test_one_of_all_brokers_is_at_the_ca(world: World, brokers: Brokers) -> None:
    """The other one's order waits, and goes on as soon as it hears that the first has ended."""
    first, second = brokers
    world.ca.reuses_pending = True
    gate = first.issuer.faults.hold("finalize")
    await ask(first, 1)
    await ask(second, 2)
    assert states(world) == [OrderState.FINALIZING, OrderState.PENDING]
    assert len(world.ca.orders) == 1
    assert second.issuer.faults.count("create_order") == 0
    gate.set()
    await settle()
    assert states(world) == [OrderState.ISSUED, OrderState.PENDING]
    await hear(second)
    assert states(world) == [OrderState.ISSUED] * 2
    assert [order.finalisations for order in world.ca.orders.values()] == [1, 1]
    assert all(order.lane is None and order.turn_time is None for order in world.orders)
    assert world.dns.records == {}


async def test_the_turn_lasts_until_the_records_are_removed(world: World, brokers: Brokers) -> None:
    """A provider may have room for few."""
    first, second = brokers
    gate = first.solver.faults.hold("remove")
    await ask(first, 1)
    await ask(second, 2)
    await hear(second)
    assert states(world) == [OrderState.ISSUED, OrderState.PENDING]
    gate.set()
    await settle()
    await hear(second)
    assert states(world) == [OrderState.ISSUED] * 2


async def test_records_that_cannot_be_removed_hold_up_nobody(world: World, brokers: Brokers) -> None:
    """They stay in the order's journal, and the next one of the names goes on."""
    first, second = brokers
    first.solver.faults.fail_always("remove", unavailable())
    order = await ask(first, 1)
    await ask(second, 2)
    await hear(second)
    assert states(world) == [OrderState.ISSUED] * 2
    left = world.database.orders[order.order_id]
    assert left.txt_records
    assert left.lane is None


@pytest.mark.parametrize(("operation", "state"), [("finalize", OrderState.FINALIZING), ("remove", OrderState.ISSUED)])
async def test_a_bug_in_one_order_holds_up_no_other(
    world: World, brokers: Brokers, operation: str, state: OrderState
) -> None:
    """The order stays as it is until the next start, but for its turn."""
    first, second = brokers
    faults = first.solver.faults if operation == "remove" else first.issuer.faults
    faults.fail_always(operation, RuntimeError("a bug"))
    await ask(first, 1)
    await ask(second, 2)
    await hear(second)
    assert states(world) == [state, OrderState.ISSUED]
    assert all(order.lane is None for order in world.orders)


async def test_who_waits_longest_is_next(world: World, brokers: Brokers) -> None:
    """A broker whose order ends doesn't let its own younger ones pass those of others."""
    first, second = brokers
    gate = first.issuer.faults.hold("finalize")
    for number, broker in enumerate((first, second, first, second), start=1):
        await ask(broker, number)
        world.clock.advance(SECOND)
    gate.set()
    for _ in range(10):
        await hear(first, second)
    await tick(world, first, second, seconds=10)
    assert states(world) == [OrderState.ISSUED] * 4
    urls = [order.acme_order_url for order in world.orders]
    assert urls == sorted(urls)


async def test_a_dead_broker_s_turn_goes_with_its_order(world: World, brokers: Brokers) -> None:
    """The heir ends that one first; its own of the same names waits for it."""
    first, second = brokers
    first.issuer.faults.hold("finalize")
    await ask(first, 1)
    await ask(second, 2)
    first.kill()
    await first.renew(timedelta())
    await tick(world, second)
    assert world.orders[0].holder == second.orders.holder
    for _ in range(100):
        await tick(world, second)
    assert states(world) == [OrderState.ISSUED] * 2
    assert [order.finalisations for order in world.ca.orders.values()] == [1, 1]


async def test_one_that_waits_and_dies_holds_up_nobody(world: World, brokers: Brokers) -> None:
    """The younger one at the living broker goes on after the other's lease, without having heard of anything."""
    first, second = brokers
    third = await IssuingBroker(world).start()
    gate = first.issuer.faults.hold("finalize")
    await ask(first, 1)
    world.clock.advance(SECOND)
    await ask(second, 2)
    world.clock.advance(SECOND)
    await ask(third, 3)
    second.kill()
    gate.set()
    await settle()
    await hear(first, third)
    assert states(world) == [OrderState.ISSUED, OrderState.PENDING, OrderState.PENDING]
    await second.renew(timedelta())
    for _ in range(20):
        await tick(world, first, third)
    assert states(world) == [OrderState.ISSUED] * 3


async def test_an_order_that_is_shut_out_while_it_waits(world: World, brokers: Brokers) -> None:
    """It ends, and is in nobody's way."""
    first, second = brokers
    gate = first.issuer.faults.hold("finalize")
    await ask(first, 1)
    await ask(second, 2)
    world.policies.policy = FakePolicy.of(
        [grant for grant in world.policies.policy.grants.values() if grant.name != HOSTS[2]],
        world.policies.policy.profiles.values(),
    )
    gate.set()
    await settle()
    await tick(world, first, second, seconds=10)
    assert states(world) == [OrderState.ISSUED, OrderState.FAILED]
    assert all(order.lane is None for order in world.orders)


async def test_a_lease_that_ended_unseen(world: World, brokers: Brokers) -> None:
    """Ended and had anew between two looks: nothing more is done outside for what was held, until it is taken anew."""
    first, _ = brokers
    gate = first.issuer.faults.hold("answer_challenges")
    order = await ask(first, 1)
    first.lease.number += 1
    gate.set()
    await settle()
    assert first.issuer.faults.count("finalize") == 0
    for _ in range(100):
        await tick(world, first)
    assert world.order.state is OrderState.ISSUED
    assert world.order.epoch > order.epoch
    assert world.ca.finalisations == 1


async def test_a_lease_that_is_lost_between_two_looks_leaves_no_order_lying(world: World, brokers: Brokers) -> None:
    """A step found it lost, and it was there again a moment later: somebody runs the order."""
    first, _ = brokers
    gate = first.issuer.faults.hold("answer_challenges")
    await ask(first, 1)
    first.lease.held = False
    gate.set()
    await settle()
    first.lease.held = True
    for _ in range(100):
        await tick(world, first)
    assert world.order.state is OrderState.ISSUED


async def test_a_record_that_two_orders_share_stays_for_the_other(world: World, brokers: Brokers) -> None:
    """Orders of overlapping names, at two brokers, with one challenge: whoever ends last removes the record."""
    first, second = brokers
    world.ca.shares_challenges = True
    gate = second.issuer.faults.hold("answer_challenges")
    await ask(first, 1)
    order = await ask(second, 2, profile="more")
    assert states(world) == [OrderState.ISSUED, OrderState.VALIDATING]
    shared = [record for record in world.database.orders[order.order_id].txt_records if "shop" in record.name]
    assert len(shared) == 1
    assert world.dns.find(shared[0]) is not None
    gate.set()
    await settle()
    assert states(world) == [OrderState.ISSUED] * 2
    assert world.dns.records == {}
    assert not any(each.txt_records for each in world.orders)


async def test_a_record_that_is_being_removed_is_written_after_that(world: World, brokers: Brokers) -> None:
    """Its order had ended and found nobody who needs it; another one, just then, is given the same challenge."""
    first, second = brokers
    world.ca.shares_challenges = True
    gate = first.solver.faults.hold("remove")
    await ask(first, 1)
    order = await ask(second, 2, profile="more")
    assert states(world) == [OrderState.ISSUED, OrderState.VALIDATING]
    assert second.solver.faults.count("present") == 0
    gate.set()
    await tick(world, first, second, seconds=2)
    assert states(world) == [OrderState.ISSUED] * 2
    assert second.issuer.faults.count("create_order") == 1
    assert order.trouble == ""
    assert world.dns.records == {}


async def test_a_removal_that_never_ends_is_not_waited_for(world: World, brokers: Brokers) -> None:
    """Its provider is away, say: the record stands, and does for the other order too."""
    first, second = brokers
    world.ca.shares_challenges = True
    first.solver.faults.fail_always("remove", unavailable())
    await ask(first, 1)
    await ask(second, 2, profile="more")
    assert states(world) == [OrderState.ISSUED, OrderState.VALIDATING]
    await tick(world, first, second, seconds=70)
    assert states(world) == [OrderState.ISSUED] * 2


@pytest.mark.parametrize(
    ("needed", "trouble"),
    [
        pytest.param(False, None, id="needed by none"),
        pytest.param(True, None, id="needed by another"),
        pytest.param(False, unavailable(), id="the provider is away"),
        pytest.param(False, RuntimeError("a bug"), id="a bug"),
    ],
)
async def test_a_record_that_was_written_too_late(
    world: World, brokers: Brokers, *, needed: bool, trouble: Exception | None
) -> None:
    """A broker stood still right before it wrote; its heir had ended the order by then, so nobody lists the record."""
    first, second = brokers
    world.ca.shares_challenges = True
    first.issuer.faults.fail_always("get_order", unavailable())
    gate = first.solver.faults.hold("present")
    await ask(first, 1)
    await first.renew(timedelta())  # as if it stood still: it doesn't know
    for _ in range(30):
        await tick(world, second)
    assert world.order.state is OrderState.ISSUED
    assert world.dns.records == {}
    if needed:
        held = second.issuer.faults.hold("answer_challenges")
        await ask(second, 2)
    if trouble is not None:
        first.solver.faults.fail("remove", trouble)
    gate.set()
    await settle()
    assert len(world.dns.records) == 2
    await first.renew(LONG)
    await tick(world, first, second, seconds=200)
    assert (world.dns.records == {}) == (not needed)
    if needed:
        held.set()
        await tick(world, first, second, seconds=200)
        assert world.dns.records == {}
        assert states(world) == [OrderState.ISSUED] * 2
