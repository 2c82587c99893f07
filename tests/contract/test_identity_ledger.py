"""What `IdentityLedger` promises, asked of the fake, of SQLite and of PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from certplane.broker.events import AuditEventType
from certplane.broker.identity.first_use import GRACE, settle
from certplane.broker.model import DenyEntry, IdentityUse, KnownIdentity
from certplane.errors import Reason, RefusalError
from tests.support.stores import StoreHarness
from tests.support.waiting import until_in_time

NAME = "web1.example"
CA = "CN=Example Intermediate CA"


def use(store: StoreHarness, serial: str, *, age: timedelta = timedelta()) -> IdentityUse:
    """A use, now, of a certificate that is `age` old."""
    now = store.clock.now()
    return IdentityUse(CA, serial, now - age, now, "192.0.2.7")


async def activate(store: StoreHarness, presented: IdentityUse, name: str = NAME) -> KnownIdentity:
    known: KnownIdentity = await store.stores.identities.activate(
        name, presented, [store.event(AuditEventType.IDENTITY_ACTIVATED)]
    )
    return known


async def contest(store: StoreHarness, presented: IdentityUse) -> KnownIdentity:
    known: KnownIdentity = await store.stores.identities.contest(
        NAME, presented, [store.event(AuditEventType.IDENTITY_CONTESTED)]
    )
    return known


async def contested(store: StoreHarness) -> KnownIdentity:
    """An identity with a retired certificate `a1`, an active one `b2`, and a contest."""
    first = use(store, "a1")
    await activate(store, first)
    store.clock.advance(timedelta(hours=1))
    await activate(store, use(store, "b2"))
    store.clock.advance(GRACE)
    return await contest(store, replace(first, time=store.clock.now(), source_ip="192.0.2.8"))


async def test_nobody_is_known_at_first(store: StoreHarness) -> None:
    """No row, no identity."""
    assert store.stores.identities.known(NAME) is None
    assert list(await store.stores.identities.identities()) == []


async def test_an_activation_is_known_at_once_and_recorded_once(store: StoreHarness) -> None:
    """Memory has it when the write returns; the same certificate again writes nothing."""
    first = use(store, "a1")
    known = await activate(store, first)
    assert known == KnownIdentity(NAME, first, first.not_before)
    assert store.stores.identities.known(NAME) == known
    assert await activate(store, replace(first, source_ip="192.0.2.9")) == known
    assert await store.event_ids() == ["event-000001"]


async def test_calls_at_once_make_one_activation(store: StoreHarness) -> None:
    """Ten first calls of one certificate: one event, and every caller learns the same."""
    first = use(store, "a1")
    answers = await asyncio.gather(*(activate(store, first) for _ in range(10)))
    assert set(answers) == {KnownIdentity(NAME, first, first.not_before)}
    assert len(await store.event_ids()) == 1


async def test_the_slower_of_two_new_certificates_learns_that_it_is_retired(store: StoreHarness) -> None:
    """Activated in the order of their writes, whichever is newer: the older one of them finds itself too late."""
    older, newer = use(store, "a1", age=timedelta(hours=1)), use(store, "b2")
    answers = await asyncio.gather(activate(store, newer), activate(store, older))
    assert [known.active.serial_number for known in answers] == ["b2", "b2"]
    assert len(await store.event_ids()) == 1


async def test_a_newer_certificate_retires_the_active_one(store: StoreHarness) -> None:
    """With the time at which it was retired."""
    first = use(store, "a1")
    await activate(store, first)
    store.clock.advance(timedelta(hours=1))
    second = use(store, "b2")
    known = await activate(store, second)
    assert known == KnownIdentity(NAME, second, second.not_before, (replace(first, time=second.time),))
    assert store.stores.identities.known(NAME) == known


async def test_a_contest_is_recorded_once(store: StoreHarness) -> None:
    """The use that made it is kept, with its address; later ones add nothing."""
    known = await contested(store)
    assert known.contest is not None
    assert (known.contest.serial_number, known.contest.source_ip) == ("a1", "192.0.2.8")
    assert store.stores.identities.known(NAME) == known
    store.clock.advance(timedelta(minutes=1))
    assert await contest(store, replace(known.contest, time=store.clock.now())) == known
    assert len(await store.event_ids()) == 3


async def test_a_use_in_its_grace_contests_nothing(store: StoreHarness) -> None:
    """The rule is asked again inside the transaction, whatever the caller thought."""
    first = use(store, "a1")
    await activate(store, first)
    store.clock.advance(timedelta(hours=1))
    await activate(store, use(store, "b2"))
    assert (await contest(store, replace(first, time=store.clock.now()))).contest is None
    assert len(await store.event_ids()) == 2


async def test_displacements_are_counted(store: StoreHarness) -> None:
    """For an identity that is known; they change nothing else, and are no events."""
    known = await activate(store, use(store, "a1"))
    for _ in range(3):
        store.clock.advance(timedelta(minutes=1))
        await store.stores.identities.count_displacement(NAME, store.clock.now())
    counted = replace(known, displaced_count=3, displace_time=store.clock.now())
    assert store.stores.identities.known(NAME) == counted
    await store.stores.identities.count_displacement("nobody.example", store.clock.now())
    assert list(await store.stores.identities.identities()) == [counted]
    assert len(await store.event_ids()) == 1


async def test_settling_changes_identity_and_deny_list_together(store: StoreHarness) -> None:
    """What was denied before and is kept is let in, what isn't kept is shut out; counts stay."""
    known = await contested(store)
    await store.stores.deny_list.deny(DenyEntry(issuer=CA, serial_number="a1"), [])
    await store.stores.identities.count_displacement(NAME, store.clock.now())
    settlement = settle(known, (CA, "a1"), store.clock.now())
    assert settlement is not None
    allowed = [DenyEntry(issuer=CA, serial_number="a1")]
    events = [store.event(AuditEventType.IDENTITY_ALLOWED), store.event(AuditEventType.IDENTITY_DENIED)]
    assert await store.stores.identities.settle(known, settlement.known, settlement.denied, allowed, events)
    (now_known,) = await store.stores.identities.identities()
    assert (now_known.active.serial_number, now_known.contest, now_known.displaced_count) == ("a1", None, 1)
    assert store.stores.identities.known(NAME) == now_known
    assert list(await store.stores.deny_list.entries()) == list(settlement.denied)
    assert [entry.serial_number for entry in settlement.denied] == ["b2"]
    assert len(await store.event_ids()) == 5


async def test_settling_what_has_changed_meanwhile_changes_nothing(store: StoreHarness) -> None:
    """An operator decides about what was seen: a certificate that came since is for another look."""
    known = await contested(store)
    settlement = settle(known, (CA, "b2"), store.clock.now())
    assert settlement is not None
    newer = await activate(store, use(store, "c3"))
    assert not await store.stores.identities.settle(
        known, settlement.known, settlement.denied, [], [store.event(AuditEventType.IDENTITY_ALLOWED)]
    )
    assert list(await store.stores.identities.identities()) == [newer]
    assert list(await store.stores.deny_list.entries()) == []
    assert len(await store.event_ids()) == 4


async def test_identities_are_listed_by_name(store: StoreHarness) -> None:
    """All of them, whatever came first."""
    for name in ("c.example", "a.example", "b.example"):
        await activate(store, use(store, "a1"), name)
    names = [known.name for known in await store.stores.identities.identities()]
    assert names == ["a.example", "b.example", "c.example"]


async def test_what_can_not_be_audited_does_not_happen(store: StoreHarness) -> None:
    """`fail_closed`: the certificate stays unseen, and the next call tries again."""
    with store.audit_broken(), pytest.raises(RefusalError) as caught:
        await activate(store, use(store, "a1"))
    assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
    assert store.stores.identities.known(NAME) is None
    assert (await activate(store, use(store, "a1"))).active.serial_number == "a1"


@pytest.mark.parametrize("failure_mode", ["fail_open"])
async def test_what_can_not_be_audited_happens_under_fail_open(store: StoreHarness) -> None:
    """The activation is durable; its event is in the spill file."""
    with store.audit_broken():
        await activate(store, use(store, "a1"))
    assert [known.name for known in await store.stores.identities.identities()] == [NAME]
    assert await store.event_ids() == []


async def test_another_process_s_change_is_seen(store: StoreHarness) -> None:
    """Another broker, or a command, writes; this one's memory follows, and its own writes know of it at once."""
    if store.place.kind == "memory":
        pytest.skip("there is no other process")

    def is_known(serial_number: str) -> bool:
        known = store.stores.identities.known(NAME)
        return known is not None and known.active.serial_number == serial_number

    async def until_known(serial_number: str) -> None:
        await until_in_time(store.clock, lambda: is_known(serial_number), what="the change")

    async with store.place.open(store.clock, exclusive=False) as other:
        await other.identities.activate(NAME, use(store, "a1"), [])
        await until_known("a1")
        await other.identities.activate(NAME, use(store, "b2"), [])
        # Not looked yet: what is in memory is old, what is written is decided about the row.
        known = await activate(store, use(store, "a1", age=timedelta(hours=1)))
        assert known.active.serial_number == "b2"
        await other.identities.activate(NAME, use(store, "c3"), [])
        await until_known("c3")
        assert await store.event_ids() == []


async def test_two_writers_miss_nothing_of_each_other(store: StoreHarness) -> None:
    """Two brokers activate for the same hosts at once, a third one follows: in the end all three know the same."""
    if store.place.kind == "memory":
        pytest.skip("there is no other process")
    names = [f"web{number}.example" for number in range(40)]
    patient = {"exclusive": False, "busy_timeout": timedelta(seconds=10)}
    async with store.place.open(store.clock, **patient) as one, store.place.open(store.clock, **patient) as other:
        writers = ((one.identities, "a1"), (other.identities, "b2"))
        for some in range(0, len(names), 4):  # several groups, with looks between and during them
            await asyncio.gather(
                *(
                    ledger.activate(name, use(store, serial_number), [store.event()])
                    for name in names[some : some + 4]
                    for ledger, serial_number in writers
                ),
                *(store.stores.changes.look() for _ in range(3)),
            )
        durable = list(await one.identities.identities())
        assert [known.name for known in durable] == sorted(names)
        assert {len(known.retired) for known in durable} == {1}  # equally old: the second came into use too
        for stores in (one, other, store.stores):
            await stores.changes.look()
            assert [stores.identities.known(known.name) for known in durable] == durable
    assert len(await store.event_ids()) == 2 * len(names)


async def test_a_start_knows_what_the_run_before_knew(store: StoreHarness) -> None:
    """All of it, contests and counts included."""
    if store.place.kind == "memory":
        pytest.skip("the fake's database has no other opening")
    await contested(store)
    await store.stores.identities.count_displacement(NAME, store.clock.now())
    async with store.place.open(store.clock, exclusive=False) as other:
        assert other.identities.known(NAME) == store.stores.identities.known(NAME)


async def test_who_is_settled_is_told_of(store: StoreHarness) -> None:
    """So that its holder asks again for what it was refused; a contest is no such news, nor an activation."""
    told: list[str] = []
    ledger = getattr(store.stores.identities, "_store", store.stores.identities)
    ledger.on_settled = lambda: told.append(NAME)
    known = await contested(store)
    assert told == []
    settlement = settle(known, (CA, "b2"), store.clock.now())
    assert settlement is not None
    event = store.event(AuditEventType.IDENTITY_ALLOWED)
    assert await store.stores.identities.settle(known, settlement.known, settlement.denied, (), [event])
    assert told == [NAME]
