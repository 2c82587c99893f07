"""What a broker hears of the others, and says when they differ."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker import metrics
from certplane.broker.members.drift import DriftWatch
from certplane.broker.members.membership import SPAN, Membership
from certplane.broker.members.model import AccountKey, Member
from certplane.broker.members.ports import LastingLease
from certplane.broker.members.view import BrokersView
from certplane.errors import Reason, RefusalError
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.support.issuance import settle
from tests.support.memory_store import MemoryStores

SECOND = timedelta(seconds=1)
DOWN = RefusalError(Reason.STORE_UNAVAILABLE, "out of order")


class Broker:
    """One of several over one database."""

    def __init__(self, clock: ManualClock, stores: MemoryStores, number: int) -> None:
        self.clock, self.stores, self.number = clock, stores, number
        self.meter = FakeMeter()
        self.facts: dict[str, Any] = {"policy_hash": "policy-a"}
        self.start_time = clock.now() + number * SECOND
        self.membership = Membership(stores.members, self.me, clock, self.meter)
        DriftWatch(self.membership.known, self.meter, clock)

    def me(self) -> Member:
        return Member(
            **{
                "broker_id": self.stores.members.broker_id,
                "name": f"machine{self.number}",
                "address": "[::]:8443",
                "version": "1",
                "start_time": self.start_time,
                "trust_hash": "t",
                "configuration_hash": "c",
                **self.facts,
            }
        )

    def differs(self, subject: str) -> float:
        return self.meter.labelled[metrics.BROKERS_DIFFER, (("subject", subject),)]


class World:
    """Two brokers that have joined; each is told of the other by the test, as the change feed would."""

    def __init__(self) -> None:
        clock = ManualClock()
        stores = MemoryStores.open(clock)
        self.first = Broker(clock, stores, 1)
        self.second = Broker(clock, MemoryStores.over(stores.database), 2)

    async def hear(self) -> None:
        for broker in (self.first, self.second):
            await broker.membership.join()
        for broker in (self.first, self.second):
            await broker.membership.known.changed(["somebody"])


async def test_each_knows_all_brokers() -> None:
    """By their start, itself as it is now."""
    world = World()
    await world.hear()
    for broker in (world.first, world.second):
        assert [member.name for member in broker.membership.known.members] == ["machine1", "machine2"]
        assert broker.meter.levels[metrics.BROKERS] == 2
    assert world.first.membership.known.find(world.second.stores.members.broker_id) is not None
    assert world.first.membership.known.find(world.first.stores.members.broker_id) is None, "it is no other"


async def test_a_policy_that_differs_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """By each of them, with the remedy; and that it is alike again."""
    caplog.set_level(logging.INFO)
    world = World()
    await world.hear()
    assert world.first.differs("policy") == 0
    world.second.facts["policy_hash"] = "policy-b"
    for _ in range(3):
        await world.hear()
    assert (world.first.differs("policy"), world.second.differs("policy")) == (1, 1)
    world.first.facts["policy_hash"] = "policy-b"
    await world.hear()
    assert (world.first.differs("policy"), world.second.differs("policy")) == (0, 0)
    said = [record for record in caplog.records if "brokers that share this database" in record.message]
    assert [record.levelname for record in said] == ["WARNING", "WARNING", "INFO", "INFO"]
    assert "policies differ: policy-a at machine1" in said[0].message
    assert said[0].fields["remedy"]  # type: ignore[attr-defined] # a field of `extra`


async def test_a_new_account_key_is_no_difference_while_brokers_hear_of_it(caplog: pytest.LogCaptureFixture) -> None:
    """Each reads it by itself, within a second: after `account rollover` a warning would tell of a fault where none is."""
    caplog.set_level(logging.INFO, "certplane.broker.members.drift")
    world = World()
    old, new = ((AccountKey("default", key),) for key in ("old", "new"))
    world.first.facts["account_keys"] = world.second.facts["account_keys"] = old
    await world.hear()
    world.first.facts["account_keys"] = new
    await world.hear()
    assert world.first.differs("account") == 1
    world.second.facts["account_keys"] = new
    await world.hear()
    assert (world.first.differs("account"), caplog.records) == (0, [])
    world.second.facts["account_keys"] = old
    await world.hear()
    world.first.clock.advance(9 * SECOND)
    await world.hear()
    assert caplog.records == []
    world.first.clock.advance(SECOND)
    await world.hear()
    assert "ACME accounts of the issuer default differ" in caplog.text


async def test_who_comes_and_goes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """One that stops names itself in the change feed; one that was killed is missed, which is a warning."""
    caplog.set_level(logging.INFO, "certplane.broker.members.known")
    world = World()
    known, second = world.first.membership.known, world.second
    for broker in (world.first, second):
        await broker.membership.join()
    await asyncio.gather(known.read(), known.read(), second.membership.known.read())  # a start's, and the feed's first
    await second.membership.leave()
    await known.changed([second.stores.members.broker_id])
    await second.membership.join()
    await known.changed([second.stores.members.broker_id])
    world.first.clock.advance(SPAN + SECOND)
    await world.first.membership.join()
    await known.changed([])
    told = [record for record in caplog.records if record.name.endswith(".known")]
    assert [(record.levelname, record.message.partition(",")[0]) for record in told] == [
        ("INFO", "another broker shares this database"),  # the second at the first
        ("INFO", "another broker shares this database"),  # and the other way round
        ("INFO", "another broker has left"),
        ("INFO", "another broker shares this database"),
        ("WARNING", "another broker's lease has ended"),
    ]
    (fields,) = {str(record.fields) for record in told[2:]}  # type: ignore[attr-defined] # a field of `extra`
    assert (
        f"'name': 'machine2', 'address': '[::]:8443', 'version': '1', 'broker_id': '{second.me().broker_id}'" in fields
    )


async def test_a_database_that_was_away_from_all_is_no_fault_of_another(caplog: pytest.LogCaptureFixture) -> None:
    """All leases end meanwhile: each broker has said so of itself, and says of none that it may be down."""
    caplog.set_level(logging.INFO, "certplane.broker.members.known")
    world = World()
    await world.hear()
    caplog.clear()
    world.first.clock.advance(SPAN + SECOND)
    await world.first.membership.known.reread(world.first.clock.now())
    (said,) = caplog.records
    assert (said.levelname, said.message) == ("INFO", "another broker's lease has ended as this one's has")


async def test_its_own_change_is_compared_with_the_next_renewal() -> None:
    """The feed tells a broker nothing of what it wrote itself."""
    world = World()
    await world.hear()
    running = asyncio.create_task(world.first.membership.run())
    await settle(20)
    world.first.facts["policy_hash"] = "policy-b"
    world.first.clock.advance(5 * SECOND)
    await settle(50)
    running.cancel()
    await asyncio.wait({running})
    assert world.first.differs("policy") == 1


async def test_one_that_was_killed_is_gone_with_its_lease() -> None:
    """For whoever removes its row too, which hears nothing of that from the feed."""
    world = World()
    await world.hear()
    running = asyncio.create_task(world.first.membership.run())
    for _ in range(SPAN // SECOND + 6):
        world.first.clock.advance(SECOND)
        await settle(30)
    running.cancel()
    await asyncio.wait({running})
    assert [member.name for member in world.first.membership.known.members] == ["machine1"]
    assert world.first.meter.levels[metrics.BROKERS] == 1


async def test_what_was_known_stays_while_the_database_is_away() -> None:
    """A reader that fails is asked again by the feed."""
    world = World()
    await world.hear()
    world.first.stores.database.faults.fail_always("living", DOWN)
    with pytest.raises(RefusalError):
        await world.first.membership.known.changed(["somebody"])
    assert len(world.first.membership.known.members) == 2


async def test_what_operators_see() -> None:
    """Every broker with its lease, and the one that answers even where it has none."""
    world = World()
    await world.hear()
    brokers = await BrokersView(world.first.stores.members, world.first.me, world.first.membership).read()
    assert [member.name for member in brokers.members] == ["machine1", "machine2"]
    assert all(member.lease_until is not None for member in brokers.members)
    assert (brokers.differences, brokers.answering) == ([], world.first.stores.members.broker_id)
    await world.first.membership.leave()
    brokers = await BrokersView(world.second.stores.members, world.second.me, world.second.membership).read()
    assert [member.name for member in brokers.members] == ["machine2"]
    brokers = await BrokersView(world.first.stores.members, world.first.me, world.first.membership).read()
    assert [(member.name, member.lease_until is None) for member in brokers.members] == [
        ("machine1", True),
        ("machine2", False),
    ]
    (difference,) = brokers.differences
    assert difference.broker_ids == (brokers.answering,)
    assert "has no lease" in difference.text


async def test_the_one_broker_of_a_file() -> None:
    """On SQLite it has no row, and is there all the same."""
    broker = World().first
    brokers = await BrokersView(broker.stores.members, broker.me, LastingLease()).read()
    assert [member.name for member in brokers.members] == ["machine1"]
    assert brokers.differences == []
