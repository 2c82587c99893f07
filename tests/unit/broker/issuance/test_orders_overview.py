"""What operators see of orders: what each is at and waits for, also after a restart; and what the log says of a CA."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuance.listing import OrderQuery
from certplane.broker.issuance.overview import OrdersView, OrderView
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.model import Order, OrderState
from certplane.broker.ports import DurableLimits
from certplane.broker.telling import tell
from certplane.errors import Reason, RefusalError, Violation
from tests.support.issuance import NO_WAIT, World, caller, csr, issue, kill_all, settle

SECOND = timedelta(seconds=1)


def view_of(world: World, authority: RegistrationAuthority) -> OrdersView:
    return authority.overview(world.stores.order_listing, lambda _: None, name="here")


async def shown(world: World, authority: RegistrationAuthority) -> list[OrderView]:
    views, _ = await view_of(world, authority).page(OrderQuery(), None, 50)
    return views


async def test_what_a_failing_order_is_at() -> None:
    """Its step, how often it has failed, why, and when it is tried again: at once, without the database."""
    world = World()
    world.issuer.faults.fail_always("create_order", RefusalError(Reason.ISSUER_UNAVAILABLE, "the CA answers 500"))
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    (view,) = await shown(world, authority)
    progress = view.order.progress
    assert (progress.step, progress.failures, progress.wait) == ("create", 1, "its next try")
    assert progress.trouble == "ISSUER_UNAVAILABLE: the CA answers 500"
    assert progress.next_attempt is not None
    assert world.clock.now() < progress.next_attempt < world.clock.now() + timedelta(minutes=1)
    assert (view.broker_id, view.broker_name) == (world.stores.orders.holder, "here")


async def test_what_failed_is_known_after_a_restart() -> None:
    """The row has it within a second or two: another broker, and the next start, don't begin with nothing."""
    world = World()
    world.solver.faults.fail_always("wait_until_visible", RefusalError(Reason.DNS_UNAVAILABLE, "ns2 lacks it"))
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    world.clock.advance(SECOND)
    await settle()
    assert world.order.progress.trouble == "DNS_UNAVAILABLE: ns2 lacks it"
    assert world.order.progress.failures >= 1
    await kill_all()
    world = world.fork()
    gate = world.issuer.faults.hold("get_order")
    authority = await world.started()
    await settle()
    (view,) = await shown(world, authority)
    assert view.order.trouble == "DNS_UNAVAILABLE: ns2 lacks it"
    gate.set()


async def test_nothing_is_written_of_an_order_that_goes_well() -> None:
    """What passes within a second costs no statement."""
    world = World()
    written: list[list[Order]] = []
    note = world.stores.orders.note_progress

    async def spy(orders: list[Order]) -> None:
        written.append(orders)
        await note(orders)

    world.stores.orders.note_progress = spy  # type: ignore[method-assign, assignment]
    authority = await world.started()
    await authority.issue(caller(), issue(wait=timedelta(minutes=1)))
    world.clock.advance(SECOND)
    await settle()
    assert world.order.state is OrderState.ISSUED
    assert written == []


async def test_what_an_order_waits_for() -> None:
    """A lane, a turn with the number before it, the CA's validation; and what ended waits for nothing."""
    world = World(settings=IssuanceSettings(parallel_orders=1))
    gate = world.issuer.faults.hold("answer_challenges")
    authority = await world.started()
    for name, who in (("one", "web1.test"), ("two", "web2.test")):
        await authority.issue(caller(who), issue(csr_pem=csr(name), wait=NO_WAIT))
        await settle()
    mail = replace(caller(), profiles=("shop", "mail"))
    names = ("mail.test",)
    for name, who in (("three", mail), ("four", replace(mail, name="web2.test", label="web2.test"))):
        await authority.issue(who, issue(csr_pem=csr(name, names), profile="mail", wait=NO_WAIT))
        await settle()
    waits = {view.order.public_key_sha256: view.wait for view in await shown(world, authority)}
    by_key = [waits[order.public_key_sha256] for order in world.orders]
    assert by_key == [
        "the CA's validation",
        "an order of the same names, which has its turn first",
        "its turn: 0 orders are before it",
        "an order of the same names, which has its turn first",
    ]
    gate.set()
    await world.run_on()
    assert [view.wait for view in await shown(world, authority)] == [""] * 4


async def test_what_is_left_of_a_limit_and_what_a_ca_has_said() -> None:
    """Of open orders the week's certificates of the names; of what a CA refused, until when and why."""
    world = World()
    limits = DurableLimits(certificates_per_name_set_per_week=5)
    world.settings = replace(world.settings, limits=limits)
    limited = RefusalError(
        Reason.ISSUER_RATE_LIMITED,
        "too many certificates",
        retry_after=timedelta(hours=3),
        violations=[Violation("account", "3 hours")],
    )
    gate = world.issuer.faults.hold("answer_challenges")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    (view,) = await shown(world, authority)
    assert view.budget == "4 of 5 certificates of these names left this week, this one counted"
    world.issuer.faults.fail("answer_challenges", limited)
    gate.set()
    await world.run_on()
    (view,) = await shown(world, authority)
    assert view.order.state is OrderState.FAILED
    assert "nothing before" in view.budget
    assert "too many certificates" in view.budget


async def test_a_watcher_is_told_the_latest_of_each_order() -> None:
    """However slowly it reads; what is opened while it watches comes too, and the end."""
    world = World()
    gate = world.issuer.faults.hold("create_order")
    authority = await world.started()
    view = view_of(world, authority)
    with view.watchers.watching() as watcher:
        await authority.issue(caller(), issue(wait=NO_WAIT))
        await settle()
        changes = await watcher.next_changes()
        assert changes is not None
        assert [order.progress.step for order in changes.values() if order is not None] == ["create"]
        gate.set()
        await world.run_on()
        changes = await watcher.next_changes()
        assert changes is not None
        assert [order.state for order in changes.values() if order is not None] == [OrderState.ISSUED]
        await authority.drain(NO_WAIT)
        assert await watcher.next_changes() is None
    with pytest.raises(RefusalError) as refused, view.watchers.watching():
        pass
    assert refused.value.refusal.reason is Reason.DRAINING


async def test_watchers_are_bounded() -> None:
    """One too many is refused, and may come when another has gone."""
    view = view_of(world := World(), world.authority())
    with ExitStack() as many:
        for _ in range(64):
            many.enter_context(view.watchers.watching())
        with pytest.raises(RefusalError) as refused, view.watchers.watching():
            pass
        assert refused.value.refusal.reason is Reason.RATE_LIMITED
    with view.watchers.watching():
        pass


async def test_a_ca_that_fails_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """At the first failure of any order; the others of the same cause, and its next tries, are no news. Nor is its end."""
    world = World()
    world.issuer.faults.fail_always("create_order", RefusalError(Reason.ISSUER_UNAVAILABLE, "the CA answers 500"))
    authority = await world.started()
    with caplog.at_level(logging.INFO, "certplane.broker.issuance.execution"):
        for name, who in (("one", "web1.test"), ("two", "web2.test")):
            await authority.issue(caller(who), issue(csr_pem=csr(name), wait=NO_WAIT))
        await settle()
        world.clock.advance(5 * SECOND)
        await settle()
        warned = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert [record.getMessage() for record in warned] == ["a step of an order failed: the CA answers 500"]
        assert warned[0].fields["issuer"] == world.issuer.name  # type: ignore[attr-defined]
        world.issuer.faults.heal()
        await world.run_on()
        assert [r.getMessage() for r in caplog.records].count(f"issuer {world.issuer.name} works again") == 1


async def test_what_holds_up_a_step_is_seen_while_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    """A CA that is asked again within one call: who looks sees why at once, and the log has it from the second try on."""
    world = World()
    gate = world.issuer.faults.hold("create_order")
    authority = await world.started()
    create = world.issuer.create_order

    async def failing(*arguments: Any, **options: Any) -> Any:
        for _ in range(3):
            tell("ISSUER_UNAVAILABLE: the CA answers 500")
        return await create(*arguments, **options)

    world.issuer.create_order = failing  # type: ignore[method-assign]
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    (view,) = await shown(world, authority)
    assert (view.order.progress.step, view.order.trouble) == ("create", "ISSUER_UNAVAILABLE: the CA answers 500")
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "a step of an order fails, and is tried again: the CA answers 500"
    ]
    gate.set()
    await world.run_on()
    assert world.order.state is OrderState.ISSUED
