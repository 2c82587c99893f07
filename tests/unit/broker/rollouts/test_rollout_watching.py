"""Who watches a rollout hears that it has changed, once however often it did."""

from __future__ import annotations

import pytest

from certplane.broker.rollouts.watching import RolloutWatchers
from certplane.errors import Reason, RefusalError
from tests.fakes.clock import ManualClock
from tests.support.waiting import no_hang


async def test_changes_while_nobody_reads_are_one() -> None:
    """Of the rollout that is watched; whoever runs rollouts hears of all."""
    watchers = RolloutWatchers()
    heard: list[str] = []
    watchers.listen(heard.append)
    with watchers.watching("r-1") as watcher:
        await watchers.changed(["r-1", "r-2"])
        watchers.note("r-1")
        async with no_hang():
            assert await watcher.next_change()
        watchers.close()
        async with no_hang():
            assert not await watcher.next_change()
    assert heard == ["r-1", "r-2", "r-1"]


async def test_after_a_gap_any_may_have_changed() -> None:
    """All watchers look again."""
    watchers = RolloutWatchers()
    heard: list[str] = []
    watchers.listen(heard.append)
    with watchers.watching("r-1") as first, watchers.watching("r-2") as second:
        await watchers.reread(ManualClock().now())
        async with no_hang():
            assert await first.next_change()
            assert await second.next_change()
    assert heard == [""]


def test_watchers_are_bounded() -> None:
    """Each change is a read for each of them; and none is taken by a broker that ends."""
    watchers = RolloutWatchers()
    held = [watchers.watching("r-1") for _ in range(65)]
    for one in held[:64]:
        one.__enter__()
    with pytest.raises(RefusalError) as caught:
        held[64].__enter__()
    assert caught.value.refusal.reason is Reason.RATE_LIMITED
    for one in held[:64]:
        one.__exit__(None, None, None)
    with watchers.watching("r-1"):
        pass
    watchers.close()
    with pytest.raises(RefusalError) as caught, watchers.watching("r-1"):
        pass
    assert caught.value.refusal.reason is Reason.DRAINING
