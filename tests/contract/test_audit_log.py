"""What `AuditLog` promises, asked of the fake, of SQLite and of PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import fields

from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditSeverity
from certplane.errors import Reason, RefusalError
from tests.support.stores import StoreHarness

FULL = AuditEvent(
    event_id="full",
    timestamp=datetime(2026, 11, 23, 1, 2, 3, 4, tzinfo=UTC),
    event_type=AuditEventType.CERTIFICATE_ISSUED,
    severity=AuditSeverity.WARNING,
    decision=AuditDecision.ISSUE,
    csr_dns_names=("*.example.org", "example.org"),
    expected_dns_names=("example.org",),
    cert_not_before=datetime(2026, 11, 23, tzinfo=UTC),
    cert_not_after=datetime(2027, 2, 21, 23, 59, 59, tzinfo=UTC),
    count=3,
    **{  # type: ignore[arg-type] # text fields all
        field.name: f'{field.name} " \\ \u2028 \x00 \x1b é'
        for field in fields(AuditEvent)
        if field.type is str and field.name != "event_id"
    },
)


async def test_an_event_is_read_back_as_its_record(store: StoreHarness) -> None:
    """Every field, whatever characters a client sent."""
    await store.stores.audit.append([FULL, store.event()])
    records = await store.stores.audit.tail(10)
    assert records[0] == FULL.record()
    assert set(records[1]) == {"event_id", "timestamp", "event_type", "severity"}


async def test_tail_is_the_last_events_oldest_first(store: StoreHarness) -> None:
    """The end of the log, in the order in which it was written."""
    for _ in range(3):
        await store.stores.audit.append([store.event(), store.event()])
    tail = [record["event_id"] for record in await store.stores.audit.tail(3)]
    assert tail == ["event-000004", "event-000005", "event-000006"]
    assert await store.stores.audit.tail(0) == []


async def test_nothing_to_append_is_no_error(store: StoreHarness) -> None:
    """An empty append returns."""
    await store.stores.audit.append([])
    assert await store.event_ids() == []


async def test_events_of_one_call_stay_together_among_many(store: StoreHarness) -> None:
    """Callers at once: every event is there once, each caller's in its order and next to each other."""
    batches = [[store.event(request_id=str(number)) for _ in range(3)] for number in range(200)]
    await asyncio.gather(*(store.stores.audit.append(batch) for batch in batches))
    stored = await store.event_ids()
    assert sorted(stored) == sorted(event.event_id for batch in batches for event in batch)
    for batch in batches:
        at = stored.index(batch[0].event_id)
        assert stored[at : at + 3] == [event.event_id for event in batch]


async def test_more_events_than_a_statement_holds(store: StoreHarness) -> None:
    """One append of a thousand events is whole."""
    await store.stores.audit.append([store.event() for _ in range(1000)])
    assert len(await store.event_ids()) == 1000


async def test_fail_closed_refuses_what_it_can_not_write(store: StoreHarness) -> None:
    """AUDIT_UNAVAILABLE with a time to come back; afterwards it works again."""
    with store.audit_broken(), pytest.raises(RefusalError) as caught:
        await store.stores.audit.append([store.event()])
    assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
    assert caught.value.refusal.retry_after is not None
    await store.stores.audit.append([store.event()])
    assert await store.event_ids() == ["event-000002"]


@pytest.mark.parametrize("failure_mode", ["fail_open"])
async def test_fail_open_returns_when_it_can_not_write(store: StoreHarness) -> None:
    """The event went elsewhere; the log goes on without it."""
    with store.audit_broken():
        await store.stores.audit.append([store.event()])
    await store.stores.audit.append([store.event()])
    assert await store.event_ids() == ["event-000002"]


async def test_a_cancelled_wait_does_not_undo_the_event(store: StoreHarness) -> None:
    """The caller has gone, the event stands."""
    waits: list[asyncio.Task[Any]] = [asyncio.create_task(store.stores.audit.append([store.event()])) for _ in range(3)]
    await asyncio.sleep(0)
    waits[1].cancel()
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    await store.stores.audit.append([store.event()])
    assert await store.event_ids() == [f"event-{number:06d}" for number in range(1, 5)]
