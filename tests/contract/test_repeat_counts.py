"""What `RepeatCounts` promises, asked of the fake, of SQLite and of PostgreSQL."""

from datetime import timedelta

import pytest
from msgspec.structs import replace

from certplane.broker.events import AuditEvent, AuditEventType
from certplane.errors import Reason, RefusalError
from tests.support.stores import StoreHarness, member


def summary(store: StoreHarness, number: int = 0, count: int = 1) -> AuditEvent:
    event = store.event(AuditEventType.EVENTS_COALESCED, reason="was repeated", count=count)
    return replace(event, event_id=f"summary-{number:04d}")


async def counts(store: StoreHarness) -> list[tuple[object, object]]:
    return [(record["event_id"], record["count"]) for record in await store.stores.audit.tail(1000)]


async def test_what_is_kept_is_no_event_before_it_is_closed(store: StoreHarness) -> None:
    """A count that grows is one row, rewritten; closed, it is the event as it was last."""
    repeats = store.stores.repeats
    for count in (1, 2, 3):
        await repeats.keep([summary(store, count=count)])
    assert await counts(store) == []
    await repeats.close([summary(store, count=3)])
    assert await counts(store) == [("summary-0000", 3)]
    assert await repeats.recover() == 0


@pytest.mark.parametrize("number", [1, 7, 8, 9, 63, 64, 65, 200])
async def test_many_counts_are_kept_together(store: StoreHarness, other: StoreHarness, number: int) -> None:
    """As many as there are, whatever the size of one statement."""
    await store.stores.repeats.keep([summary(store, n, count=n + 1) for n in range(number)])
    assert await other.stores.repeats.recover() == number
    assert await counts(store) == [(f"summary-{n:04d}", n + 1) for n in range(number)]


async def test_a_start_makes_events_of_what_a_killed_broker_has_counted(
    store: StoreHarness, other: StoreHarness
) -> None:
    """Each once, as it stood last, and nothing is kept any more."""
    await store.stores.repeats.keep([summary(store, 1, count=4)])
    await store.stores.repeats.keep([summary(store, 1, count=5), summary(store, 2)])
    assert await other.stores.repeats.recover() == 2
    assert await counts(store) == [("summary-0001", 5), ("summary-0002", 1)]
    assert await other.stores.repeats.recover() == 0
    assert len(await counts(store)) == 2


async def test_a_count_that_is_an_event_already_is_not_one_again(store: StoreHarness, other: StoreHarness) -> None:
    """A broker that is killed between a late rewrite and its end leaves the row of an event that is written."""
    await store.stores.repeats.close([summary(store, count=3)])
    await store.stores.repeats.keep([summary(store, count=2)])
    await other.stores.repeats.recover()
    assert await counts(store) == [("summary-0000", 3)]


async def test_a_count_that_can_not_be_kept_is_an_audit_failure(store: StoreHarness, other: StoreHarness) -> None:
    """`fail_closed`: what is counted is as needful as what is written."""
    with store.audit_broken(), pytest.raises(RefusalError) as refused:
        await store.stores.repeats.keep([summary(store)])
    assert refused.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
    assert await other.stores.repeats.recover() == 0


async def test_a_close_that_fails_leaves_the_count_kept(store: StoreHarness, other: StoreHarness) -> None:
    """Row and event change places in one transaction, or not at all."""
    await store.stores.repeats.keep([summary(store, count=2)])
    with store.audit_broken(), pytest.raises(RefusalError):
        await store.stores.repeats.close([summary(store, count=2)])
    assert await other.stores.repeats.recover() == 1
    assert await counts(store) == [("summary-0000", 2)]


async def test_counts_of_a_living_broker_are_its_own(store: StoreHarness, other: StoreHarness) -> None:
    """A broker that starts beside it, or it itself, makes no events of what is still counted."""
    await store.stores.members.renew(member(store), timedelta(seconds=20))
    await store.stores.repeats.keep([summary(store, count=2)])
    assert await other.stores.repeats.recover() == 0
    assert await store.stores.repeats.recover() == 0
    store.clock.advance(timedelta(seconds=21))
    if store.place.kind == "postgresql":  # whose own clock it is that counts
        await other.stores.members.end(store.stores.members.broker_id)
    assert await store.stores.repeats.recover() == 0
    assert await other.stores.repeats.recover() == 1
    assert await counts(store) == [("summary-0000", 2)]


@pytest.mark.parametrize("kept_again", [False, True])
async def test_a_broker_that_only_stood_still_goes_on_counting(
    store: StoreHarness, other: StoreHarness, kept_again: bool
) -> None:
    """Another one has made an event of its count meanwhile: what is counted since is another, none doubled or lost."""
    await store.stores.repeats.keep([summary(store, 1, count=2), summary(store, 2, count=7)])
    assert await other.stores.repeats.recover() == 2
    if kept_again:
        await store.stores.repeats.keep([summary(store, 1, count=3), summary(store, 3, count=1)])
    await store.stores.repeats.close([summary(store, 1, count=4), summary(store, 3, count=1)])
    *moved, closed, later = await counts(store)
    assert moved == [("summary-0001", 2), ("summary-0002", 7)]
    assert closed == ("summary-0003", 1)
    assert later[1] == 4 - 2
    assert "counted since event_id summary-0001" in str((await store.stores.audit.tail(1))[0]["reason"])
    assert await other.stores.repeats.recover() == 0
    for _ in range(2):  # found again as it was: nothing is new
        await store.stores.repeats.keep([summary(store, 2, count=9)])
        assert await other.stores.repeats.recover() == 1
        assert [count for _, count in await counts(store)] == [2, 7, 1, 2, 9 - 7]


@pytest.mark.parametrize("failure_mode", ["fail_open"])
async def test_fail_open_goes_on_counting(store: StoreHarness, caplog: pytest.LogCaptureFixture) -> None:
    """What can't be kept is kept in memory: nobody is refused for it, and its event is written when it is due."""
    with store.audit_broken():
        for _ in range(5):
            await store.stores.repeats.keep([summary(store)])
    assert len([record for record in caplog.records if "counts of repeated" in record.message]) <= 1
    await store.stores.repeats.close([summary(store, count=2)])
    assert await counts(store) == [("summary-0000", 2)]


async def test_a_count_alone_is_one_step_of_the_database(store: StoreHarness) -> None:
    """Each step gives up the interpreter's lock, and a busy event loop gives it back late: no BEGIN, no COMMIT."""
    if store.place.kind != "memory":
        pytest.skip("what is executed is seen where the test holds the connection")
    steps: list[str] = []
    await store.stores.repeats.keep([summary(store)])
    store.stores.database.connection.set_trace_callback(steps.append)
    await store.stores.repeats.keep([summary(store, count=2)])
    store.stores.database.connection.set_trace_callback(None)
    assert [step.split()[0] for step in steps] == ["INSERT"]
