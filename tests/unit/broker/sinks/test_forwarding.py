"""The audit log is copied to its sinks: everything, once, in order, through restarts and whatever a sink does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker import metrics
from certplane.broker.events import AuditEvent, AuditEventType
from certplane.broker.sinks.forwarding import BATCH, SETTLED, Forwarding
from certplane.broker.sinks.gate import SinkGate
from certplane.broker.sinks.ports import SinkError, StoredEvents
from certplane.errors import Reason, RefusalError
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.fakes.sinks import FakeSink
from tests.support.memory_store import MemoryStores
from tests.support.waiting import until

SECOND = timedelta(seconds=1)


class HiddenRows:
    """`StoredEvents` in which some rows aren't visible yet, as those of a transaction that hasn't ended."""

    def __init__(self, log: StoredEvents) -> None:
        self._log = log
        self.hidden: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def sequences(self, after: int, most: int) -> list[int]:
        return [number for number in await self._log.sequences(after, most) if number not in self.hidden]


@dataclass
class World:
    clock: ManualClock = field(default_factory=ManualClock)
    sink: FakeSink = field(default_factory=FakeSink)
    meter: FakeMeter = field(default_factory=FakeMeter)
    count: int = 0

    def __post_init__(self) -> None:
        self.stores = MemoryStores.open(self.clock)
        self.log: Any = HiddenRows(self.stores.stored_events)

    async def record(self, count: int, kind: AuditEventType = AuditEventType.CERTIFICATE_ISSUED) -> list[str]:
        ids = [f"event-{self.count + number:06d}" for number in range(count)]
        self.count += count
        await self.stores.audit.append([AuditEvent(event_id, self.clock.now(), kind) for event_id in ids])
        return ids

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[None]:
        forwarding = Forwarding(self.log, {"copy": self.sink}, clock=self.clock, rng=random.Random(1), meter=self.meter)
        task = asyncio.create_task(forwarding.run())
        await self.rest()
        try:
            yield
        finally:
            assert not task.done(), task
            task.cancel()
            await asyncio.wait([task])

    async def rest(self) -> None:
        calm = 0
        while calm < 20:
            await asyncio.sleep(0)
            calm = calm + 1 if self.clock.sleepers >= 1 else 0

    async def pass_time(self, span: timedelta, step: timedelta = SECOND) -> None:
        while span > timedelta():
            self.clock.advance(min(step, span))
            span -= step
            await self.rest()


async def test_a_new_sink_gets_what_is_recorded_from_then_on() -> None:
    """In the order of the log; what was before can be exported."""
    world = World()
    await world.record(5)
    async with world.broker():
        assert world.sink.ids == []
        ids = await world.record(3)
        await world.pass_time(SECOND)
        ids += await world.record(2 * BATCH + 1)
        await world.pass_time(2 * SECOND)
    assert world.sink.ids == ids
    assert world.meter.total(metrics.SINK_EVENTS) == len(ids)


async def test_another_broker_goes_on_where_one_has_ended() -> None:
    """Nothing is lost, and nothing comes twice."""
    world = World()
    ids: list[str] = []
    for _ in range(3):
        async with world.broker():
            ids += await world.record(7)
            await world.pass_time(2 * SECOND)
        ids += await world.record(4)
    async with world.broker():
        await world.pass_time(SECOND)
    assert world.sink.ids == ids


async def test_what_appears_below_what_was_copied_is_copied_too() -> None:
    """Brokers commit at the same time, and not in the order of their rows' numbers; also across a change of broker."""
    world = World()
    async with world.broker():
        ids = await world.record(6)
        world.log.hidden = {2, 3, 5}
        await world.pass_time(SECOND)
        assert world.sink.ids == [ids[number] for number in (0, 3, 5)]
        world.log.hidden = {3}
        await world.pass_time(11 * SECOND)
    world.log.hidden = set()
    async with world.broker():
        await world.pass_time(11 * SECOND)
    assert sorted(world.sink.ids) == ids


async def test_gaps_are_settled_in_time() -> None:
    """Numbers of what was undone never appear: the position gets short again, and the log isn't read from there on."""
    world = World()
    async with world.broker():
        await world.record(6)
        world.log.hidden = {2, 5}
        await world.pass_time(SECOND)
        position = await world.log.position("copy")
        assert (position.low, position.ranges) == (1, ((3, 4), (6, 6)))
        await world.pass_time(SETTLED + 20 * SECOND, 10 * SECOND)
        await world.record(1)
        await world.pass_time(11 * SECOND)
    position = await world.log.position("copy")
    assert (position.low, position.ranges) == (7, ())


async def test_a_sink_that_is_away_for_hours_gets_all_in_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """Told once; what it lacks is kept in the log alone, and tried for each minute."""
    world = World()
    ids = []
    async with world.broker():
        world.sink.away()
        for _ in range(6):
            ids += await world.record(2 * BATCH)
            await world.pass_time(timedelta(hours=1), timedelta(minutes=2))
        assert world.meter.levels[metrics.SINK_LAG] > timedelta(hours=5).total_seconds()
        assert world.sink.faults.count("send") <= 6 * 60
        world.sink.faults.heal()
        await world.pass_time(timedelta(minutes=2))
        assert world.meter.levels[metrics.SINK_LAG] == 0
    assert world.sink.ids == ids
    assert caplog.text.count("the audit sink copy is behind; will retry: it is away") == 1


async def test_an_answer_that_was_lost_brings_a_batch_again() -> None:
    """With the same ids; nothing is passed over."""
    world = World()
    async with world.broker():
        world.sink.faults.fail_after("send", SinkError("no answer"))
        ids = await world.record(3)
        await world.pass_time(timedelta(minutes=1))
    assert world.sink.ids == ids * 2


async def test_a_bug_of_one_sink_ends_nothing() -> None:
    """It is tried again."""
    world = World()
    async with world.broker():
        world.sink.faults.fail("send", ZeroDivisionError())
        ids = await world.record(3)
        await world.pass_time(timedelta(minutes=1))
    assert world.sink.ids == ids
    assert world.meter.total(metrics.SINK_FAILURES) == 1


async def test_a_log_in_which_nothing_happens_is_left_alone() -> None:
    """No write, for hours."""
    world = World()
    async with world.broker():
        await world.record(3)
        await world.pass_time(SETTLED * 2, 10 * SECOND)
        before = world.stores.database.connection.total_changes
        await world.pass_time(timedelta(hours=1), 10 * SECOND)
        assert world.stores.database.connection.total_changes == before


async def test_decisions_wait_for_a_required_sink_that_is_too_far_behind(caplog: pytest.LogCaptureFixture) -> None:
    """What gives is refused, what takes away and what has happened is recorded; it ends when the sink has caught up."""
    world = World()
    gate = SinkGate(world.stores.stored_events, {"copy": timedelta(minutes=1)}, world.clock, world.meter)
    world.stores.database.stores.audit.gate = gate
    watching = asyncio.create_task(gate.run())
    try:
        async with world.broker():
            await world.record(1, AuditEventType.CERTIFICATE_AUTHORIZED)
            await world.pass_time(2 * SECOND)
            world.sink.away()
            await world.record(1, AuditEventType.CERTIFICATE_AUTHORIZED)
            await world.pass_time(timedelta(seconds=59))
            await world.record(1, AuditEventType.CERTIFICATE_AUTHORIZED)
            await world.pass_time(timedelta(seconds=10))
            with pytest.raises(RefusalError, match="the audit sink 'copy' is required, and too far behind") as caught:
                await world.record(1, AuditEventType.CERTIFICATE_AUTHORIZED)
            assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
            assert world.meter.levels[metrics.SINK_HOLDS_UP] == 1
            for kind in (AuditEventType.CERTIFICATE_ISSUED, AuditEventType.IDENTITY_DENIED):
                await world.record(1, kind)
            world.sink.faults.heal()
            await world.pass_time(timedelta(minutes=2))
            await world.record(1, AuditEventType.CERTIFICATE_AUTHORIZED)
            assert world.meter.levels[metrics.SINK_HOLDS_UP] == 0
    finally:
        watching.cancel()
        await asyncio.wait([watching])
    assert "certificates are refused until it has caught up" in caplog.text
    assert "has caught up: certificates are issued again" in caplog.text


async def test_a_required_sink_that_nobody_copies_to_is_behind() -> None:
    """As when the broker with the role doesn't have it in its file; not before its time, which a start needs."""
    world = World()
    gate = SinkGate(world.stores.stored_events, {"copy": timedelta(minutes=1)}, world.clock, world.meter)
    watching = asyncio.create_task(gate.run())
    await world.pass_time(timedelta(seconds=50))
    assert gate.behind == ""
    await world.pass_time(timedelta(seconds=20))
    await until(lambda: gate.behind == "copy")
    watching.cancel()
    await asyncio.wait([watching])
