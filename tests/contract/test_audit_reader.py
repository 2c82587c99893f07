"""What `AuditReader` promises, asked of the fake, of SQLite and of PostgreSQL."""

from __future__ import annotations

from datetime import timedelta

import pytest

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
