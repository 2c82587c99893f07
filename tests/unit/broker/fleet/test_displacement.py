"""A host whose stream moves between two brokers of one database: who ends which stream, and what is counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest

from certplane.broker.fleet.messages import Acknowledgement, Goodbye, Hello
from certplane.broker.fleet.model import HostStream
from certplane.broker.fleet.ports import RecordedReports
from certplane.broker.model import IdentityUse
from certplane.broker.ports import ChangeFollower
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import CertificateState, CertificateStatus, HostFacts, Report
from tests.support.callers import caller
from tests.support.hub import SECOND, Host, World, settled
from tests.support.waiting import no_hang

HOST = "web1.example"


@pytest.fixture
def here() -> World:
    return World()


@pytest.fixture
def there(here: World) -> World:
    """The other broker."""
    return World(beside=here)


@asynccontextmanager
async def come(world: World, *, serial_number: str = "1f", answers: bool = False) -> AsyncIterator[Host]:
    """The host says hello at a broker, and leaves at the end of the block."""
    host = Host(world, HOST, serial_number=serial_number, answers=answers)
    await settled()
    try:
        yield host
    finally:
        host.task.cancel()
        await asyncio.wait({host.task})
        await settled()


async def hear(world: World) -> None:
    """The broker is told by the change feed that the host's stream has changed."""
    follower: ChangeFollower = world.hub.displacement
    await follower.changed([HOST, "web9.example"])
    await settled()


async def count(world: World) -> int:
    known = world.stores.database.identities[HOST]
    return known.displaced_count


def reason(host: Host) -> Reason | None:
    return host.end.refusal.reason if isinstance(host.end, RefusalError) else None


async def stream_of(world: World) -> HostStream:
    (recorded,) = await world.stores.fleet.find_streams([HOST])
    found: HostStream = recorded.stream
    return found


@pytest.fixture(autouse=True)
async def known(here: World) -> None:
    """The host has an identity, whose displacements are counted."""
    now = here.clock.now()
    await here.stores.identities.activate(HOST, IdentityUse("CN=internal", "1f", now, now), ())


async def test_a_host_that_moved_is_let_go_and_not_counted(
    here: World, there: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Its stream here was left open, by a network that was cut perhaps: it ends within half a second, and says why."""
    caplog.set_level(logging.INFO)
    async with come(here) as left, come(there) as moved:
        await hear(here)
        assert HOST not in here.hub.registry
        assert left.end is None
        await here.pass_time(timedelta(seconds=0.5))
        assert reason(left) is Reason.STREAM_DISPLACED
        assert moved.end is None
        assert (await stream_of(here)).broker_id == there.stores.fleet.broker_id
        assert await count(here) == 0
        assert "a new stream of a host has displaced its previous one" in caplog.text
    assert (await stream_of(here)).end_time is not None


async def test_of_two_that_live_the_displaced_one_is_counted(here: World, there: World) -> None:
    """A copy of the identity: it answers on the stream that it has lost."""
    async with come(here, answers=True) as left, come(there, answers=True) as other:
        await hear(here)
        await here.pass_time(timedelta(seconds=0.5))
        assert reason(left) is Reason.STREAM_DISPLACED
        assert await count(here) == 1
        async with come(here, answers=True) as back:
            await hear(there)
            await here.pass_time(timedelta(seconds=0.5))
            assert reason(other) is Reason.STREAM_DISPLACED
            assert back.end is None
            assert await count(here) == 2


@pytest.mark.parametrize("answers", [True, False], ids=["two live", "its network was cut"])
async def test_a_second_stream_at_one_broker(here: World, *, answers: bool) -> None:
    """The same rule: one that came back after its network was cut is no second holder."""
    async with come(here, answers=answers) as left, come(here) as again:
        await here.pass_time(timedelta(seconds=0.5))
        assert reason(left) is Reason.STREAM_DISPLACED
        assert again.end is None
        assert await count(here) == int(answers)


async def test_an_identity_that_was_rotated_is_not_counted(here: World, there: World) -> None:
    """Another certificate is the same host's new one: the stream of the old one ends at once."""
    async with come(here, answers=True) as left, come(there, serial_number="20", answers=True):
        await hear(here)
        assert reason(left) is Reason.STREAM_DISPLACED
        assert await count(here) == 0


async def test_a_host_that_answers_and_hangs_up_is_one_that_moves(here: World, there: World) -> None:
    """Its first stream ends when the second one is welcome: a moment after that one began."""
    async with come(there):
        async with come(here, answers=True), come(there):
            await hear(here)
        await here.pass_time(timedelta(seconds=0.5))
    assert await count(here) == 0


async def test_one_that_lost_its_place_acknowledges_nothing(here: World, there: World) -> None:
    """Its report is refused by the store before the feed has told; the host says it again where it is now."""
    async with come(here) as left, come(there) as moved:
        await left.report(1)
        assert reason(left) is Reason.STREAM_DISPLACED
        assert not any(isinstance(message, Acknowledgement) for message in left.told)
        await moved.report(1)
        assert moved.stream is not None
        assert moved.stream.session.durable == 1
    assert await count(here) == 0


async def test_what_is_recorded_now_and_then_finds_that_the_place_is_lost(here: World, there: World) -> None:
    """Should the feed never tell: the host is heard, and its stream ends at the next look at it."""
    looking = asyncio.create_task(here.hub.supervision.run())
    async with come(here) as left, come(there):
        for _ in range(7):
            assert left.stream is not None
            here.hub.heartbeat(left.stream, here.clock.now())
            await here.pass_time(timedelta(minutes=1))
        assert reason(left) is Reason.STREAM_DISPLACED
        assert (await stream_of(here)).end_time is None
    looking.cancel()
    await asyncio.wait({looking})


async def test_a_host_that_is_back_stays(here: World, there: World) -> None:
    """Told late of the stream there, this broker has a newer one by then."""
    async with come(here), come(there), come(here, answers=True) as back:
        await hear(here)
        await here.pass_time(SECOND)
        assert back.end is None
        assert HOST in here.hub.registry
        assert await count(here) == 0


async def test_one_that_comes_while_the_rows_are_read_stays(
    here: World, there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is older than its hello."""
    find = here.stores.fleet.find_streams
    async with come(here), come(there):
        old = await find([HOST])

        async def late(_hosts: object) -> object:
            back = Host(here, HOST)
            hosts.append(back)
            await settled()
            return old

        hosts: list[Host] = []
        monkeypatch.setattr(here.hub.displacement, "_places", type("Late", (), {"find_streams": staticmethod(late)}))
        await hear(here)
        await here.pass_time(SECOND)
        (back,) = hosts
        assert back.end is None
        assert HOST in here.hub.registry
        back.task.cancel()
        await asyncio.wait({back.task})


async def test_all_streams_are_compared_after_a_gap(here: World, there: World) -> None:
    """As many as there are; those whose hosts are here go on."""
    hosts = [Host(here, f"web{number}.example") for number in range(200)]
    await settled()
    moved = [Host(there, host.name, serial_number="20") for host in hosts[::2]]
    await settled()
    await here.hub.displacement.reread(here.clock.now())
    await settled()
    assert [reason(host) for host in hosts] == [Reason.STREAM_DISPLACED, None] * 100
    assert len(here.hub.registry) == 100
    tasks = [host.task for host in (*hosts, *moved)]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await settled()


async def test_a_database_of_yesterday_has_hosts_say_hello_again(here: World) -> None:
    """It doesn't know their streams, nor what was reported on them: nobody has displaced anybody."""
    async with come(here) as host:
        here.stores.database.forget("host_streams")
        await here.hub.displacement.reread(here.clock.now())
        await settled()
        assert isinstance(host.told[-1], Goodbye)
        assert host.told[-1].reconnect_delay > timedelta()
        assert host.end is None
    async with come(here) as again:
        assert again.stream is not None
        await again.report(1)
        assert again.stream.session.durable == 1


async def test_a_copy_that_lacks_what_was_acknowledged_has_hosts_say_hello_again(here: World) -> None:
    """It knows the stream, which began before the copy was made, and not all that was reported on it since."""
    async with come(here) as host:
        await host.report(1)
        connection = here.stores.database.connection
        (row,) = connection.execute("SELECT epoch, acknowledged_sequence FROM report_sequences").fetchall()
        assert row == ("epoch-1", 1)
        await here.hub.displacement.reread(here.clock.now())
        await settled()
        assert not isinstance(host.told[-1], Goodbye)
        connection.execute("UPDATE report_sequences SET acknowledged_sequence = 0")
        await here.hub.displacement.reread(here.clock.now())
        await settled()
        assert isinstance(host.told[-1], Goodbye)


async def test_a_store_that_fails_ends_no_stream(here: World, there: World) -> None:
    """What was known stays in force; the feed asks again."""
    async with come(here) as left, come(there):
        here.stores.database.down = True
        with pytest.raises(RefusalError):
            await here.hub.displacement.changed([HOST])
        assert left.end is None
        here.stores.database.down = False
        await hear(here)
        await here.pass_time(SECOND)
        assert reason(left) is Reason.STREAM_DISPLACED


async def test_a_host_that_hangs_up_before_it_is_welcome_is_not_left_open(here: World) -> None:
    """The store has its stream a moment later, and then that it has ended."""
    here.store.held = asyncio.Event()
    async with come(here):
        pass
    here.store.held.set()
    await settled()
    stream = await stream_of(here)
    assert (stream.stream_epoch, stream.end_time) == (1, here.clock.now())


async def test_an_end_is_recorded_once_the_store_is_back(here: World, caplog: pytest.LogCaptureFixture) -> None:
    """Other brokers go by the row alone: a host that left while the store was away would be connected there for good."""
    caplog.set_level(logging.WARNING)
    async with come(here):
        here.stores.database.down = True
    left = here.clock.now()
    await here.pass_time(timedelta(minutes=5))
    here.stores.database.down = False
    assert (await stream_of(here)).end_time is None
    await here.pass_time(timedelta(seconds=30))
    assert (await stream_of(here)).end_time == left
    assert caplog.text.count("could not record the state of a host's stream") == 1


async def test_an_end_waits_for_no_store_at_a_stop(here: World) -> None:
    """The lease is given back, and with it all streams are over."""
    async with come(here):
        here.stores.database.down = True
    async with no_hang():
        await here.hub.drain()


@pytest.mark.parametrize("hangs_up", [False, True], ids=["the store fails", "the host hangs up"])
async def test_a_long_hello_that_is_not_taken_to_its_end_leaves_no_stream_open(here: World, *, hangs_up: bool) -> None:
    """Its first reports were taken, and with them the stream had begun."""
    recorded = asyncio.Event()
    record = here.store.record_reports

    async def once(*arguments: Any, **more: Any) -> RecordedReports:
        if recorded.is_set():
            here.store.held = asyncio.Event() if hangs_up else None
            here.stores.database.down = not hangs_up
        recorded.set()
        return await record(*arguments, **more)

    here.store.record_reports = once  # type: ignore[method-assign] # fails once
    reports = tuple(Report(number, CertificateStatus("web", CertificateState.DUE)) for number in range(1, 100))

    async def live() -> None:
        stream = here.hub.attach(caller(name=HOST), "r-1", AsyncMock())
        try:
            await here.hub.hello(stream, Hello(HostFacts("0.1.0"), "epoch-1", ("web",), reports, here.clock.now()))
        finally:
            here.hub.detach(stream)

    task = asyncio.create_task(live())
    await settled()
    task.cancel()
    await asyncio.wait({task})
    here.stores.database.down = False
    await settled()
    await here.pass_time(timedelta(seconds=30))
    assert (await stream_of(here)).end_time is not None
    assert HOST not in here.hub.registry
