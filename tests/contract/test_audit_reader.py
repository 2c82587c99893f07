"""What `AuditReader` promises, asked of the fake, of SQLite and of PostgreSQL."""

from __future__ import annotations

from datetime import timedelta

import pytest

from certplane.broker.event_filter import EventFilter
from certplane.broker.events import AuditEventType
from tests.support.stores import StoreHarness

LOADED, DENIED, STARTED = AuditEventType.POLICY_LOADED, AuditEventType.IDENTITY_DENIED, AuditEventType.BROKER_STARTED


async def test_recent_changes_of_all_writers(store: StoreHarness, other: StoreHarness) -> None:
    """Of the types that are asked for, the newest first, as many as are wanted, and none that is older."""
    begun = store.clock.now()
    await store.stores.audit.append([store.event(LOADED), store.event(STARTED), *(store.event() for _ in range(5))])
    store.clock.advance(timedelta(hours=1))
    await other.stores.audit.append([other.event(DENIED, reason="zwölf \udcff"), other.event(LOADED)])

    async def recent(*types: AuditEventType, limit: int = 10, since: timedelta = timedelta()) -> list[str]:
        found = await store.stores.audit_reader.recent(types, since=begun + since, limit=limit)
        return [f"{event.event_type} {event.event_id}" for event in found]

    ids = await store.event_ids()
    expected = [f"policy_loaded {ids[8]}", f"identity_denied {ids[7]}", f"policy_loaded {ids[0]}"]
    assert await recent(LOADED, DENIED) == expected
    assert await recent(LOADED, DENIED, limit=2) == expected[:2]
    assert await recent(LOADED, DENIED, since=timedelta(seconds=1)) == expected[:2]
    assert await recent(AuditEventType.STORE_COPIED) == await recent(LOADED, limit=0) == await recent() == []
    with pytest.raises(ValueError, match="certificate_issued"):
        await recent(AuditEventType.CERTIFICATE_ISSUED)


async def test_what_comes_is_shown_once_and_in_any_order_of_commits(store: StoreHarness, other: StoreHarness) -> None:
    """A transaction of another broker may become durable behind events that were shown."""
    if store.place.kind == "memory":
        pytest.skip("rows are added past the store")
    await store.stores.audit.append([store.event(), store.event()])
    tail = await store.stores.audit_reader.follow()
    assert await tail.new() == []
    await store.stores.audit.append([store.event()])
    store.place.execute("UPDATE audit_events SET sequence = sequence + 5 WHERE event_id = 'event-000003'")
    assert [event.record["event_id"] for event in await tail.new()] == ["event-000003"]
    late = "INSERT INTO audit_events (sequence, event_id, create_time, record) VALUES "
    store.place.execute(late + "(4, 'late', 0, '{\"event_id\": \"late\"}'), (5, 'torn', 0, '{')")
    assert [event.record["event_id"] for event in await tail.new()] == ["late"]
    store.clock.advance(timedelta(minutes=1))
    for _ in range(2):
        assert await tail.new() == []


async def test_the_place_of_a_time(store: StoreHarness) -> None:
    """Before the first event, in the middle, after the last one; pages use it, clocks may differ by minutes."""
    times = []
    for _ in range(20):
        times.append(store.clock.now())
        await store.stores.audit.append([store.event(), store.event()])
        store.clock.advance(timedelta(hours=1))
    reader = store.stores.audit_reader
    assert [await reader.place_of(time) for time in times] == [0, *range(3, 41, 2)]
    assert await reader.place_of(store.clock.now()) == 41
    wanted = EventFilter(start=times[3], end=times[5])
    page = await reader.page(wanted, limit=100, oldest_first=True)
    assert [event.record["event_id"] for event in page.events] == [f"event-{number:06d}" for number in range(7, 11)]
    assert page.after is None
    one = await reader.page(wanted, limit=1)
    assert (one.events[0].record["event_id"], one.after) == ("event-000010", one.events[0].sequence)
    (two,) = (await reader.page(wanted, after=one.after, limit=1)).events
    assert two.record["event_id"] == "event-000009"
