"""What brokers of one database tell each other beside orders: limits, issuers that are away, blocked profiles, the epoch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from certplane.broker import metrics
from certplane.broker.model import ChangeKind, DenyEntry, OrderState
from certplane.errors import Reason, RefusalError, Violation
from tests.support.issuance import NO_WAIT, World, caller, issue, kill_all, settle, unavailable
from tests.support.issuing_brokers import LONG, IssuingBroker, tick

Brokers = tuple[IssuingBroker, IssuingBroker]


async def started(broker: IssuingBroker) -> IssuingBroker:
    """It shares the retry epoch too, which moves while it runs."""
    stores = broker.database_stores
    await broker.epoch.share(stores.retry_epoch)
    stores.changes.follow(ChangeKind.RETRY_EPOCH, broker.epoch, what="the retry epoch")
    broker.moving = asyncio.create_task(broker.epoch.run())
    return await broker.start()


@pytest.fixture
def world() -> World:
    return World()


@pytest_asyncio.fixture
async def brokers(world: World) -> AsyncIterator[Brokers]:
    """Two that run."""
    both = await started(IssuingBroker(world)), await started(IssuingBroker(world))
    yield both
    await kill_all()


def limited(subject: str) -> RefusalError:
    """What a CA says for an hour."""
    return RefusalError(
        Reason.ISSUER_RATE_LIMITED, "too many", retry_after=LONG, violations=(Violation(subject, "too many"),)
    )


async def test_a_limit_that_one_broker_meets_is_known_to_the_other(world: World, brokers: Brokers) -> None:
    """The CA is asked once; the other one's caller is told what it said, and until when; and so is a third one's."""
    first, second = brokers
    first.issuer.faults.fail("create_order", limited("account"))
    await first.authority.issue(caller(), issue("one", wait=NO_WAIT))
    await tick(world, first, second)
    third = await started(IssuingBroker(world))
    for broker, key in ((second, "two"), (third, "three")):
        result = await broker.authority.issue(caller(), issue(key))
        assert result.order.error is not None
        assert result.order.error.reason is Reason.ISSUER_RATE_LIMITED
        assert result.order.error.retry_after is not None
        assert timedelta(minutes=59) < result.order.error.retry_after <= LONG
        assert broker.issuer.faults.count("create_order") == 0


async def test_where_one_broker_has_found_an_issuer_away_the_other_one_goes_elsewhere(world: World) -> None:
    """At once, and until its time is over or the issuer has given any of them a certificate."""
    world.change_profile(issuers=("fake-ca", "other-ca"))
    first, second = [await started(IssuingBroker(world, issuers=("other-ca",))) for _ in range(2)]
    first.issuer.faults.fail_always("create_order", unavailable())
    await first.authority.issue(caller(), issue("one", wait=NO_WAIT))
    await tick(world, first, second, seconds=60)
    result = await second.authority.issue(caller(), issue("two"))
    assert (result.order.state, result.order.issuer) == (OrderState.ISSUED, "other-ca")
    assert second.issuer.faults.count("create_order") == 0

    world.clock.advance(timedelta(minutes=5))
    result = await second.authority.issue(caller(), issue("three"))
    assert (result.order.state, result.order.issuer) == (OrderState.ISSUED, "fake-ca")
    await kill_all()


async def test_a_profile_that_another_broker_mended_is_not_blocked_here(world: World, brokers: Brokers) -> None:
    """Whichever ran the last order: an alarm would stay for good at a broker whose hosts are at another one by now."""
    first, second = brokers
    world.solver.faults.fail("present", RefusalError(Reason.DNS_REJECTED, "the token was revoked"))
    await second.authority.issue(caller(), issue("one", wait=NO_WAIT))
    await tick(world, first, second, seconds=3)
    assert first.authority.blocked(["shop"]) == second.authority.blocked(["shop"]) == {"shop"}
    assert first.meter.levels[metrics.PROFILES_BLOCKED] == 1
    assert first.authority.in_trouble
    await tick(world, first, second, seconds=60)
    epoch = first.epoch.current
    assert second.epoch.current == epoch

    await first.authority.issue(caller(), issue("two"))
    await tick(world, first, second, seconds=3)
    assert first.authority.blocked(["shop"]) == second.authority.blocked(["shop"]) == frozenset()
    assert second.meter.levels[metrics.PROFILES_BLOCKED] == 0
    assert not second.authority.in_trouble
    assert first.epoch.current == second.epoch.current != epoch
    told = world.database._all(
        "SELECT kind, count(*) FROM changes WHERE kind IN ('condition', 'retry_epoch') GROUP BY 1"
    )
    assert dict(told) == {"condition": 2, "retry_epoch": 2}  # of the first one's start, and of this


async def test_what_cannot_be_told_is_told_later(
    world: World, brokers: Brokers, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that is away for a moment leaves no broker with another's alarm for good; it is said once."""
    first, second = brokers
    world.solver.faults.fail("present", RefusalError(Reason.DNS_REJECTED, "the token was revoked"))
    await second.authority.issue(caller(), issue("one", wait=NO_WAIT))
    await settle()
    assert second.authority.blocked(["shop"]) == {"shop"}  # and the next look, a second later, would tell it
    world.database.down = True
    for _ in range(3):
        await tick(world, second)
    assert len([record for record in caplog.records if "could not tell other brokers" in record.message]) == 1
    world.database.down = False
    await tick(world, first, second, seconds=2)
    assert first.authority.blocked(["shop"]) == {"shop"}


async def test_a_database_that_hangs_lets_no_order_go_on_of_who_was_shut_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits to be told is written beside the looks at who still may ask."""
    authority = await world.started()
    world.issuer.faults.hold("answer_challenges")
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    holds = authority._dispatcher.holds
    monkeypatch.setattr(holds._store, "write_holds", lambda *_: asyncio.Event().wait())
    holds.suspect("fake-ca", world.clock.now(), unavailable().refusal)
    for _ in range(2):
        world.clock.advance(timedelta(seconds=1))
        await settle()
    world.database.shut_out(DenyEntry(name=caller().name, create_time=world.clock.now()))
    world.clock.advance(timedelta(seconds=1))
    await settle()
    flight = authority._dispatcher.find(world.order.order_id)
    assert flight is not None
    assert flight.stopped
    await kill_all()


async def test_a_broker_that_stops_tells_what_it_knows(world: World, brokers: Brokers) -> None:
    """What it was told a moment before, and which profile it has found blocked: nobody would tell it later."""
    first, second = brokers
    world.solver.faults.fail("present", RefusalError(Reason.DNS_REJECTED, "the token was revoked"))
    await second.authority.issue(caller(), issue("one", wait=NO_WAIT))
    await settle()
    second.authority._dispatcher.holds.suspect("fake-ca", world.clock.now(), unavailable().refusal)
    await second.drain()
    await first.look()
    assert first.authority.blocked(["shop"]) == {"shop"}
    assert first.authority._dispatcher.holds.suspected("fake-ca", world.clock.now()) is not None
