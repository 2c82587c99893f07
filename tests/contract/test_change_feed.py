"""What `ChangeFeed` promises, of SQLite and of PostgreSQL: every writer's changes, in order, and nothing missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from typing_extensions import override

from certplane.broker.model import ChangeKind, DenyEntry, IdentityUse, RevocationReason
from certplane.broker.ports import ChangeFollower
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.store.batch import Done
from certplane.broker.store.session import Fault, SqlError
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
from tests.support.stores import StoreHarness
from tests.support.waiting import until, until_in_time

CA = "CN=Example Intermediate CA"
KIND = ChangeKind.DENY_ENTRY


class Follower(ChangeFollower):
    """Notes what it is told, and fails as long as it is asked to."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.rereads: list[datetime] = []
        self.fault: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    @override
    async def changed(self, keys: Collection[str]) -> None:
        self._check()
        await self.gate.wait()
        self.told += keys

    @override
    async def reread(self, since: datetime) -> None:
        self._check()
        self.rereads.append(since)

    def _check(self) -> None:
        if self.fault is not None:
            raise self.fault


Open = Callable[[], AbstractAsyncContextManager[Any]]


@pytest.fixture
def beside(store: StoreHarness) -> Open:
    """Opens the store as another program does."""
    return partial(store.place.open, store.clock, exclusive=False)


@pytest_asyncio.fixture
async def follower(store: StoreHarness) -> AsyncIterator[Follower]:
    """A follower of the deny-list that has been told that there is everything to read."""
    if store.place.kind == "memory":
        pytest.skip("there is no other program")
    follower = Follower()
    store.stores.changes.follow(KIND, follower, what="the test's rows")
    await store.stores.changes.look()
    assert len(follower.rereads) == 1
    yield follower


def use(store: StoreHarness, serial: str) -> IdentityUse:
    return IdentityUse(CA, serial, store.clock.now(), store.clock.now())


async def test_other_writers_changes_are_told_once_each(store: StoreHarness, follower: Follower, beside: Open) -> None:
    """Of two other writers at once, in the order of each; what this program changes itself isn't told."""
    async with beside() as one, beside() as other:

        async def deny(stores: Any, names: list[str]) -> None:
            for name in names:
                await stores.deny_list.deny(DenyEntry(name=name), [])
                await store.stores.changes.look()

        names = [[f"{writer}{number}" for number in range(5)] for writer in "ab"]
        await asyncio.gather(deny(one, names[0]), deny(other, names[1]))
        await store.stores.deny_list.deny(DenyEntry(name="mine"), [])
        await store.stores.changes.look()
        assert len(follower.rereads) == 2, "its own change is read again as a whole"
        assert [[name for name in follower.told if name[0] == writer] for writer in "ab"] == names
        assert len(follower.told) == 10


async def test_each_kind_of_change_is_told_with_its_key(store: StoreHarness, follower: Follower, beside: Open) -> None:
    """Identities by name, entries by name or serial number and issuer, revocations by certificate; nothing else."""
    followers = {KIND: follower}
    for kind in (ChangeKind.IDENTITY, ChangeKind.CERTIFICATE_REVOKED, ChangeKind.PLAN):
        followers[kind] = Follower()
        store.stores.changes.follow(kind, followers[kind], what=kind)
    record, planned = [await store.issue() for _ in range(2)]
    await store.stores.changes.look()
    now = store.clock.now()
    plan = RenewalPlan(planned.certificate_id, planned.identity, now, RenewalCause.OPERATOR)
    async with beside() as other:
        for _ in range(2):  # the second time changes nothing
            await other.deny_list.deny(DenyEntry(name="web1"), [])
            await other.deny_list.deny(DenyEntry(issuer=CA, serial_number="1f"), [])
            await other.identities.activate("web2", use(store, "a1"), [])
        await other.deny_list.allow(DenyEntry(name="web1"), [])
        await other.deny_list.allow(DenyEntry(name="web9"), [])
        await other.certificates.mark_revoked(record.certificate_id, RevocationReason.SUPERSEDED, now, [])
        await other.renewal_plans.set_plans([plan])
        # What its host isn't told is nobody's business.
        await other.renewal_plans.replace_plan(plan, replace(plan, next_check_time=now))
    await store.stores.changes.look()
    assert {kind: sorted(each.told) for kind, each in followers.items()} == {
        ChangeKind.DENY_ENTRY: [f"1f {CA}", "web1"],
        ChangeKind.IDENTITY: ["web2"],
        ChangeKind.CERTIFICATE_REVOKED: [record.certificate_id],
        ChangeKind.PLAN: [planned.certificate_id] if store.place.kind == "postgresql" else [],
    }


async def test_what_is_undone_is_not_told(store: StoreHarness, follower: Follower, beside: Open) -> None:
    """A change whose events can't be written leaves no row, and has drawn no number that would be missed."""
    async with beside() as other:
        with store.audit_broken(), pytest.raises(RefusalError):
            await other.deny_list.deny(DenyEntry(name="undone"), [store.event()])
        await store.stores.changes.look()
        assert (follower.told, len(follower.rereads)) == ([], 1)
        await other.deny_list.deny(DenyEntry(name="done"), [])
        await store.stores.changes.look()
        assert (follower.told, len(follower.rereads)) == (["done"], 1)
        assert store.stores.deny_list.denied("done", "", "")


async def test_of_a_group_what_was_undone_draws_no_number(
    store: StoreHarness, follower: Follower, beside: Open
) -> None:
    """A change that is refused after it has noted something, between others in one transaction."""
    async with beside() as other:
        log = other.deny_list._rows._changes

        def change(name: str, session: Any) -> Done[None]:
            log.add(session, KIND, name)
            if name == "undone":
                raise RefusalError(Reason.KEY_REUSED, "not this one")
            return Done(None)

        names = ("first", "undone", "last")
        writes = (other.writer.write(partial(change, name), ()) for name in names)
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert [isinstance(result, RefusalError) for result in results] == [False, True, False]
        await store.stores.changes.look()
        assert (follower.told, len(follower.rereads)) == (["first", "last"], 1)
        with pytest.raises(RuntimeError, match="no transaction"):
            log.add(other.writer._commit._session, KIND, "nowhere")


async def test_a_gap_in_a_writers_numbers_is_noticed(store: StoreHarness, follower: Follower, beside: Open) -> None:
    """Whatever has left it: everything is read again."""
    async with beside() as other:
        for name in ("web1", "web2", "web3"):
            await other.deny_list.deny(DenyEntry(name=name), [])
        store.place.execute("DELETE FROM changes WHERE number = 2")
        await store.stores.changes.look()
        assert (follower.told, len(follower.rereads)) == ([], 2)


async def test_a_transaction_says_once_what_it_has_changed(
    store: StoreHarness, follower: Follower, beside: Open
) -> None:
    """However often it did, and however much it is: more than are read at a time."""
    keys = [f"key-{number:05d}" for number in range(2500)]
    async with beside() as other:
        log = other.deny_list._rows._changes

        def change(session: Any) -> Done[None]:
            for key in (*keys, *keys[:100]):
                log.add(session, KIND, key)
            return Done(None)

        await other.writer.write(change, ())
        await store.stores.changes.look()
        assert (follower.told, len(follower.rereads)) == (keys, 1)
        assert store.place.query("SELECT count(*), max(number) FROM changes") == [(2500, 2500)]


async def test_a_slow_follower_holds_up_none_that_decides_about_callers(
    store: StoreHarness, follower: Follower, beside: Open
) -> None:
    """The deny-list hears of the next entry meanwhile; the slow one hears of both."""
    await until(lambda: store.clock.sleepers)

    def denied(name: str) -> bool:
        store.clock.advance(timedelta(milliseconds=250))
        return store.stores.deny_list.denied(name, "", "") is not None

    async with beside() as other:
        follower.gate.clear()
        for name in ("web1", "web2"):
            await other.deny_list.deny(DenyEntry(name=name), [])
            await until(lambda name=name: denied(name), what="the entry")
        assert follower.told == []
        follower.gate.set()
        await until(lambda: denied("web2") and follower.told == ["web1", "web2"], what="what had waited")
        assert len(follower.rereads) == 1


async def test_a_follower_that_fails_misses_nothing(
    store: StoreHarness, follower: Follower, beside: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told again, of what comes meanwhile too; the log has one line, and the others are told as ever."""
    follower.fault = RefusalError(Reason.STORE_UNAVAILABLE, "down")
    async with beside() as other:
        for name in ("web1", "web2"):
            await other.deny_list.deny(DenyEntry(name=name), [])
            await store.stores.changes.look()
            assert store.stores.deny_list.denied(name, "", "")
    assert follower.told == []
    assert caplog.text.count("could not read the test's rows; what was read last stays in force; will retry") == 1
    assert store.stores.ready(), "it isn't vital"
    follower.fault = None
    await store.stores.changes.look()
    assert follower.told == ["web1", "web2"]
    await store.stores.changes.look()
    assert follower.told == ["web1", "web2"]


async def test_what_a_start_can_not_do_without_is_read_or_raised(store: StoreHarness, follower: Follower) -> None:
    """A broker must not serve by plans that are none only in memory."""
    await store.stores.changes.read_first(KIND)
    assert len(follower.rereads) == 2
    follower.fault = RefusalError(Reason.STORE_UNAVAILABLE, "down")
    with pytest.raises(RefusalError, match="down"):
        await store.stores.changes.read_first(KIND)


async def test_a_late_reader_reads_everything_since_its_last_look(
    store: StoreHarness, follower: Follower, beside: Open
) -> None:
    """After a pause so long that rows may have been removed unread; and after a failure it goes back to before it."""
    await until(lambda: store.clock.sleepers)
    last = store.clock.now()
    follower.fault = ValueError("not now")
    store.clock.advance(timedelta(minutes=31))
    await store.stores.changes.look()
    follower.fault = None
    await store.stores.changes.look()
    assert follower.rereads[1:] == [last]


async def test_old_rows_are_removed(store: StoreHarness, follower: Follower, beside: Open) -> None:
    """After an hour, by the one broker that does so; a writer that goes on after it is still followed without a gap."""
    async with beside() as other:
        await other.deny_list.deny(DenyEntry(name="old"), [])
        await store.stores.changes.look()
        for _ in range(3):
            store.clock.advance(timedelta(minutes=25))
            await store.stores.changes.look()

        def rows() -> int:
            return int(store.place.query("SELECT count(*) FROM changes")[0][0])

        store.stores.changes.removes = lambda: False
        await store.stores.changes._remove_old()
        assert rows() > 0
        store.stores.changes.removes = lambda: True

        async def removed() -> bool:
            store.clock.advance(timedelta(minutes=1))
            return rows() == 0

        await until(removed)
        rereads = len(follower.rereads)
        await other.deny_list.deny(DenyEntry(name="new"), [])
        await store.stores.changes.look()
        assert (follower.told, len(follower.rereads)) == (["old", "new"], rereads)


@pytest.mark.parametrize("left", [0, 1])
async def test_what_a_restored_database_has_lost_is_read_again(
    store: StoreHarness, follower: Follower, beside: Open, left: int
) -> None:
    """A standby that took over without the last transactions: an entry that isn't there is in force no longer, once."""
    async with beside() as other:
        for name in ("web1", "web2"):
            await other.deny_list.deny(DenyEntry(name=name), [])
        await store.stores.changes.look()
        assert store.stores.deny_list.denied("web2", "", "")
        store.place.execute("DELETE FROM deny_entries WHERE name = 'web2'")
        store.place.execute(f"DELETE FROM changes WHERE number > {left}")  # noqa: S608 - a number
        await store.stores.changes.look()
        assert store.stores.deny_list.denied("web2", "", "") is None
        assert store.stores.deny_list.denied("web1", "", "")
        rereads = len(follower.rereads)
        async with beside() as another:
            await another.deny_list.deny(DenyEntry(name="web3"), [])
            await store.stores.changes.look()
        assert len(follower.rereads) == rereads
        assert store.stores.deny_list.denied("web3", "", "")


async def test_after_a_look_that_failed_everything_is_read_again(
    store: StoreHarness, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what the server went through meanwhile; the broker isn't ready until it was looked at."""
    changes = store.stores.changes

    async def fail(*_: object) -> None:
        raise SqlError(Fault.LOST, "the server went away")

    with monkeypatch.context() as patch:
        patch.setattr(changes._database, "one", fail)
        await changes.look()
        assert not store.stores.ready()
    store.place.execute(
        "INSERT INTO deny_entries (name, issuer, serial_number, reason, create_time) VALUES ('web1', '', '', '', 0)"
    )
    rereads = len(follower.rereads)
    await changes.look()
    assert store.stores.ready()
    assert len(follower.rereads) == rereads + 1
    assert store.stores.deny_list.denied("web1", "", "")


async def test_a_change_is_told_within_half_a_second(store: StoreHarness, follower: Follower, beside: Open) -> None:
    """By the looks that the broker makes by itself."""
    async with beside() as other:
        await other.deny_list.deny(DenyEntry(name="web1"), [])
        await until_in_time(store.clock, lambda: follower.told, what="the change")
        await until(lambda: store.clock.next_wake, what="the pause")
        assert store.clock.next_wake <= timedelta(milliseconds=500)
