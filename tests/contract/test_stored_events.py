"""What `StoredEvents` promises, asked of each kind of store."""

from __future__ import annotations

import json

from certplane.broker.sinks.position import SinkPosition
from tests.support.stores import StoreHarness


async def test_events_are_found_by_their_numbers(store: StoreHarness) -> None:
    """Upwards, in the public format, whatever order they are asked for in."""
    log = store.stores.stored_events
    assert (await log.newest(), await log.sequences(0, 10)) == (0, [])
    recorded = [store.event(reason=f"number {number}") for number in range(70)]
    await store.stores.audit.append(recorded)
    numbers = await log.sequences(0, 100)
    assert numbers == sorted(numbers)
    assert len(numbers) == 70
    assert await log.newest() == numbers[-1]
    assert await log.sequences(numbers[-3], 100) == numbers[-2:]
    assert await log.sequences(0, 5) == numbers[:5]
    found = await log.events([*reversed(numbers)])
    assert {event.sequence for event in found} == {*numbers}
    first = (await log.events(numbers))[0]
    assert (first.sequence, first.event_id, first.time) == (numbers[0], recorded[0].event_id, recorded[0].timestamp)
    assert json.loads(first.text) == json.loads(recorded[0].encode())
    assert await log.events([numbers[-1] + 1]) == []
    assert await log.events([]) == []


async def test_a_position_moves_from_where_it_is_known_to_be(store: StoreHarness) -> None:
    """Whoever has another one in mind moves nothing; each sink has its own."""
    log = store.stores.stored_events
    here, there = SinkPosition(7), SinkPosition(9, ((11, 13), (15, 15)))
    assert await log.position("file") is None
    assert await log.advance("file", None, here)
    assert not await log.advance("file", None, there)
    assert not await log.advance("file", there, SinkPosition(20))
    assert await log.advance("file", here, there)
    assert await log.position("file") == there
    assert await log.advance("file", there, SinkPosition(20))
    assert await log.position("other") is None
