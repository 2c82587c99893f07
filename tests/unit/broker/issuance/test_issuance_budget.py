"""Orders and the ledger of their CA's limits: who waits, who goes first, and what a refusal of the CA teaches."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from unittest import mock

import pytest

from certplane.broker.budget.model import FULL, Exemption, IssuerLimits, Limit, LimitScope
from certplane.broker.events import AuditEventType
from certplane.broker.issuance import steps
from certplane.broker.issuance.budgeting import OrderBudget
from certplane.broker.issuance.steps import LEDGER_FAILPOINTS
from certplane.broker.model import IssuerOrderStatus, OrderState
from certplane.errors import ProblemDocument, Reason, RefusalError, Violation
from tests.fakes.issuer import FakeIssuer
from tests.support.issuance import NO_WAIT, World, caller, issue, kill_all, settle, unavailable

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
URL = "https://ca.test/directory"
ALL = frozenset(Exemption)


def limited(world: World, *limits: Limit) -> World:
    world.budgets[world.issuer.name] = IssuerLimits(world.issuer.name, URL, "configuration", limits)
    return world


def one_an_hour(**changes: object) -> Limit:
    return replace(Limit("orders", LimitScope.ACCOUNT, 1, HOUR, frozenset({Exemption.ARI})), **changes)  # type: ignore[arg-type]


@pytest.fixture
def world() -> World:
    """Its CA makes one order an hour."""
    return limited(World(), one_an_hour())


def states(world: World) -> list[OrderState]:
    return [order.state for order in world.orders]


async def test_an_order_without_a_place_waits_and_says_so(world: World) -> None:
    """It stays open, without failing, as long as that takes; its caller, and who looks, are told why and until when."""
    authority = await world.started()
    await authority.issue(caller(), issue())
    await world.run_on()
    asked = await authority.issue(caller(), issue("two", wait=NO_WAIT))
    await settle()
    seen = (await authority.get_order(caller(), "req-9", asked.order.order_id)).order
    assert (seen.state, seen.progress.step, seen.error) == (OrderState.PENDING, "budget", None)
    assert seen.trouble.startswith("budget: 1 per 1h for the account; free at ")
    assert seen.progress.place_time is not None
    assert len(world.ca.orders) == 1
    world.clock.advance(seen.progress.place_time - world.clock.now() - MINUTE)
    await settle()
    assert len(world.ca.orders) == 1
    world.clock.advance(MINUTE)
    await world.run_on()
    assert states(world) == [OrderState.ISSUED] * 2


async def test_the_most_urgent_goes_first(world: World) -> None:
    """A renewal before first issues, whoever asked first; each waits for one place, and none is asked of the CA in vain."""
    authority = await world.started()
    first = await authority.issue(caller(), issue())
    await world.run_on()
    for key in ("two", "three"):
        await authority.issue(caller("web2.test"), issue(key, wait=NO_WAIT))
        await settle()
        world.clock.advance(timedelta(seconds=1))
    assert first.certificate is not None
    renewal = issue("four", wait=NO_WAIT, replaces=first.certificate.certificate_id)
    await authority.issue(caller(), renewal)
    await settle()
    assert len(world.ca.orders) == 1
    issued = []
    for _ in range(3):
        world.clock.advance(HOUR + MINUTE)
        for _ in range(30):
            await settle(60)
            world.clock.advance(timedelta(seconds=2))
        issued.append([order.request_id for order in world.orders if order.state is OrderState.ISSUED])
        assert len(world.ca.orders) == 1 + len(issued)
    ended = [order.identity for order in sorted(world.orders, key=lambda order: order.update_time)]
    assert ended == ["web1.test", "web1.test", "web2.test", "web2.test"]


async def test_a_refusal_of_the_ca_corrects_the_ledger() -> None:
    """The order waits as one without a place would, for as long as the CA says; nothing is failed and nobody held."""
    world = limited(World(), one_an_hour(amount=100))
    until = 2 * HOUR
    refusal = RefusalError(
        Reason.ISSUER_RATE_LIMITED, "too many new orders", retry_after=until, violations=[Violation("account", "")]
    )
    world.issuer.faults.fail("create_order", refusal)
    authority = await world.started()
    start = world.clock.now()
    asked = await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    await authority.issue(caller("web2.test"), issue("two", wait=NO_WAIT))
    await settle()
    seen = (await authority.get_order(caller(), "req-9", asked.order.order_id)).order
    assert seen.trouble.endswith("as the CA says")
    assert states(world) == [OrderState.PENDING] * 2
    state = await world.stores.budget.state([URL])
    assert [bucket.told_until for bucket in state.buckets.values()] == [start + until]
    assert {waiter.order_id for waiter in state.waiters} == {order.order_id for order in world.orders}
    world.clock.advance(until - MINUTE)
    await settle()
    assert not world.ca.orders
    world.clock.advance(MINUTE)
    await world.run_on()
    assert states(world) == [OrderState.ISSUED] * 2


async def test_a_limit_that_nobody_knows_is_waited_out_as_ever() -> None:
    """The ledger says nothing of it: the order fails with the CA's words and its time."""
    world = limited(World(), one_an_hour(amount=100))
    refusal = RefusalError(
        Reason.ISSUER_RATE_LIMITED, "too much", retry_after=2 * HOUR, violations=[Violation("name_set", "")]
    )
    world.issuer.faults.fail("create_order", refusal)
    authority = await world.started()
    result = await authority.issue(caller(), issue())
    assert result.order.state is OrderState.FAILED
    assert result.order.error is not None
    assert result.order.error.reason is Reason.ISSUER_RATE_LIMITED


async def test_another_issuer_of_the_profile_is_asked_instead(world: World) -> None:
    """As where the CA itself had refused; nothing is held at the first one."""
    world.others.append(other := FakeIssuer(world.ca, name="second"))
    world.change_profile(issuers=(world.issuer.name, other.name))
    authority = await world.started()
    await authority.issue(caller(), issue())
    await authority.issue(caller(), issue("two"))
    await world.run_on()
    assert [order.issuer for order in world.orders] == [world.issuer.name, "second"]
    assert states(world) == [OrderState.ISSUED] * 2
    assert not await world.stores.holds.holds()


async def test_where_no_issuer_has_a_place_the_first_to_have_one_is_waited_for(world: World) -> None:
    """The second has none for a week, the first one for an hour: the order goes back there, once, and waits."""
    world.others.append(other := FakeIssuer(world.ca, name="second"))
    week = replace(one_an_hour(), per=168 * HOUR)
    world.budgets[other.name] = IssuerLimits(other.name, URL, "configuration", (week,))
    world.change_profile(issuers=(world.issuer.name, other.name))
    authority = await world.started()
    for key in ("one", "two", "three"):
        await authority.issue(caller(), issue(key, wait=NO_WAIT))
        await settle()
    *_, last = world.orders
    assert (last.issuer, last.state) == (world.issuer.name, OrderState.PENDING)
    assert world.logged(AuditEventType.ISSUER_FAILED_OVER) == 3
    world.clock.advance(HOUR + MINUTE)
    await world.run_on()
    assert [order.issuer for order in world.orders] == [world.issuer.name, other.name, world.issuer.name]
    assert states(world) == [OrderState.ISSUED] * 3


async def test_a_wait_ends_with_the_process_and_goes_on_in_the_next(world: World) -> None:
    """Parked at once, whoever waits; taken up again with its place in the line."""
    authority = await world.started()
    await authority.issue(caller(), issue())
    await world.run_on()
    await authority.issue(caller(), issue("two", wait=NO_WAIT))
    await settle()
    await authority.drain(timedelta(seconds=30))
    world.connect()
    await world.started()
    world.clock.advance(HOUR + MINUTE)
    await world.run_on()
    assert states(world) == [OrderState.ISSUED] * 2


@pytest.mark.parametrize("point", LEDGER_FAILPOINTS)
async def test_a_crash_costs_no_place(world: World, point: str) -> None:
    """Before the places are taken, or after: who goes on takes one, or has it."""
    worlds: list[World] = []

    def keep(name: str) -> None:
        if name == point:
            worlds.append(world.fork())

    with mock.patch.object(steps, "failpoint", keep):
        authority = await world.started()
        await authority.issue(caller(), issue())
        await world.run_on()
    await kill_all()
    (after,) = worlds
    await after.started()
    await after.run_on()
    assert states(after) == [OrderState.ISSUED]
    (bucket,) = (await after.stores.budget.state([URL])).buckets.values()
    assert bucket.level.full_time - bucket.level.since == HOUR


async def test_failed_validations_are_counted_before_the_last(world: World) -> None:
    """Of three in an hour the CA sees two: the third, which would lock the name, waits."""
    limited(world, Limit("failures", LimitScope.FAILED_VALIDATIONS, 3, HOUR))
    refused = RefusalError(Reason.ISSUER_REJECTED, "a challenge failed", retry_after=MINUTE)
    authority = await world.started()
    for _ in range(2):
        world.issuer.faults.fail("answer_challenges", refused)
        result = await authority.issue(caller(), issue())
        assert result.order.state is OrderState.FAILED
        world.clock.advance(2 * MINUTE)
    asked = await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    seen = (await authority.get_order(caller(), "req-9", asked.order.order_id)).order
    assert "for failed validations of shop.test" in seen.trouble
    assert len(world.ca.orders) == 2
    world.clock.advance(20 * MINUTE)
    await world.run_on()
    assert states(world)[-1] is OrderState.ISSUED


async def test_an_order_that_was_never_finalised_counts_for_no_certificate() -> None:
    """Let's Encrypt counts certificates when it issues: five failures must not keep a name waiting for a week.

    An order of the account it was all the same.
    """
    names = Limit("names", LimitScope.NAMES, 1, 168 * HOUR, frozenset({Exemption.ARI}))
    domain = Limit("domain", LimitScope.REGISTERED_DOMAIN, 1, 168 * HOUR, ALL)
    world = limited(World(), names, domain, Limit("orders", LimitScope.ACCOUNT, 9, 9 * HOUR))
    refused = RefusalError(Reason.ISSUER_REJECTED, "a challenge failed", retry_after=MINUTE)
    authority = await world.started()
    for _ in range(2):
        world.issuer.faults.fail("answer_challenges", refused)
        await authority.issue(caller(), issue(wait=NO_WAIT))
        await world.run_on()
        world.clock.advance(2 * MINUTE)
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await world.run_on()
    assert states(world) == [OrderState.FAILED, OrderState.FAILED, OrderState.ISSUED]
    state = await world.stores.budget.state([URL])
    taken = {key.limit: (bucket.level.full_time - bucket.level.since) for key, bucket in state.buckets.items()}
    assert taken == {"names": 168 * HOUR, "domain": 168 * HOUR, "orders": 3 * HOUR}


async def test_what_somebody_else_may_have_finalised_counts() -> None:
    """The CA's order is valid although no CSR was sent from here: the fourth is given up, and its place stays taken."""
    world = limited(World(), Limit("names", LimitScope.NAMES, 9, 9 * HOUR))
    gate = world.issuer.faults.hold("answer_challenges")
    world.issuer.faults.fail("answer_challenges", unavailable(), times=9)
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    gate.set()
    for _ in range(200):
        await settle(60)
        if not world.order.state.is_open:
            break
        for url in world.ca.orders:
            world.ca.set_status(url, IssuerOrderStatus.PROCESSING)
        world.clock.advance(timedelta(seconds=20))
    assert world.order.state is OrderState.FAILED
    (bucket,) = (await world.stores.budget.state([URL])).buckets.values()
    assert bucket.level.full_time - bucket.level.since == len(world.ca.orders) * HOUR == 4 * HOUR


async def test_an_issuer_that_is_left_before_the_end_has_issued_nothing() -> None:
    """The order moves on from a CA that is away after it has made it: the place of its names is there again."""
    world = limited(World(), Limit("names", LimitScope.NAMES, 1, 168 * HOUR))
    world.others.append(other := FakeIssuer(world.ca, name="second"))
    world.change_profile(issuers=(world.issuer.name, other.name))
    world.issuer.faults.fail_always("answer_challenges", unavailable(retry_after=HOUR))
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await world.run_on()
    assert (world.order.state, world.order.issuer) == (OrderState.ISSUED, "second")
    assert not [bucket for bucket in (await world.stores.budget.state([URL])).buckets.values() if bucket.level != FULL]


async def test_a_renewal_that_the_ca_counts_takes_its_place_from_then_on() -> None:
    """It holds itself exempt, the CA doesn't: once refused it stands in line with the others, and is refused once."""
    world = limited(World(), one_an_hour())
    authority = await world.started()
    first = await authority.issue(caller(), issue())
    await world.run_on()
    assert first.certificate is not None
    refusal = RefusalError(
        Reason.ISSUER_RATE_LIMITED, "too many new orders", retry_after=HOUR, violations=[Violation("account", "")]
    )
    world.issuer.faults.fail("create_order", refusal)
    with (
        mock.patch.object(OrderBudget, "_is_exempt", mock.AsyncMock(return_value=True)),
        mock.patch.object(world.stores.budget, "take_places", wraps=world.stores.budget.take_places) as take,
    ):
        await authority.issue(caller(), issue("two", wait=NO_WAIT, replaces=first.certificate.certificate_id))
        await settle()
        assert take.await_count == 0
        await world.run_on()
    assert states(world) == [OrderState.ISSUED] * 2
    assert take.await_count >= 1
    (bucket,) = (await world.stores.budget.state([URL])).buckets.values()
    assert bucket.level.full_time > world.clock.now()


async def test_a_name_that_a_person_must_unlock_fails_with_the_cas_words() -> None:
    """Let's Encrypt pauses a name until a person unlocks it where it says: no place comes back by waiting."""
    world = limited(World(), Limit("failures", LimitScope.FAILED_VALIDATIONS, 5, HOUR), one_an_hour(amount=100))
    text = "Your account is temporarily prevented from requesting certificates for shop.test: please visit https://ca.test/x"
    refusal = RefusalError(
        Reason.ISSUER_RATE_LIMITED, text, retry_after=10 * MINUTE, violations=[Violation("name:shop.test", "")]
    )
    world.issuer.faults.fail("create_order", refusal)
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    assert world.order.state is OrderState.FAILED
    assert world.order.error is not None
    assert text in world.order.error.message


async def test_a_failure_that_is_heard_of_later_is_counted_too() -> None:
    """The CA was slow to look, or the broker away meanwhile: the order is invalid when it is looked at again."""
    world = limited(World(), Limit("failures", LimitScope.FAILED_VALIDATIONS, 5, HOUR))
    world.issuer.faults.fail("answer_challenges", unavailable())
    world.issuer.faults.fail(
        "answer_challenges",
        RefusalError(
            Reason.ISSUER_REJECTED,
            "a challenge failed",
            problems=(
                ProblemDocument("urn:ietf:params:acme:error:unauthorized", "Incorrect TXT record", 403, "shop.test"),
            ),
        ),
    )
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    for url in world.ca.orders:
        world.ca.set_status(url, IssuerOrderStatus.INVALID)
    await world.run_on()
    assert states(world) == [OrderState.FAILED]
    (bucket,) = (await world.stores.budget.state([URL])).buckets.values()
    assert bucket.label == "shop.test"


async def test_a_wait_that_an_exemption_ends_is_told_no_more(world: World) -> None:
    """The CA's window has opened meanwhile: the order goes on, and nothing says that it waits for a place."""
    authority = await world.started()
    first = await authority.issue(caller(), issue())
    await world.run_on()
    assert first.certificate is not None
    asked = await authority.issue(caller(), issue("two", wait=NO_WAIT, replaces=first.certificate.certificate_id))
    await settle()
    gate = world.issuer.faults.hold("create_order")
    with mock.patch.object(OrderBudget, "_is_exempt", mock.AsyncMock(return_value=True)):
        world.clock.advance(HOUR)
        await settle()
        seen = (await authority.get_order(caller(), "req-9", asked.order.order_id)).order
        assert (seen.progress.step, seen.trouble, seen.progress.place_time) == ("create", "", None)
        gate.set()
        await world.run_on()
    assert states(world) == [OrderState.ISSUED] * 2


async def test_a_refusal_for_failures_corrects_the_ledger() -> None:
    """In Let's Encrypt's words: the order waits until the name may be tried again."""
    world = limited(World(), Limit("failures", LimitScope.FAILED_VALIDATIONS, 5, HOUR))
    text = 'too many failed authorizations (5) for "shop.test" in the last 1h0m0s, retry after 2026-11-23 12:12:00 UTC'
    refusal = RefusalError(
        Reason.ISSUER_RATE_LIMITED, text, retry_after=12 * MINUTE, violations=[Violation("name:shop.test", "")]
    )
    world.issuer.faults.fail("create_order", refusal)
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    assert states(world) == [OrderState.PENDING]
    await world.run_on()
    assert states(world) == [OrderState.ISSUED]


async def test_an_order_that_the_ca_takes_for_no_renewal_counts(world: World) -> None:
    """It is made all the same, without what exempted it: the ledger hears of it, so that the next one waits."""
    authority = await world.started()
    first = await authority.issue(caller(), issue())
    await world.run_on()
    assert first.certificate is not None
    world.clock.advance(2 * HOUR)
    world.ca.takes_replaces = False
    with mock.patch.object(OrderBudget, "_is_exempt", mock.AsyncMock(return_value=True)):
        await authority.issue(caller(), issue("two", wait=NO_WAIT, replaces=first.certificate.certificate_id))
        await world.run_on()
    await authority.issue(caller(), issue("three", wait=NO_WAIT))
    await settle()
    assert states(world) == [OrderState.ISSUED, OrderState.ISSUED, OrderState.PENDING]
    assert len(world.ca.orders) == 2
