"""The store as a whole: lost answers, switched-off auditing, readiness, the write-ahead log's size."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from certplane.broker import metrics
from certplane.broker.events import AuditTrail
from certplane.broker.identity.activation import FirstUse
from certplane.broker.model import DenyEntry, OrderState, RevocationReason
from certplane.broker.ports import OrderChange
from certplane.broker.store import checkpoint
from certplane.broker.store.session import Fault, SqlError
from certplane.errors import OperationError, Reason, RefusalError
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.support.callers import caller
from tests.support.stores import NO_LIMITS, StoreHarness, StorePlace, certificate, draft
from tests.support.waiting import until


@pytest.fixture
def sqlite_place(tmp_path: Path) -> StorePlace:
    return StorePlace("sqlite", tmp_path / "broker.db")


@pytest_asyncio.fixture
async def sqlite_store(sqlite_place: StorePlace) -> AsyncIterator[StoreHarness]:
    clock = ManualClock()
    async with sqlite_place.open(clock) as stores:
        yield StoreHarness(sqlite_place, clock, stores)


@contextlib.contextmanager
def answer_lost(store: StoreHarness) -> Iterator[None]:
    """The next commit is made, and the writer doesn't learn of it, as when a server goes away just then."""
    session: Any = store.stores.writer._commit._session
    commit = session.commit

    def lose() -> None:
        session.commit = commit
        commit()
        raise SqlError(Fault.LOST, "the connection was lost")

    session.commit = lose
    yield
    assert session.commit == commit


async def test_lost_answers_are_found_again(sqlite_store: StoreHarness) -> None:
    """Each kind of write, committed without being told, succeeds once and is audited once when it is tried again."""
    store, stores = sqlite_store, sqlite_store.stores
    with answer_lost(store):
        opened = await stores.orders.open_order(draft(), NO_LIMITS, [store.event()])
    assert opened.created
    with answer_lost(store):
        change = OrderChange(state=OrderState.FINALIZING, acme_order_url="x")
        assert (await stores.orders.change_order(opened.order, change, [store.event()])).acme_order_url == "x"
    record = certificate(opened.order, "certificate-000001", store.clock.now(), timedelta(days=90))
    with answer_lost(store):
        assert (await stores.orders.finish_order(opened.order, record, [store.event()])).state is OrderState.ISSUED
    with answer_lost(store):
        await stores.certificates.mark_delivered(record.certificate_id, store.clock.now(), [store.event()])
    with answer_lost(store):
        revoked = await stores.certificates.mark_revoked(
            record.certificate_id, RevocationReason.KEY_COMPROMISE, store.clock.now(), [store.event()]
        )
    assert revoked.revoke_time == store.clock.now()
    entry = DenyEntry(name="web1")
    with answer_lost(store):
        await stores.deny_list.deny(entry, [store.event()])
    with answer_lost(store):
        assert await stores.deny_list.allow(entry, [store.event()])
    assert await store.event_ids() == [f"event-{number:06d}" for number in range(1, 8)]
    failed = await store.open_order(public_key_sha256="key-b")
    with answer_lost(store):
        ended = await stores.orders.change_order(failed, OrderChange(state=OrderState.FAILED))
    assert ended.state is OrderState.FAILED
    assert await stores.orders.unfinished_orders() == []


async def test_orders_that_were_taken_without_an_answer_are_run(sqlite_store: StoreHarness) -> None:
    """The second try finds nothing left, and tells what the first one has taken: nobody else would run it."""
    store, orders = sqlite_store, sqlite_store.stores.orders
    opened = [await store.open_order(public_key_sha256=key) for key in ("key-a", "key-b")]
    await orders.give_back_orders()
    with answer_lost(store):
        taken = await orders.take_orders(10)
    assert {order.order_id for order in taken} == {order.order_id for order in opened}
    assert [await orders.get_order(order.order_id) for order in taken] == taken
    assert await orders.take_orders(10) == []


async def test_with_auditing_switched_off_no_event_is_written(sqlite_place: StorePlace) -> None:
    """Changes are made, the log stays as it is, and nothing is spilled."""
    clock = ManualClock()
    async with sqlite_place.open(clock, audit=None) as stores:
        store = StoreHarness(sqlite_place, clock, stores)
        await stores.audit.append([store.event()])
        assert (await stores.orders.open_order(draft(), NO_LIMITS, [store.event()])).created
        assert await store.event_ids() == []
    assert not sqlite_place.spill_path.exists()


async def test_records_are_imported_once(sqlite_store: StoreHarness) -> None:
    """What the log has is passed over, what it lacks is added, in their order."""
    store = sqlite_store
    await store.stores.audit.append([store.event()])
    records = [f'{{"event_id":"event-{number:06d}","timestamp":"2026-11-23T12:00:00.000000Z"}}' for number in (1, 2, 3)]
    assert await store.stores.audit.import_records(records) == 2
    assert await store.stores.audit.import_records(records) == 0
    assert await store.event_ids() == ["event-000001", "event-000002", "event-000003"]


async def test_a_sound_store_is_ready_and_times_its_groups(sqlite_place: StorePlace) -> None:
    """Until the writer or the deny-list fails."""
    meter = FakeMeter()
    clock = ManualClock()
    async with sqlite_place.open(clock, meter=meter) as stores:
        store = StoreHarness(sqlite_place, clock, stores)
        await stores.audit.append([store.event()])
        assert stores.ready()
        stores.writer._commit.broken = "a sync failed"
        assert not stores.ready()
    assert meter.spans[metrics.STORE_GROUP]


async def test_a_deny_list_that_can_not_be_read_stays_in_force(
    sqlite_store: StoreHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is let in because the database is away; readiness says so, and comes back with it."""
    deny_list = sqlite_store.stores.deny_list
    await deny_list.deny(DenyEntry(name="web1"), [])
    with monkeypatch.context() as patch:

        async def away(*_: Any) -> None:
            raise SqlError(Fault.OTHER, "disk I/O error")

        for read in ("one", "all"):
            patch.setattr(deny_list._database, read, away)
        await sqlite_store.stores.changes.look()
        await sqlite_store.stores.changes.look()
        assert deny_list.denied("web1", "", "")
        assert not sqlite_store.stores.ready()
    assert caplog.text.count("stays in force") == 1
    await sqlite_store.stores.changes.look()
    assert sqlite_store.stores.ready()


async def test_reads_that_fail_are_unavailable(sqlite_store: StoreHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """STORE_UNAVAILABLE with a time to come back, never a driver's exception."""
    stores = sqlite_store.stores
    monkeypatch.setattr(stores.orders, "_by_id", stores.orders._by_id.__class__("SELECT nonsense", (), {}))
    with pytest.raises(RefusalError) as caught:
        await stores.orders.get_order("x")
    assert caught.value.refusal.reason is Reason.STORE_UNAVAILABLE
    assert caught.value.refusal.retry_after


def open_files() -> list[str]:
    return [str(link.resolve()) for link in Path("/proc/self/fd").iterdir() if link.exists()]


# The write-ahead log


def log_size(place: StorePlace) -> int:
    return place.path.with_name("broker.db-wal").stat().st_size


@pytest.fixture
def small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_DUE_PAGES", 256)  # 1 MiB
    monkeypatch.setattr(checkpoint, "_LARGE_PAGES", 1024)


@pytest.mark.usefixtures("small_log")
async def test_the_log_does_not_grow_with_what_is_written(sqlite_place: StorePlace) -> None:
    """Under writing that never pauses the log is started over again and again."""
    async with sqlite_place.open(ManualClock()) as stores:
        store = StoreHarness(sqlite_place, ManualClock(), stores)
        sizes = []

        async def caller() -> None:
            for _ in range(60):
                await stores.audit.append([store.event(reason="x" * 20_000)])
                sizes.append(log_size(sqlite_place))

        await asyncio.gather(*(caller() for _ in range(16)))  # 20 MB
        assert max(sizes) < 10 << 20
        database = sqlite_place.path.stat().st_size
    assert database > 10 << 20


async def test_an_idle_log_is_copied_into_the_database(
    sqlite_place: StorePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon after the last commit the file alone holds everything."""
    monkeypatch.setattr(checkpoint, "_IDLE", timedelta(milliseconds=20))
    async with sqlite_place.open(ManualClock()) as stores:
        store = StoreHarness(sqlite_place, ManualClock(), stores)
        await stores.audit.append([store.event(reason="findme")])

        async def copied() -> bool:
            # By another process: closing the file in this one would drop SQLite's locks on it.
            looking = await asyncio.create_subprocess_exec("grep", "-q", "findme", sqlite_place.path)
            return await looking.wait() == 0

        await until(copied, what="the copy into the file")


@pytest.mark.usefixtures("small_log")
async def test_a_reader_that_holds_the_log_is_told(sqlite_place: StorePlace, caplog: pytest.LogCaptureFixture) -> None:
    """The log must grow then; commits go on, and the log file says why."""
    async with sqlite_place.open(ManualClock()) as stores:
        store = StoreHarness(sqlite_place, ManualClock(), stores)
        await stores.audit.append([store.event()])
        with contextlib.closing(sqlite3.connect(sqlite_place.path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM audit_events").fetchall()
            for _ in range(80):
                await stores.audit.append([store.event(reason="x" * 100_000)])

            async def told() -> bool:
                await stores.audit.append([store.event(reason="x" * 10_000)])
                return "a reader prevents its truncation" in caplog.text

            await until(told)
        assert caplog.text.count("a reader prevents its truncation") == 1
        assert len(await store.event_ids()) > 80


async def test_nothing_of_a_closed_store_is_left(sqlite_place: StorePlace) -> None:
    """No thread, no open file."""
    async with sqlite_place.open(ManualClock()) as stores:
        await stores.audit.tail(1)
        assert {thread.name for thread in threading.enumerate()} >= {"store-writer", "store-checkpoint"}
    await until(lambda: not [each for each in threading.enumerate() if each.name.startswith(("store", "audit"))])
    assert not [name for name in open_files() if name.startswith(str(sqlite_place.path))]


async def test_a_failed_sync_of_the_database_stops_the_store_and_keeps_the_log(
    sqlite_place: StorePlace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Pages may be lost that SQLite takes for copied: writes are refused, and the log is left for the next start."""

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint, "_IDLE", timedelta(milliseconds=20))
    async with sqlite_place.open(ManualClock()) as stores:
        store = StoreHarness(sqlite_place, ManualClock(), stores)
        with monkeypatch.context() as patch:
            patch.setattr("os.fdatasync", fail)
            await stores.audit.append([store.event()])
            await until(lambda: not stores.ready())
        with pytest.raises(RefusalError) as caught:
            await stores.audit.append([store.event()])
        assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
    assert "can't be synced" in caplog.text
    assert log_size(sqlite_place) > 0
    async with sqlite_place.open(ManualClock()) as stores:
        assert await StoreHarness(sqlite_place, ManualClock(), stores).event_ids() == ["event-000001"]


@pytest.mark.parametrize(
    ("damage", "kind", "repair"),
    [
        pytest.param(
            "INSERT INTO deny_entries (name, issuer, serial_number, reason, create_time)"
            " VALUES ('web8.example', '', '', '', 9000000000000000000)",
            "deny_entry",
            "DELETE FROM deny_entries WHERE name = 'web8.example'",
            id="deny-list",
        ),
        pytest.param(
            "INSERT INTO identities VALUES ('web8.example', 'CN=ca', '1f', 0, 0, '', 0, '{', NULL, 0, NULL, 1)",
            "identity",
            "DELETE FROM identities WHERE name = 'web8.example'",
            id="identities",
        ),
    ],
)
async def test_a_row_that_cannot_be_read_ends_no_looking(
    sqlite_store: StoreHarness, damage: str, kind: str, repair: str
) -> None:
    """The store isn't ready meanwhile, and what is denied by a command later on is seen all the same."""
    store, stores = sqlite_store, sqlite_store.stores

    numbers = itertools.count(1)

    def change(statement: str, kind: str = "") -> None:
        """As another program does: with a row in the change feed."""
        with contextlib.closing(sqlite3.connect(store.place.path)) as beside, beside:
            beside.execute(statement)
            row = (next(numbers), kind, "web8.example")
            beside.execute("INSERT INTO changes VALUES ('another', ?, ?, ?, 0)", row)

    async def pass_until(condition: Callable[[], object]) -> None:
        def passed() -> object:
            if found := condition():
                return found
            store.clock.advance(timedelta(seconds=1))
            return None

        await until(passed)

    change(damage, kind)
    await pass_until(lambda: not stores.ready())
    change(repair)
    await pass_until(stores.ready)
    change("INSERT INTO deny_entries VALUES (7, 'web9.example', '', '', '', 0)", "deny_entry")
    await pass_until(lambda: stores.deny_list.denied("web9.example", "", ""))


async def test_who_has_a_row_that_cannot_be_read_does_not_pass_for_new(
    sqlite_place: StorePlace, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller is told to come back and whom to tell, the log has the name; the row stays, and the others are known."""
    async with sqlite_place.open(ManualClock()):
        pass
    sqlite_place.execute(
        "INSERT INTO identities VALUES ('web7.example', 'CN=ca', '1f', 0, 0, '', 0, NULL, NULL, 0, NULL, 1);"
        "INSERT INTO identities SELECT 'web8.example', issuer, serial_number, 9000000000000000000, activate_time, "
        "source_ip, newest_not_before, retired, contest, displaced_count, displace_time, change_sequence FROM identities"
    )
    clock = ManualClock()
    async with sqlite_place.open(clock) as stores:
        first_use = FirstUse(ledger=stores.identities, clock=clock, trail=AuditTrail(clock))
        for _ in range(2):
            with pytest.raises(RefusalError, match="an operator of the broker has to mend the database") as caught:
                first_use.begin(caller(name="web8.example"), str)
            assert caught.value.refusal.reason is Reason.STORE_UNAVAILABLE
        assert stores.identities.known("web7.example") is not None
        assert await stores.audit.tail(10) == []
    assert len(sqlite_place.query("SELECT 1 FROM identities WHERE not_before = 9000000000000000000")) == 1
    (line, _again) = [record for record in caplog.records if "row of an identity" in record.getMessage()]
    assert getattr(line, "fields", None) == {"name": "web8.example"}


async def test_a_start_refuses_an_identity_that_cannot_be_read(
    sqlite_place: StorePlace, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever starts the broker learns of it, and of which, not the host that calls a week later."""
    async with sqlite_place.open(ManualClock()):
        pass
    sqlite_place.execute(
        "INSERT INTO identities VALUES ('web8.example', 'CN=ca', '1f', 0, 0, '', 0, '[', NULL, 0, NULL, 1)"
    )
    with pytest.raises(OperationError, match="identities can't be read"):
        async with sqlite_place.open(ManualClock()):
            pass
    assert "the row of web8.example can't be read" in caplog.text
