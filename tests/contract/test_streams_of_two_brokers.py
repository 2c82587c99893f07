"""What `FleetStore` promises of a host's streams at two brokers of one database, asked of each kind of store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from certplane.broker.events import AuditEventType
from certplane.broker.fleet.model import HostRecord, HostStream, RecordedStream
from certplane.broker.fleet.ports import RecordedReports
from certplane.broker.model import ChangeKind
from certplane.errors import Reason, Refusal, RefusalError
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate, HostFacts, Report
from tests.contract.test_change_feed import Follower
from tests.support.stores import StoreHarness

HOST = "web1.example"
T0 = datetime(2026, 11, 23, 12, tzinfo=UTC)
REFUSED = Refusal(Reason.REQUEST_INVALID, "no such certificate")


def stream(host: str = HOST, **changes: Any) -> HostStream:
    made = HostStream(host, HostFacts("1.2.0"), "1f", T0 + timedelta(days=365), "192.0.2.1", T0, T0)
    return replace(made, **changes)


def report(sequence: int, serial: str = "3e7", name: str = "web") -> Report:
    return Report(sequence, CertificateStatus(name, CertificateState.SERVING, served=HeldCertificate(serial)))


async def hello(at: StoreHarness, *reports: Report, epoch: str = "e", **changes: Any) -> HostStream:
    """The host's stream begins there: the stream as it is known then."""
    made = stream(**changes)
    names = ["web", "mail"]
    recorded = await at.stores.fleet.record_reports(made.host, epoch, reports, names=names, stream=made)
    return replace(made, broker_id=at.stores.fleet.broker_id, stream_epoch=recorded.stream_epoch)


async def say(at: StoreHarness, on: HostStream, *reports: Report, epoch: str = "e") -> RecordedReports:
    events = {one.sequence: at.event(AuditEventType.RENEWAL_REPORTED, reason=f"{one.sequence}") for one in reports}
    recorded: RecordedReports = await at.stores.fleet.record_reports(
        on.host, epoch, reports, events, stream_epoch=on.stream_epoch
    )
    return recorded


async def record_of(at: StoreHarness, host: str = HOST) -> HostRecord:
    record: HostRecord | None = await at.stores.fleet.get_host(host)
    assert record is not None
    return record


async def displaced(waiting: Awaitable[object]) -> None:
    with pytest.raises(RefusalError) as caught:
        await waiting
    assert caught.value.refusal.reason is Reason.STREAM_DISPLACED


async def test_each_hello_has_a_greater_number(store: StoreHarness, other: StoreHarness) -> None:
    """Whichever broker it is at; the host's record says where its stream is."""
    for number, at in enumerate((store, other, other, store), 1):
        begun = await hello(at)
        assert begun.stream_epoch == number
        assert (await record_of(store)).stream == begun
        assert begun.broker_id == at.stores.members.broker_id
    assert (await hello(other, host="web2.example")).stream_epoch == 1


async def test_what_comes_on_an_earlier_stream_changes_nothing(store: StoreHarness, other: StoreHarness) -> None:
    """Neither its reports and their events, nor that it was seen or has ended, nor what it answered."""
    left = await hello(store, report(1))
    taken = await hello(other, report(2, "3e8"))
    before = await record_of(other)
    fleet = store.stores.fleet
    await displaced(say(store, left, report(3, "3e9"), report(4, "3ea", "mail")))
    await displaced(fleet.record_stream(replace(left, last_seen_time=T0 + timedelta(hours=1))))
    await displaced(fleet.record_stream(replace(left, end_time=T0 + timedelta(hours=1))))
    await fleet.record_directive_error(HOST, REFUSED, left.stream_epoch)
    assert await record_of(other) == before
    assert before.stream == taken
    assert await store.event_ids() == []
    await other.stores.fleet.record_directive_error(HOST, REFUSED, taken.stream_epoch)
    await fleet.record_directive_error(HOST, None, left.stream_epoch)
    assert (await record_of(other)).directive_error == REFUSED


async def test_a_number_is_its_own_broker_s(store: StoreHarness, other: StoreHarness) -> None:
    """A database that was restored may give a number again, to another broker: that one isn't meant."""
    taken = await hello(other)
    await displaced(say(store, taken, report(1)))
    await displaced(store.stores.fleet.record_stream(replace(taken, broker_id=store.stores.fleet.broker_id)))
    await store.stores.fleet.record_directive_error(HOST, REFUSED, taken.stream_epoch)
    assert (await record_of(store)).directive_error is None
    assert (await say(other, taken, report(1))).new == (report(1),)


async def test_a_stream_that_came_back_is_another_one(store: StoreHarness, other: StoreHarness) -> None:
    """The same host at the same broker again: what its first stream there still has to say is late."""
    first = await hello(store)
    await hello(other)
    again = await hello(store)
    await displaced(say(store, first, report(1)))
    assert (await say(store, again, report(1))).new == (report(1),)


async def test_reports_that_nobody_acknowledged_are_new_at_the_other_broker(
    store: StoreHarness, other: StoreHarness
) -> None:
    """And those that were are not: the sequence is the host's, not the broker's."""
    left = await hello(store, report(1))
    await say(store, left, report(2))
    recorded = await other.stores.fleet.record_reports(HOST, "e", [report(2), report(3)], stream=stream())
    assert (recorded.acknowledged_sequence, recorded.new) == (3, (report(3),))
    await displaced(say(store, left, report(3), report(4)))
    assert (await record_of(store)).acknowledged_sequence == 3


async def test_a_host_that_is_ahead_of_a_restored_database_is_heard(store: StoreHarness, other: StoreHarness) -> None:
    """Its stream has a number that the database has never given, and its reports a sequence: hello mends both."""
    await hello(other, report(1))
    ahead = stream(broker_id=store.stores.fleet.broker_id, stream_epoch=7)
    await displaced(say(store, ahead, report(9)))
    await displaced(store.stores.fleet.record_stream(ahead))
    again = await hello(store, report(9, "3e9"))
    assert again.stream_epoch == 2
    assert (await record_of(store)).acknowledged_sequence == 9


async def test_a_row_that_is_gone_is_made_again(store: StoreHarness) -> None:
    """By whoever has the stream: it says so when the host is seen."""
    here = stream(broker_id=store.stores.fleet.broker_id, stream_epoch=7)
    await displaced(say(store, here, report(1)))
    await store.stores.fleet.record_stream(here)
    assert (await record_of(store)).stream == here
    assert (await say(store, here, report(1))).new == (report(1),)
    assert (await hello(store)).stream_epoch == 8


async def test_of_two_hellos_at_once_one_has_the_host(store: StoreHarness, other: StoreHarness) -> None:
    """Each has a number of its own, reports never go back, and only who has the greater number is heard."""
    for number in range(20):
        host = f"web{number}.example"
        streams = await asyncio.gather(
            hello(store, report(2, "3e8"), host=host),
            hello(other, report(1), report(3, "3e9"), host=host),
            hello(store, report(2, "3e8"), host=f"x{host}"),
        )
        one, two = sorted(streams[:2], key=lambda begun: begun.stream_epoch)
        assert (one.stream_epoch, two.stream_epoch) == (1, 2)
        assert (await record_of(store, host)).acknowledged_sequence == 3
        assert (await record_of(store, host)).certificates == (report(3, "3e9").certificate,)
        first, second = (store, other) if one is streams[0] else (other, store)
        await displaced(say(first, one, report(4)))
        assert (await say(second, two, report(4))).new == (report(4),)


async def test_reports_and_a_hello_elsewhere_at_once(store: StoreHarness, other: StoreHarness) -> None:
    """What the first broker acknowledges the second one has seen: nothing is kept that is older than what was."""
    for number in range(20):
        host = f"web{number}.example"
        here = await hello(store, host=host)
        said, there = await asyncio.gather(
            say(store, here, report(1), report(2, "3e8")),
            hello(other, report(1), report(2, "3e8"), report(3, "3e9"), host=host),
            return_exceptions=True,
        )
        assert isinstance(there, HostStream)
        if isinstance(said, RecordedReports):
            assert said.acknowledged_sequence == 2
        else:
            assert isinstance(said, RefusalError)
            assert said.refusal.reason is Reason.STREAM_DISPLACED
        record = await record_of(store, host)
        assert (record.stream, record.acknowledged_sequence) == (there, 3)
        assert record.certificates == (report(3, "3e9").certificate,)


async def test_two_hellos_of_one_host_at_one_broker(store: StoreHarness) -> None:
    """Taken up together or not: the later one has the place, and the other one has lost it or will find so."""
    begun = await asyncio.gather(hello(store, report(1)), hello(store, report(1)), return_exceptions=True)
    last = begun[-1]
    assert isinstance(last, HostStream)
    assert (await record_of(store)).stream == last
    if isinstance(begun[0], HostStream):
        await displaced(say(store, begun[0], report(2)))
    else:
        assert isinstance(begun[0], RefusalError)
        assert begun[0].refusal.reason is Reason.STREAM_DISPLACED
    assert (await say(store, last, report(2))).new == (report(2),)


async def test_one_that_lost_its_place_takes_nothing_from_others(store: StoreHarness, other: StoreHarness) -> None:
    """Many hosts' calls share a transaction: those of the others are kept."""
    hosts = [f"web{number}.example" for number in range(30)]
    streams = [await hello(store, host=host) for host in hosts]
    for host in hosts[::3]:
        await hello(other, host=host)
    results = await asyncio.gather(*(say(store, one, report(1)) for one in streams), return_exceptions=True)
    lost = [host for host, result in zip(hosts, results, strict=True) if isinstance(result, RefusalError)]
    assert lost == hosts[::3]
    kept = [(await record_of(store, host)).acknowledged_sequence for host in hosts]
    assert kept == [0 if host in lost else 1 for host in hosts]
    assert len(await store.event_ids()) == 20


async def test_where_streams_are_is_found_at_each_broker(store: StoreHarness, other: StoreHarness) -> None:
    """Of as many hosts as are asked for, with what is durable of their reports; of one that never came, nothing."""
    here = await hello(store, report(1), report(2))
    there = await hello(other, host="web2.example", epoch="another")
    for at in (store, other):
        hosts = [*(f"web{number}.example" for number in range(3, 200)), "web2.example", HOST]
        found = {one.stream.host: one for one in await at.stores.fleet.find_streams(hosts)}
        assert found == {HOST: RecordedStream(here, "e", 2), "web2.example": RecordedStream(there, "another", 0)}
    assert await store.stores.fleet.find_streams([]) == []
    await store.stores.fleet.record_stream(stream("web3.example"))
    (found,) = await other.stores.fleet.find_streams(["web3.example"])
    assert (found.epoch, found.acknowledged_sequence) == ("", 0)


async def test_other_brokers_hear_of_streams(store: StoreHarness, other: StoreHarness) -> None:
    """Of each that begins or ends, and of what a host refused or takes back; not that it was seen, nor of late words.

    Where no other broker can be there is nobody to tell.
    """
    followed = Follower()
    feed = other.stores.changes
    feed.follow(ChangeKind.STREAM, followed, what="streams")
    await feed.look()

    async def heard() -> list[str]:
        await feed.look()
        keys, followed.told = followed.told, []
        return keys

    shared = store.place.kind == "postgresql"
    told = [HOST] if shared else []
    fleet = store.stores.fleet
    left = await hello(store)
    assert await heard() == told
    begun = await hello(store)
    assert await heard() == told
    await fleet.record_stream(begun)
    await fleet.record_directive_error(HOST, None, begun.stream_epoch)
    assert await heard() == []
    await fleet.record_directive_error(HOST, REFUSED, begun.stream_epoch)
    assert await heard() == told
    await fleet.record_directive_error(HOST, None, begun.stream_epoch)
    assert await heard() == told
    await displaced(fleet.record_stream(replace(left, end_time=T0)))
    assert await heard() == []
    await fleet.record_stream(replace(begun, end_time=T0))
    assert await heard() == told
    hosts = [f"web{number}.example" for number in range(100)]
    await asyncio.gather(*(hello(store, host=host) for host in hosts))
    assert sorted(await heard()) == (sorted(hosts) if shared else [])
