"""What `PolicyHistory` promises, asked of every kind of store."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace
from datetime import timedelta
from typing import Any

from certplane.broker.policy.changes import Count, Subject
from certplane.broker.policy.history import MOST_VERSIONS, PolicyVersion
from tests.support.stores import StoreHarness

COUNTS = (Count(Subject.HOST, 3, 4, 1, 0), Count(Subject.GRANT, 3, 2, 0, 1))


def version(store: StoreHarness, text: str, **changes: Any) -> PolicyVersion:
    return PolicyVersion(text, store.clock.now(), "SIGHUP", "here", COUNTS, len(text), **changes)


async def kept(store: StoreHarness, text: str) -> bool:
    store.clock.advance(timedelta(seconds=1))
    found: bool = await store.stores.policy_history.keep(version(store, text), zlib.compress(text.encode()))
    return found


async def hashes(store: StoreHarness, **page: Any) -> list[str]:
    found = await store.stores.policy_history.versions(**{"before": None, "limit": 500, **page})
    return [each.hash for each in found]


async def test_each_policy_is_kept_once_however_many_brokers_load_it(store: StoreHarness, other: StoreHarness) -> None:
    """The newest first; one that comes back is a version again."""
    assert await kept(store, "a")
    assert not await kept(other, "a")
    await asyncio.gather(kept(store, "b"), kept(other, "b"))
    assert await kept(other, "a")
    assert await hashes(store) == ["a", "b", "a"]


async def test_a_version_is_found_by_its_hash_with_its_text(store: StoreHarness) -> None:
    """The newest of them, with all that was said of it; one whose text was too large has none."""
    await kept(store, "a")
    await store.stores.policy_history.keep(replace(version(store, "large"), text_size=0), b"")
    found = await store.stores.policy_history.find("a")
    assert found is not None
    known, packed = found
    assert (known.loaded_by, known.broker_name, known.counts, known.text_size) == ("SIGHUP", "here", COUNTS, 1)
    assert zlib.decompress(packed) == b"a"
    large = await store.stores.policy_history.find("large")
    assert large is not None
    assert large[1] == b""
    assert await store.stores.policy_history.find("none") is None


async def test_only_the_last_are_kept(store: StoreHarness) -> None:
    """And they come in pages that don't shift while others are added."""
    for number in range(MOST_VERSIONS + 3):
        await kept(store, f"p{number}")
    everything = [f"p{number}" for number in reversed(range(3, MOST_VERSIONS + 3))]
    assert await hashes(store) == everything
    first = await store.stores.policy_history.versions(before=None, limit=60)
    await kept(store, "new")
    rest = await hashes(store, before=first[-1].number)
    assert [each.hash for each in first] + rest == everything[:-1]
