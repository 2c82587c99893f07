"""A stopping broker: no new orders, running ones get time, the rest are parked, and nothing issued is lost."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.model import OrderState, RevocationReason
from certplane.errors import Reason, RefusalError
from tests.support.issuance import NO_WAIT, World, caller, issue, settle, unavailable

MINUTE = timedelta(minutes=1)


async def test_a_drain_without_orders_ends_at_once() -> None:
    """Nothing runs, nothing is waited for; a second drain is nothing to do."""
    authority = await World().started()
    await authority.drain(MINUTE)
    await authority.drain(MINUTE)


async def test_a_drain_before_the_start_is_nothing_to_do() -> None:
    """A broker that fails while it starts can still be stopped."""
    await World().authority().drain(MINUTE)


async def test_running_orders_get_the_time_to_end() -> None:
    """The drain ends as soon as the last order has; its caller gets the certificate."""
    world = World()
    gate = world.issuer.faults.hold("answer_challenges")
    authority = await world.started()
    call = asyncio.create_task(authority.issue(caller(), issue()))
    await settle()
    draining = asyncio.create_task(authority.drain(MINUTE))
    await settle()
    assert not draining.done()

    gate.set()
    await draining

    assert (await call).certificate is not None
    assert not world.dns.records


@pytest.mark.parametrize("operation", ["create_order", "answer_challenges", "finalize", "download"])
async def test_what_does_not_end_in_time_is_parked_and_resumed_by_the_next_start(operation: str) -> None:
    """The waiting caller gets the open order back at once; the next broker ends it with one finalisation."""
    world = World()
    world.issuer.faults.hold(operation)
    authority = await world.started()
    call = asyncio.create_task(authority.issue(caller(), issue()))
    await settle()
    draining = asyncio.create_task(authority.drain(MINUTE))
    await settle()
    world.clock.advance(MINUTE)
    await draining

    result = await call
    assert result.order.state.is_open
    assert result.certificate is None

    world.connect()
    await world.started()
    await world.run_on()
    assert world.order.state is OrderState.ISSUED
    assert len(world.ca.issued) == 1
    assert not world.dns.records


async def test_orders_that_wait_for_their_turn_are_parked_at_once() -> None:
    """The time of a drain goes to those that are under way."""
    world = World(settings=IssuanceSettings(parallel_orders=1))
    gate = world.issuer.faults.hold("finalize")
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    queued = asyncio.create_task(authority.issue(caller("web2.test"), issue("two")))
    await settle()
    draining = asyncio.create_task(authority.drain(MINUTE))
    await settle()
    assert (await queued).order.state is OrderState.PENDING

    gate.set()
    await draining

    assert [order.state for order in world.orders] == [OrderState.ISSUED, OrderState.PENDING]


@pytest.mark.parametrize("stage", ["while draining", "afterwards"])
async def test_a_draining_broker_makes_no_new_order_but_answers_what_it_can(stage: str) -> None:
    """New orders are DRAINING with a time to come back; the cache and running orders still answer."""
    world = World()
    authority = await world.started()
    await authority.issue(caller(), issue())
    await settle()
    gate = world.issuer.faults.hold("finalize")
    running = await authority.issue(caller("web2.test"), issue("two", wait=NO_WAIT))
    await settle()
    draining = asyncio.create_task(authority.drain(MINUTE))
    await settle()
    joined = asyncio.create_task(authority.issue(caller("web2.test"), issue("two")))
    await settle()
    if stage == "afterwards":
        gate.set()
        await draining

    with pytest.raises(RefusalError) as caught:
        await authority.issue(caller(), issue("three"))
    assert caught.value.refusal.reason is Reason.DRAINING
    assert caught.value.refusal.retry_after
    assert world.denials.events == []
    assert (await authority.issue(caller(), issue())).source == "cache"
    assert (await authority.get_order(caller("web2.test"), "g", running.order.order_id)).order is not None

    gate.set()
    await draining
    assert (await joined).certificate is not None


async def test_a_watcher_of_a_parked_order_is_told_to_come_back() -> None:
    """The stream ends with DRAINING, not as if the order had ended."""
    world = World()
    world.issuer.faults.hold("finalize")
    authority = await world.started()
    opened = await authority.issue(caller(), issue(wait=NO_WAIT))

    async def watch() -> list[OrderState]:
        return [result.order.state async for result in authority.watch_order(caller(), "w", opened.order.order_id)]

    watching = asyncio.create_task(watch())
    await settle()
    await asyncio.gather(authority.drain(NO_WAIT))

    for stream in (watching, asyncio.create_task(watch())):
        with pytest.raises(RefusalError) as caught:
            await stream
        assert caught.value.refusal.reason is Reason.DRAINING


async def test_an_issued_certificate_is_stored_even_if_its_time_is_up_meanwhile() -> None:
    """Storing that has begun goes on for a grace after the drain's time."""
    world = World()
    gate = world.database.faults.hold("finish_order")
    authority = await world.started()
    call = asyncio.create_task(authority.issue(caller(), issue(wait=5 * MINUTE)))
    await settle()
    draining = asyncio.create_task(authority.drain(MINUTE))
    await settle()
    world.clock.advance(MINUTE)
    await settle()
    assert not draining.done()

    gate.set()
    await draining

    assert world.order.state is OrderState.ISSUED
    assert (await call).certificate is not None


async def test_a_store_that_stays_away_does_not_keep_the_broker_from_stopping() -> None:
    """After the grace the order is parked; the CA still has the certificate, and the next start stores it."""
    world = World()
    world.database.faults.fail_always("finish_order", unavailable(Reason.STORE_UNAVAILABLE))
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    draining = asyncio.create_task(authority.drain(MINUTE))
    for _ in range(10):
        await settle()
        world.clock.advance(timedelta(seconds=10))
    await draining
    assert world.order.state is OrderState.FINALIZING

    world.database.faults.heal()
    await world.started()
    await world.run_on()

    assert world.order.state is OrderState.ISSUED
    assert world.ca.finalisations == 1


async def test_a_revocation_under_way_is_recorded_although_its_caller_left() -> None:
    """The CA has revoked: the record follows, whoever waits for it."""
    world = World()
    authority = await world.started()
    result = await authority.issue(caller(), issue())
    assert result.certificate is not None
    certificate_id = result.certificate.certificate_id
    gate = world.database.faults.hold("mark_revoked")
    call = asyncio.create_task(authority.revoke(caller(), "r", certificate_id, RevocationReason.SUPERSEDED))
    await settle()
    call.cancel()
    await settle()
    gate.set()
    await asyncio.wait({call})

    assert call.cancelled()
    assert world.database.certificates[certificate_id].revoke_time is not None


async def test_a_call_whose_order_is_being_made_when_the_broker_stops_is_told_to_come_back() -> None:
    """A store that doesn't answer in time ends as DRAINING for the caller, not as a cancellation it never asked for."""
    world = World()
    world.database.faults.hold("open_order")
    authority = await world.started()
    call = asyncio.create_task(authority.issue(caller(), issue()))
    await settle()
    draining = asyncio.create_task(authority.drain(MINUTE))
    await settle()
    world.clock.advance(MINUTE)
    await settle()
    world.clock.advance(MINUTE)
    await draining

    with pytest.raises(RefusalError) as caught:
        await call
    assert caught.value.refusal.reason is Reason.DRAINING
