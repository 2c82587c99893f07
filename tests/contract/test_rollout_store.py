"""What `RolloutStore` promises, asked of every kind of store."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.model import ChangeKind, RevocationReason
from certplane.broker.renewal.model import HostActivation, Selection
from certplane.broker.rollouts import words
from certplane.broker.rollouts.model import (
    Finish,
    Halt,
    ItemState,
    Revoke,
    Ring,
    RingSpec,
    RingState,
    Rollout,
    RolloutAction,
    RolloutItem,
    RolloutSpec,
    RolloutState,
    StateCount,
    Success,
)
from certplane.broker.rollouts.ports import ItemPlace, RolloutPlace
from tests.support.rollouts import MINUTE, NOT_AFTER, START, a_rollout, an_item
from tests.support.stores import StoreHarness, certificate

FULL_SPEC = RolloutSpec(
    Selection(all=True, profiles=("web",), issued_before=START),
    "ticket 4711 — \u00fcber alles",
    RolloutAction.MOVE,
    "other",
    (RingSpec("canary", ("ring=canary", "dc=fra1"), bake=10 * MINUTE), RingSpec("ten", percent=10), RingSpec("rest", rest=True)),
    Success.INSTALLED,
    25,
    Halt(3, 5, 7 * MINUTE),
    START + timedelta(days=1),
    Revoke.AFTER_SERVED,
    RevocationReason.KEY_COMPROMISE,
)  # fmt: skip


def next_of(rollout: Rollout, **changes: Any) -> Rollout:
    """The next version of a rollout."""
    return replace(rollout, version=rollout.version + 1, **changes)


async def test_what_is_created_is_there_with_all_that_was_said(store: StoreHarness, other: StoreHarness) -> None:
    """At every broker."""
    rollout, items = a_rollout(2, 3)
    assert await store.stores.rollouts.create(rollout, items) == rollout
    assert await other.stores.rollouts.get("r1") == rollout
    assert await other.stores.rollouts.find("operator-1", "request-r1") == rollout
    assert await other.stores.rollouts.items("r1") == items
    assert await other.stores.rollouts.open_rollouts() == [rollout]
    assert await other.stores.rollouts.get("r2") is None
    assert await other.stores.rollouts.find("operator-2", "request-r1") is None
    assert await other.stores.rollouts.items("r2") == []


async def test_every_field_is_kept(store: StoreHarness) -> None:
    """None has its default."""
    ring = Ring("x", RingState.BAKING, 2, (StateCount(ItemState.DONE, 2),), START, START, START + MINUTE, MINUTE)
    rollout = Rollout(
        "r1", "alice", "q", FULL_SPEC, START, START + MINUTE, 7, RolloutState.FINISHING, "why", (ring, ring, ring), 2,
        Finish.REVOKE, 5, 6, 3, 4, "bob", "i-1", START, START + MINUTE, START + 2 * MINUTE,
    )  # fmt: skip
    item = RolloutItem(
        "r1", "c", "web1", "web", "ca", ("a.example", "b.example"), NOT_AFTER, 2, "front", ItemState.SILENT, "gone quiet",
        2, "n", "mark", START, START + MINUTE, START + 2 * MINUTE, True,
    )  # fmt: skip
    defaults = (Rollout("", "", "", FULL_SPEC, START, START), RolloutItem("", "", "", "", "", (), START, 0))
    for full, default in zip((rollout, item), defaults, strict=True):
        same = [name for name in full.__slots__ if getattr(full, name) == getattr(default, name)]
        assert same in (["spec"], ["spec", "create_time"], []), same
    await store.stores.rollouts.create(rollout, [item])
    assert await store.stores.rollouts.get("r1") == rollout
    assert await store.stores.rollouts.items("r1") == [item]


async def test_asked_again_nothing_is_created(store: StoreHarness, other: StoreHarness) -> None:
    """The first one is the answer, as it is by now; another caller's id is another one."""
    first, items = a_rollout(1, 1)
    await store.stores.rollouts.create(first, items)
    paused = words.pause(first, "operator-1", "wait", START)
    assert await store.stores.rollouts.save(first, paused)
    again, others = a_rollout(1, 1, rollout_id="r2", request_id="request-r1")
    assert await other.stores.rollouts.create(again, others) == paused
    assert await other.stores.rollouts.get("r2") is None
    assert await other.stores.rollouts.items("r2") == []
    theirs, their_items = a_rollout(1, 1, rollout_id="r3", request_id="request-r1", created_by="operator-2")
    assert await other.stores.rollouts.create(theirs, their_items) == theirs


async def test_of_two_who_decide_at_once_one_is_refused(store: StoreHarness, other: StoreHarness) -> None:
    """Nothing of what it wanted is written, of no item either."""
    rollout, items = a_rollout(1, 1)
    await store.stores.rollouts.create(rollout, items)
    paused = words.pause(rollout, "operator-1", "wait", START)
    assert await store.stores.rollouts.save(rollout, paused)
    released = replace(items[0], state=ItemState.RELEASED)
    assert not await other.stores.rollouts.save(rollout, next_of(rollout, state_reason="goes on"), [released])
    assert await other.stores.rollouts.get("r1") == paused
    assert await other.stores.rollouts.items("r1") == items
    assert await other.stores.rollouts.save(paused, next_of(paused, state_reason="later"), [released])
    assert (await store.stores.rollouts.items("r1"))[0] == released


async def test_a_write_that_had_come_through_has(store: StoreHarness) -> None:
    """Whoever lost the answer and writes the same again isn't refused."""
    rollout, items = a_rollout(1, 1)
    await store.stores.rollouts.create(rollout, items)
    after = next_of(rollout, state_reason="x")
    assert await store.stores.rollouts.save(rollout, after)
    assert await store.stores.rollouts.save(rollout, after)
    assert not await store.stores.rollouts.save(rollout, replace(after, state_reason="y"))


async def test_what_an_item_is_never_changes(store: StoreHarness) -> None:
    """Only how far it is; nor what its rollout does."""
    rollout, items = a_rollout(1, 1)
    await store.stores.rollouts.create(rollout, items)
    other = next_of(rollout, spec=FULL_SPEC, state_reason="x")
    assert await store.stores.rollouts.save(rollout, other)
    rollout = replace(other, spec=rollout.spec)
    assert await store.stores.rollouts.get("r1") == rollout
    changed = replace(items[0], host="other", ring=1, state=ItemState.DONE, reason="r")
    await store.stores.rollouts.save(rollout, next_of(rollout), [changed])
    assert (await store.stores.rollouts.items("r1"))[0] == replace(items[0], state=ItemState.DONE, reason="r")


async def test_a_large_one_is_read_whole(store: StoreHarness) -> None:
    """In several pages, each item once, by its certificate."""
    rollout, _ = a_rollout(1, 1)
    items = [an_item(number, number % 2) for number in range(1200)]
    await store.stores.rollouts.create(rollout, items)
    assert await store.stores.rollouts.items("r1") == sorted(items, key=lambda item: item.certificate_id)
    done = [replace(item, state=ItemState.DONE) for item in items[:700]]
    await store.stores.rollouts.save(rollout, next_of(rollout), done)
    found = await store.stores.rollouts.items("r1")
    assert sum(item.state is ItemState.DONE for item in found) == 700


async def test_those_that_run_come_first_then_the_newest(store: StoreHarness) -> None:
    """In pages of any size, in all states or in some."""
    made = []
    for number in range(7):
        one, items = a_rollout(1, 1, rollout_id=f"r{number}", create_time=START + number * MINUTE)
        await store.stores.rollouts.create(one, items)
        if number % 2:
            after = words.abort(one, "operator-1", "no", START)
            assert await store.stores.rollouts.save(one, after)
            one = after
        made.append(one)
    wanted = [made[number] for number in (6, 4, 2, 0, 5, 3, 1)]
    for limit in (1, 3, 4, 50):
        found: list[Rollout] = []
        place = None
        while page := await store.stores.rollouts.list((), place, limit):
            found += page
            place = RolloutPlace(page[-1].state.has_ended, page[-1].create_time, page[-1].rollout_id)
        assert found == wanted
    assert await store.stores.rollouts.list([RolloutState.ABORTED], None, 2) == wanted[4:6]
    assert await store.stores.rollouts.open_rollouts() == wanted[3::-1]


async def test_items_that_failed_come_first(store: StoreHarness) -> None:
    """In pages of any size, in some states, and of one ring."""
    rollout, _ = a_rollout(1, 1)
    states = [*ItemState]
    items = [an_item(number, number % 3, state=states[-1 - number % 8]) for number in range(40)]
    await store.stores.rollouts.create(rollout, items)
    wanted = sorted(items, key=lambda item: (item.state.place, item.certificate_id))
    for limit in (1, 7, 100):
        found: list[RolloutItem] = []
        place = None
        while page := await store.stores.rollouts.list_items("r1", (), None, place, limit):
            found += page
            place = ItemPlace(page[-1].state.place, page[-1].certificate_id)
        assert found == wanted
    some = {ItemState.DONE, ItemState.FAILED}
    of_ring = await store.stores.rollouts.list_items("r1", some, 1, None, 100)
    assert of_ring == [item for item in wanted if item.state in some and item.ring == 1]


async def test_which_rollouts_replace_a_certificate(store: StoreHarness) -> None:
    """Of those that haven't ended."""
    for number in range(3):
        one, _ = a_rollout(1, 1, rollout_id=f"r{number}")
        await store.stores.rollouts.create(one, [an_item(n, 0, f"r{number}") for n in range(number, 3)])
    rollout = await store.stores.rollouts.get("r1")
    assert rollout is not None
    await store.stores.rollouts.save(rollout, words.abort(rollout, "operator-1", "no", START))
    found = await store.stores.rollouts.open_items_of(["c001", "c002", "none"])
    assert sorted((item.rollout_id, item.certificate_id) for item in found) == [
        ("r0", "c001"), ("r0", "c002"), ("r2", "c002"),
    ]  # fmt: skip
    assert await store.stores.rollouts.open_items_of([]) == []


@pytest.mark.parametrize("state", [*ItemState])
@pytest.mark.parametrize("released", [True, False])
async def test_what_hosts_are_told_of_what_they_hold(store: StoreHarness, state: ItemState, released: bool) -> None:
    """Released and not seen in use, however the rollout is; else abandoned, once it has ended or has nothing to do."""
    store.clock.jump(START - store.clock.now())
    rollout, items = a_rollout(1, 1)
    time = START if released else None
    there = [replace(item, state=state, new_certificate_id=f"n{item.ring}", release_time=time) for item in items]
    await store.stores.rollouts.create(rollout, [*there, an_item(7, 1, state=state)])
    used = HostActivation("web000", "n0", "r1")
    told = [used] if released and state in {ItemState.RELEASED, ItemState.SILENT, ItemState.FAILED} else []
    abandoned = [replace(used, abandoned=True)]
    skipped = abandoned if not released and state is ItemState.SKIPPED else []
    assert await store.stores.rollouts.activations_of(["web000", "web007", "web9"]) == (told or skipped)
    await store.stores.rollouts.save(rollout, words.abort(rollout, "operator-1", "no", START))
    held = abandoned if not released and state in {ItemState.HELD, ItemState.FAILED} else []
    assert await store.stores.rollouts.activations_of(["web000"]) == (told or skipped or held)
    store.clock.jump(NOT_AFTER - START)
    assert await store.stores.rollouts.activations_of(["web000"]) == []


async def test_what_was_on_its_way_when_a_rollout_ended_is_abandoned(store: StoreHarness) -> None:
    """Its order brings a certificate all the same, which nobody would release; of others nothing is said."""
    old = await store.issue(identity="web000")
    rollout, (item, *_) = a_rollout(1)
    item = replace(item, certificate_id=old.certificate_id, state=ItemState.REQUESTED, not_after=old.not_after)
    await store.stores.rollouts.create(rollout, [item])
    order = await store.open_order(
        public_key_sha256="key-b", identity="web000", replaces_certificate_id=old.certificate_id
    )
    await store.stores.rollouts.save(rollout, words.abort(rollout, "operator-1", "no", START))
    assert await store.stores.rollouts.activations_of(["web000"]) == []
    new = certificate(order, "new", store.clock.now(), timedelta(days=90))
    await store.stores.orders.finish_order(order, new, [])
    told = [HostActivation("web000", "new", "r1", abandoned=True)]
    assert await store.stores.rollouts.activations_of(["web000", "web001"]) == told


@pytest.mark.parametrize("state", [ItemState.WAITING, ItemState.REQUESTED, ItemState.FAILED, ItemState.SKIPPED])
async def test_what_a_newer_rollout_has_is_not_abandoned_by_the_one_before(
    store: StoreHarness, state: ItemState
) -> None:
    """One is aborted and another one created: a host that heard both would never use what the new one releases."""
    old = await store.issue(identity="web000")
    rollout, (item, *_) = a_rollout(1)
    item = replace(item, certificate_id=old.certificate_id, state=state, not_after=old.not_after)
    await store.stores.rollouts.create(rollout, [item])
    await store.stores.rollouts.save(rollout, words.abort(rollout, "operator-1", "no", START))
    newer, _ = a_rollout(1, rollout_id="r2")
    released = replace(item, rollout_id="r2", state=ItemState.RELEASED, release_time=START, new_certificate_id="new")
    await store.stores.rollouts.create(newer, [released])
    order = await store.open_order(
        public_key_sha256="key-b", identity="web000", replaces_certificate_id=old.certificate_id
    )
    await store.stores.orders.finish_order(order, certificate(order, "new", store.clock.now(), timedelta(days=90)), [])
    assert await store.stores.rollouts.activations_of(["web000"]) == [HostActivation("web000", "new", "r2")]


async def test_what_was_ordered_for_a_rollout_that_has_passed_it_over_is_abandoned(store: StoreHarness) -> None:
    """Its host was denied and is allowed again, say: nobody would release what it holds."""
    old = await store.issue(identity="web000")
    rollout, (item, *_) = a_rollout(1)
    item = replace(item, certificate_id=old.certificate_id, state=ItemState.SKIPPED, not_after=old.not_after)
    await store.stores.rollouts.create(rollout, [item])
    order = await store.open_order(
        public_key_sha256="key-b", identity="web000", replaces_certificate_id=old.certificate_id
    )
    await store.stores.orders.finish_order(order, certificate(order, "new", store.clock.now(), timedelta(days=90)), [])
    told = [HostActivation("web000", "new", "r1", abandoned=True)]
    assert await store.stores.rollouts.activations_of(["web000"]) == told


async def test_all_brokers_are_told(store: StoreHarness) -> None:
    """Of each write of a rollout, and for hosts that have something to activate or to forget."""
    if store.place.kind != "postgresql":
        return
    rollout, items = a_rollout(1, 2)
    await store.stores.rollouts.create(rollout, items)
    held = [replace(item, state=ItemState.HELD, new_certificate_id=f"n-{item.host}") for item in items]
    first = next_of(rollout)
    await store.stores.rollouts.save(rollout, first, held)
    second = next_of(first)
    await store.stores.rollouts.save(first, second, [replace(held[0], state=ItemState.RELEASED)])
    await store.stores.rollouts.save(second, words.abort(second, "operator-1", "no", START))
    told = store.place.query("SELECT kind, key FROM changes ORDER BY writer, number")
    assert [key for kind, key in told if kind == ChangeKind.ROLLOUT] == ["r1"] * 4
    assert [key for kind, key in told if kind == ChangeKind.ACTIVATION] == ["web000", "web001", "web002"]
