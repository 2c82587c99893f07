"""A broker killed at any step of an order, once or twice: the next start ends it with exactly one certificate.

A kill is a copy of the world (database, CA, DNS) at a failpoint; another registration authority starts on the copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from certplane.broker.events import AuditEventType
from certplane.broker.issuance.steps import FAILPOINTS, STEPS
from certplane.broker.model import IssuerOrderStatus, OrderState
from certplane.errors import Reason
from tests.support.issuance import NO_WAIT, World, caller, issue, policy, settle, unavailable


async def worlds_at_failpoints(world: World) -> dict[str, World]:
    """Run one order to its end; the world as it was at the first pass of each failpoint."""
    worlds: dict[str, World] = {}

    def kill(name: str) -> None:
        worlds.setdefault(name, world.fork())

    with world.at_failpoints(kill):
        authority = await world.started()
        if not world.orders:
            await authority.issue(caller(), issue())
        await world.run_on()
    return worlds


async def killed_at(failpoint: str, **ca: object) -> World:
    """A world whose broker was killed at this step of its only order."""
    world = World()
    for name, value in ca.items():
        setattr(world.ca, name, value)
    return (await worlds_at_failpoints(world))[failpoint]


def one_certificate_and_no_trace(world: World) -> None:
    """What must hold once everything has ended, whatever happened before."""
    assert world.order.state is OrderState.ISSUED
    assert world.ca.finalisations == len(world.ca.issued) == len(world.database.certificates) == 1
    assert world.logged(AuditEventType.CERTIFICATE_AUTHORIZED) == 1
    assert world.logged(AuditEventType.CERTIFICATE_ISSUED) == 1
    assert world.logged(AuditEventType.CERTIFICATE_ISSUE_FAILED) == 0
    assert not world.dns.records
    assert world.order.txt_records == ()


async def test_an_undisturbed_order_passes_every_failpoint_in_order() -> None:
    """The published list is what an order really passes, so that a test that walks it kills at every step."""
    assert tuple(await worlds_at_failpoints(World())) == FAILPOINTS
    assert len(FAILPOINTS) == 2 * len(STEPS)


@pytest.mark.parametrize("reuses_pending", [pytest.param(False, id="new-orders"), pytest.param(True, id="handed-back")])
@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_killed_at_any_step_the_next_start_ends_the_order(failpoint: str, reuses_pending: bool) -> None:
    """One order, one finalisation, one certificate; the caller that asks again gets it without another order."""
    world = await killed_at(failpoint, reuses_pending=reuses_pending)

    authority = await world.started()
    await world.run_on()

    one_certificate_and_no_trace(world)
    again = await authority.issue(caller(), issue())
    assert again.source == "cache"
    assert len(world.ca.issued) == len(world.orders) == 1
    # The only order at the CA that nobody finalised is one whose URL was never learned.
    unknown = failpoint in ("order.create.after", "order.journal_url.before") and not reuses_pending
    assert len(world.ca.orders) == (2 if unknown else 1)


@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_killed_twice_at_any_two_steps_the_order_still_ends_once(failpoint: str) -> None:
    """A start that is killed itself leaves no worse state than it found."""
    first = await killed_at(failpoint)
    for second in (await worlds_at_failpoints(first.fork())).values():
        await second.started()
        await second.run_on()
        one_certificate_and_no_trace(second)


@pytest.mark.parametrize("failpoint", FAILPOINTS[: FAILPOINTS.index("order.store.after")])
async def test_a_caller_that_asks_again_right_after_the_restart_joins_the_order(failpoint: str) -> None:
    """The order that the kill left open is the same order for the same request."""
    world = await killed_at(failpoint)
    known = len(world.orders)
    authority = await world.started()

    result = await authority.issue(caller(), issue())

    assert result.order.state is OrderState.ISSUED
    assert len(world.orders) == known == 1
    assert len(world.ca.issued) == 1


@pytest.mark.parametrize("failpoint", ["order.finalize.before", "order.journal_finalizing.after"])
async def test_killed_before_the_csr_was_sent_the_start_looks_and_then_sends_it(failpoint: str) -> None:
    """FINALIZING and `ready`: the CA never got the CSR."""
    world = await killed_at(failpoint)
    assert world.order.state is OrderState.FINALIZING

    await world.started()
    await world.run_on()

    calls = world.issuer.faults.calls
    assert calls.index("get_order") < calls.index("finalize")
    assert calls.count("finalize") == 1
    one_certificate_and_no_trace(world)


@pytest.mark.parametrize("status", [IssuerOrderStatus.PROCESSING, IssuerOrderStatus.VALID])
async def test_killed_after_the_csr_was_sent_the_start_downloads(status: IssuerOrderStatus) -> None:
    """FINALIZING and `processing` or `valid`: nothing is sent a second time."""
    world = await killed_at("order.finalize.after")
    (url,) = world.ca.orders
    world.ca.set_status(url, status)

    await world.started()
    await settle()
    world.ca.complete()
    await world.run_on()

    assert world.issuer.faults.count("finalize") == 0
    one_certificate_and_no_trace(world)


async def test_an_order_that_was_finalised_after_the_database_was_copied_is_issued_once() -> None:
    """Restored, the database knows nothing of the CSR that was sent: the certificate that the CA has made is taken."""
    world = await killed_at("order.answer.before")
    (url,) = world.ca.orders
    world.ca.set_status(url, IssuerOrderStatus.READY)
    world.ca.finalize(url, world.order.csr_der)

    await world.started()
    await world.run_on()

    assert world.issuer.faults.count("create_order") == world.issuer.faults.count("finalize") == 0
    assert world.logged(AuditEventType.ORDER_ABANDONED) == 0
    one_certificate_and_no_trace(world)


def forget(world: World) -> None:
    for url in list(world.ca.orders):
        world.ca.forget(url)


def invalidate(world: World) -> None:
    for url in world.ca.orders:
        world.ca.set_status(url, IssuerOrderStatus.INVALID)


@pytest.mark.parametrize("gone", [pytest.param(forget, id="unknown"), pytest.param(invalidate, id="invalid")])
@pytest.mark.parametrize("failpoint", ["order.finalize.before", "order.finalize.after", "order.store.before"])
async def test_a_finalising_order_that_the_ca_gave_up_meanwhile_fails(
    failpoint: str, gone: Callable[[World], None]
) -> None:
    """It may have been issued, so it is not silently done again: FAILED, and the records are removed."""
    world = await killed_at(failpoint)
    gone(world)

    await world.started()
    await world.run_on()

    assert world.order.error is not None
    assert world.order.error.reason is Reason.ISSUER_REJECTED
    assert world.issuer.faults.count("create_order") == world.issuer.faults.count("finalize") == 0
    assert not world.dns.records


@pytest.mark.parametrize(
    "failpoint", FAILPOINTS[FAILPOINTS.index("order.journal_url.after") : FAILPOINTS.index("order.answer.after")]
)
async def test_an_order_that_the_ca_forgot_meanwhile_is_made_anew(failpoint: str) -> None:
    """Not finalised: another ACME order follows, and the lost one is on record as abandoned."""
    world = await killed_at(failpoint)
    (url,) = world.ca.orders
    world.ca.orders["https://ca.test/order/0"] = world.ca.orders[url]  # so that the next number is a new one
    world.ca.forget(url)

    await world.started()
    await world.run_on()

    one_certificate_and_no_trace(world)
    assert world.logged(AuditEventType.ORDER_ABANDONED) == 1


@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_an_order_that_policy_no_longer_allows_at_the_restart(failpoint: str) -> None:
    """Not finalised: it fails. Finalised: what the CA issued is stored, and not handed out."""
    world = await killed_at(failpoint)
    finalised = world.ca.finalisations == 1
    world.policies.policy = policy(shop=None)

    authority = await world.started()
    await world.run_on()

    if finalised:
        assert world.order.state is OrderState.ISSUED
        with pytest.raises(Exception, match="PROFILE_NOT_ALLOWED"):
            await authority.get_order(caller(), "g", world.order.order_id)
    else:
        assert world.order.error is not None
        assert world.order.error.reason is Reason.PROFILE_NOT_ALLOWED
    assert world.ca.finalisations == (1 if finalised else 0)
    await settle()
    assert not world.dns.records


async def test_orders_that_the_ca_knows_go_first_after_a_restart() -> None:
    """A CA that hands back pending orders must not give one to an order of another key that comes earlier."""
    world = World()
    world.ca.reuses_pending = True
    world.issuer.faults.hold("create_order")
    authority = await world.started()
    for number, host in enumerate(("web1.test", "web2.test")):
        await authority.issue(caller(host), issue(f"key{number}", wait=NO_WAIT))
    await settle()
    first, second = world.orders
    url = world.ca.create(second.dns_names).url
    after = world.fork()
    after.database.put_order(replace(second, acme_order_url=url, state=OrderState.AUTHORIZED))

    await after.started()
    await after.run_on()

    assert after.database.orders[second.order_id].acme_order_url == url
    assert after.database.orders[first.order_id].acme_order_url != url
    assert [order.finalisations for order in after.ca.orders.values()] == [1, 1]


async def test_a_start_without_a_store_starts_nothing() -> None:
    """The store must answer before anything is resumed; a later start can succeed."""
    world = await killed_at("order.present.after")
    world.database.down = True
    authority = world.authority()
    with pytest.raises(Exception, match="STORE_UNAVAILABLE"):
        await authority.start()

    world.database.down = False
    await authority.start()
    await world.run_on()

    one_certificate_and_no_trace(world)


async def test_a_second_start_is_misuse() -> None:
    """Orders are run once."""
    authority = await World().started()
    with pytest.raises(RuntimeError):
        await authority.start()


async def test_a_sweep_leaves_the_records_that_a_resumed_order_needs() -> None:
    """An ended order's leftover that an open order was given too stays as long as that one may need it."""
    world = World()
    world.solver.faults.fail_always("remove", unavailable(Reason.DNS_UNAVAILABLE))
    authority = await world.started()
    await authority.issue(caller(), issue())
    await settle()
    leftover = world.order.txt_records
    world.issuer.faults.hold("answer_challenges")
    await authority.issue(caller("web2.test"), issue("two", wait=NO_WAIT))
    await settle()
    after = world.fork()
    running = next(order for order in after.orders if order.state.is_open)
    after.database.put_order(replace(running, txt_records=(*running.txt_records, *leftover)))
    after.issuer.faults.hold("get_order")

    await after.started()
    await settle()
    assert {record.value for record in leftover} <= {record.value for record in after.dns.records.values()}

    after.issuer.faults.heal()
    await after.run_on()
    assert not after.dns.records
