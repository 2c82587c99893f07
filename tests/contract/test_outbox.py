"""What `Outbox` promises, asked of each kind of store."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from certplane.broker.notify.model import FleetState, HealthCount, Message, MessageKind, Told, Trouble
from certplane.broker.notify.ports import Records, Standing, Waiting
from certplane.runtime.health import HealthActor, HealthWord
from tests.fakes.clock import ManualClock
from tests.support.stores import StoreHarness

NOW = ManualClock().now()
MINUTE = timedelta(minutes=1)
TROUBLE = Trouble(
    "DNS_UNAVAILABLE ns2",
    HealthWord.OVERDUE,
    18,
    12,
    ("web1", "web2"),
    "web1",
    "shop",
    "it says \N{SNOWMAN}",
    "help it",
    HealthActor.DNS,
    NOW,
    None,
    NOW + MINUTE,
)
FLEET = FleetState(200, 186, (HealthCount(HealthWord.OVERDUE, 18),), 4)
FIRST = Message("message-1", "oncall", MessageKind.OPENED, NOW, (TROUBLE,), 1, FLEET)
SECOND = replace(FIRST, message_id="message-2", kind=MessageKind.WORSE)
BARE = Message("message-3", "post", MessageKind.DIGEST, NOW)
TOLD = Told("oncall", "DNS_UNAVAILABLE ns2", HealthWord.OVERDUE, 18, NOW, NOW + MINUTE)
OTHER = Told("post", "DNS_UNAVAILABLE ns2", HealthWord.FAILING, 1, NOW, NOW)


async def test_what_was_recorded_is_found(store: StoreHarness) -> None:
    """Whole: messages the oldest first and of one notifier, what was told, and the digests."""
    outbox = store.stores.outbox
    assert await outbox.standing() == Standing(told=[])
    assert await outbox.record(Records([SECOND, FIRST, BARE], [TOLD, OTHER], digests={"post": NOW}), "")
    standing = await outbox.standing()
    assert standing.told == [TOLD, OTHER]
    assert (standing.digests, standing.waiting) == ({"post": NOW}, {"oncall": 2, "post": 1})
    assert await outbox.waiting("oncall", 10) == [Waiting(FIRST), Waiting(SECOND)]
    assert await outbox.waiting("oncall", 1) == [Waiting(FIRST)]
    assert await outbox.waiting("post", 10) == [Waiting(BARE)]
    assert await outbox.waiting("nobody", 10) == []


async def test_what_is_told_changes_and_ends(store: StoreHarness) -> None:
    """Each notifier's own, by its cause."""
    outbox = store.stores.outbox
    assert await outbox.record(Records([], [TOLD, OTHER]), "")
    changed = replace(TOLD, word=HealthWord.EXPIRED, certificate_count=20, tell_time=NOW + 2 * MINUTE)
    assert await outbox.record(Records(told=[changed], over=[OTHER]), (await outbox.standing()).revision)
    assert (await outbox.standing()).told == [changed]


async def test_what_was_planned_on_another_standing_is_not_written(store: StoreHarness) -> None:
    """Nothing of it: of two brokers that plan at a time, one tells."""
    outbox = store.stores.outbox
    assert await outbox.record(Records(digests={"post": NOW}), "")
    standing = await outbox.standing()
    assert not await outbox.record(Records([FIRST], [TOLD]), "")
    assert await outbox.record(Records([SECOND], digests=standing.digests), standing.revision)
    assert not await outbox.record(Records([FIRST], [TOLD]), standing.revision)
    after = await outbox.standing()
    assert (after.told, after.digests, after.waiting) == ([], {"post": NOW}, {"oncall": 1})


async def test_one_begins_an_attempt(store: StoreHarness) -> None:
    """Of two that have read the same; it is counted though nothing may come of it."""
    outbox = store.stores.outbox
    await outbox.record(Records([FIRST]), "")
    (waiting,) = await outbox.waiting("oncall", 1)
    assert await outbox.claim(waiting, NOW + MINUTE)
    assert not await outbox.claim(waiting, NOW + 2 * MINUTE)
    (begun,) = await outbox.waiting("oncall", 1)
    assert begun == Waiting(FIRST, 1, NOW + MINUTE)
    assert await outbox.claim(begun, NOW + 2 * MINUTE)


async def test_an_attempt_ends_with_a_later_one_or_for_good(store: StoreHarness) -> None:
    """A message that is gone stays gone, and can't be claimed."""
    outbox = store.stores.outbox
    await outbox.record(Records([FIRST, SECOND]), "")
    (waiting,) = await outbox.waiting("oncall", 1)
    await outbox.claim(waiting, NOW + MINUTE)
    await outbox.finish("message-1", (NOW + 5 * MINUTE, "it said no"))
    failed = Waiting(FIRST, 1, NOW + 5 * MINUTE, "it said no")
    assert await outbox.waiting("oncall", 10) == [failed, Waiting(SECOND)]
    for _ in range(2):
        await outbox.finish("message-1", None)
    assert not await outbox.claim(failed, NOW + MINUTE)
    assert await outbox.waiting("oncall", 10) == [Waiting(SECOND)]
