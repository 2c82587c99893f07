"""The store under real faults: a full disk, a lock, a corrupt file, a second broker, a kill, a lost server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from certplane.broker.audit import SpillFallback, import_spill
from certplane.broker.ports import DurableLimits, OrderChange
from certplane.broker.store import files, postgresql
from certplane.broker.store.limits import LimitCheck
from certplane.errors import CertplaneError, ConfigurationError, OperationError, Reason, RefusalError
from tests.fakes.clock import ManualClock
from tests.support.old_data import make_sqlite
from tests.support.stores import IMPATIENT, NO_LIMITS, StoreHarness, StorePlace, draft
from tests.support.waiting import until

pytestmark = pytest.mark.integration

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def sqlite_place(tmp_path: Path) -> StorePlace:
    return StorePlace("sqlite", tmp_path / "broker.db")


async def refusal_of(waiting: Any) -> Reason:
    with pytest.raises(RefusalError) as caught:
        await waiting
    assert caught.value.refusal.retry_after is not None
    return caught.value.refusal.reason


# Row 17: the disk is full


class SmallDisk:
    """A tmpfs of one megabyte that holds the database; what it has left is a matter of its ballast."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def leave(self, free: int) -> None:
        """Fill all but `free` bytes."""
        self._ballast.unlink(missing_ok=True)
        status = os.statvfs(self.folder)
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            file.write(b"\0" * max(0, status.f_bavail * status.f_bsize - free))

    def make_read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    yield SmallDisk(folder)
    subprocess.run(["umount", folder], check=True)


@pytest_asyncio.fixture
async def on_small_disk(small_disk: SmallDisk, tmp_path: Path, failure_mode: Any) -> AsyncIterator[StoreHarness]:
    clock = ManualClock()
    place = StorePlace("sqlite", small_disk.folder / "broker.db")
    fallback = SpillFallback(failure_mode, tmp_path / "spill.jsonl")
    async with place.open(clock, audit=fallback) as stores:
        yield StoreHarness(place, clock, stores)


async def test_full_disk_refuses_issuance_and_reads_go_on(on_small_disk: StoreHarness, small_disk: SmallDisk) -> None:
    """Row 17, fail_closed: nothing is written, nothing is lost, what is stored is still read; with room all is well."""
    store = on_small_disk
    record = await store.issue(key="key-a")
    await store.stores.audit.append([store.event()])
    small_disk.leave(0)
    big = "x" * 20 * PAGE
    assert await refusal_of(store.stores.audit.append([store.event(reason=big)])) is Reason.AUDIT_UNAVAILABLE
    many = [store.stores.audit.append([store.event(reason=big)]) for _ in range(10)]
    refused = await asyncio.gather(*many, return_exceptions=True)
    assert {error.refusal.reason for error in refused if isinstance(error, RefusalError)} == {Reason.AUDIT_UNAVAILABLE}
    opening = store.stores.orders.open_order(draft(public_key_sha256="key-b"), NO_LIMITS, [store.event(reason=big)])
    assert await refusal_of(opening) in {Reason.AUDIT_UNAVAILABLE, Reason.STORE_UNAVAILABLE}
    assert await store.stores.certificates.get_certificate(record.certificate_id) == record
    assert await store.event_ids() == ["event-000002"]
    assert await store.stores.orders.unfinished_orders() == []
    small_disk.make_room()
    await store.stores.audit.append([store.event()])
    assert (await store.stores.orders.open_order(draft(public_key_sha256="key-b"), NO_LIMITS, [])).created
    assert store.stores.ready()


@pytest.mark.parametrize("failure_mode", ["fail_open"])
async def test_full_disk_spills_events_and_keeps_orders(
    on_small_disk: StoreHarness, small_disk: SmallDisk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Row 17, fail_open: the order is durable without its events, which are logged, spilled, and imported once later."""
    store = on_small_disk
    await store.open_order(public_key_sha256="key-a")
    small_disk.leave(30 * PAGE)
    big = "x" * 60 * PAGE
    await store.stores.audit.append([store.event(reason=big)])
    opened = await store.stores.orders.open_order(
        draft(public_key_sha256="key-b"), NO_LIMITS, [store.event(reason=big), store.event()]
    )
    assert opened.created
    assert await store.stores.orders.get_order(opened.order.order_id) == opened.order
    assert await store.event_ids() == []
    spilled = [json.loads(line)["event_id"] for line in (tmp_path / "spill.jsonl").read_text().splitlines()]
    assert spilled == ["event-000001", "event-000002", "event-000003"]
    assert sum(record.name == "certplane.audit" for record in caplog.records) == 3
    small_disk.make_room()
    assert await import_spill(tmp_path / "spill.jsonl", store.stores.audit, store.clock) == 3
    assert await store.event_ids() == spilled
    assert await import_spill(tmp_path / "spill.jsonl", store.stores.audit, store.clock) == 0


@pytest.mark.parametrize("failure_mode", ["fail_open"])
async def test_an_order_that_does_not_fit_is_refused_also_fail_open(
    on_small_disk: StoreHarness, small_disk: SmallDisk
) -> None:
    """Row 17: no order that isn't durable, whatever the audit mode."""
    store = on_small_disk
    await store.open_order(public_key_sha256="key-a")
    small_disk.leave(0)
    huge = draft(public_key_sha256="key-b", csr_der=b"x" * 400 * PAGE)
    assert await refusal_of(store.stores.orders.open_order(huge, NO_LIMITS, [store.event()])) is (
        Reason.STORE_UNAVAILABLE
    )
    assert len(await store.stores.orders.unfinished_orders()) == 1


@pytest.mark.parametrize("left", [0, PAGE, 4 * PAGE, 16 * PAGE])
async def test_a_full_disk_at_the_start_that_migrates(small_disk: SmallDisk, left: int) -> None:
    """It is the disk that is told, whichever file has no room first; the database stays as it was, and goes on later."""
    place = StorePlace("sqlite", small_disk.folder / "broker.db")
    make_sqlite(place.path)
    before = place.query("SELECT version_num FROM alembic_version")
    small_disk.leave(left)
    with pytest.raises(OperationError, match=r"(?s)(disk is full|disk that is full|no space).*(room|space|df)"):
        async with place.open(ManualClock()):
            pass
    small_disk.make_room()
    assert place.query("SELECT version_num FROM alembic_version") == before
    async with place.open(ManualClock()):
        assert place.query("SELECT version_num FROM alembic_version") != before
    assert place.query("PRAGMA integrity_check") == [("ok",)]


# Row 18: another connection holds the lock


async def test_a_lock_that_stays_is_unavailable_for_all_that_wait_at_once(sqlite_place: StorePlace) -> None:
    """Row 18: after one busy timeout, not one for each; reads go on; then it works again."""
    async with sqlite_place.open(ManualClock(), **IMPATIENT) as stores:
        store = StoreHarness(sqlite_place, ManualClock(), stores)
        order = await store.open_order()
        other = sqlite3.connect(sqlite_place.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        waits: list[Any] = [stores.audit.append([store.event()]) for _ in range(20)]
        waits += [store.open_order(public_key_sha256=f"key-{number}") for number in range(20)]
        results = await asyncio.gather(*waits, return_exceptions=True)
        took = time.monotonic() - begun
        assert await stores.orders.get_order(order.order_id) == order
        other.execute("ROLLBACK")
        other.close()
        reasons = [error.refusal.reason for error in results if isinstance(error, RefusalError)]
        assert reasons == [Reason.AUDIT_UNAVAILABLE] * 20 + [Reason.STORE_UNAVAILABLE] * 20
        # Two groups at most, of 0.3 s each: far less than 40 times that.
        assert took < 20 * IMPATIENT["busy_timeout"].total_seconds()
        await stores.audit.append([store.event()])
        assert len(await store.event_ids()) == 1


async def test_a_short_lock_is_waited_for(sqlite_place: StorePlace) -> None:
    """Row 18: a command's transaction beside the broker delays a write, it doesn't refuse it."""
    async with sqlite_place.open(ManualClock()) as stores:
        store = StoreHarness(sqlite_place, ManualClock(), stores)
        other = sqlite3.connect(sqlite_place.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        wait = asyncio.create_task(stores.audit.append([store.event()]))
        await asyncio.sleep(0.1)
        assert not wait.done()
        other.execute("ROLLBACK")
        other.close()
        await wait


async def test_a_lock_of_a_decision_that_stays_refuses_those_who_want_one(postgres_place: StorePlace) -> None:
    """A broker stands still in a transaction: what is written with them stands, and others go on after that."""
    async with postgres_place.open(ManualClock(), **IMPATIENT) as stores:
        store = StoreHarness(postgres_place, ManualClock(), stores)
        order = await store.open_order()
        (key,) = LimitCheck.locks(draft(), NO_LIMITS)
        with psycopg.connect(postgres_place.url) as other:
            other.execute("SELECT pg_advisory_xact_lock(%s, %s)", (postgresql._LOCK, key))
            results = await asyncio.gather(
                store.open_order(public_key_sha256="key-b"),
                stores.audit.append([store.event()]),
                stores.orders.change_order(order, OrderChange(acme_order_url="https://ca.example/1")),
                return_exceptions=True,
            )
            assert await refusal_of(store.open_order(public_key_sha256="key-b")) is Reason.STORE_UNAVAILABLE
            await store.open_order(public_key_sha256="key-c", identity="another")
        refused, appended, changed = results
        assert isinstance(refused, RefusalError)
        assert refused.refusal.reason is Reason.STORE_UNAVAILABLE
        assert appended is None
        assert changed == await stores.orders.get_order(order.order_id)
        assert len(await store.event_ids()) == 1
        await store.open_order(public_key_sha256="key-b")


async def test_a_server_that_repeats_reads_by_default_has_exact_limits(postgres_place: StorePlace) -> None:
    """What is counted after a lock was had is what stands there then, and not what stood there at the beginning."""
    async with postgres_place.open(ManualClock()):
        pass
    name = postgres_place.url.rpartition("/")[2].partition("?")[0]
    postgres_place.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    limits = DurableLimits(per_identity_per_hour=3)
    async with (
        postgres_place.open(ManualClock()) as one,
        postgres_place.open(ManualClock(), exclusive=False) as two,
    ):
        wanted = [(stores, f"key-{number}-{stores is one}") for number in range(8) for stores in (one, two)]
        opened = await asyncio.gather(
            *(stores.orders.open_order(draft(public_key_sha256=key), limits, []) for stores, key in wanted),
            return_exceptions=True,
        )
    reasons = [result.refusal.reason for result in opened if isinstance(result, RefusalError)]
    assert reasons == [Reason.RATE_LIMITED] * 13


# Row 19: what stands at the path is no sound database


def spoil_pages(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(random.Random(7).randbytes(3 * 4096))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def garbage(path: Path) -> None:
    path.write_bytes(b"this is not a database, and is longer than a header of one hundred bytes" * 10)


@pytest.mark.parametrize("damage", [spoil_pages, cut, garbage])
async def test_a_corrupt_database_refuses_the_start(sqlite_place: StorePlace, damage: Any) -> None:
    """Row 19: one line that names the file and the way to restore it; the file is left as it is."""
    async with sqlite_place.open(ManualClock()) as stores:
        store = StoreHarness(sqlite_place, ManualClock(), stores)
        await stores.audit.append([store.event(reason="x" * 4000) for _ in range(50)])
    damage(sqlite_place.path)
    before = hashlib.sha256(sqlite_place.path.read_bytes()).digest()
    with pytest.raises(OperationError) as caught:
        async with sqlite_place.open(ManualClock()):
            pass
    text = str(caught.value)
    assert "\n" not in text
    assert "corrupt" in text
    assert str(sqlite_place.path) in text
    assert "docs/operations.md, 'Restore'" in text
    assert hashlib.sha256(sqlite_place.path.read_bytes()).digest() == before


@pytest.mark.parametrize("exclusive", [True, False])
async def test_an_empty_file_is_no_new_database(sqlite_place: StorePlace, *, exclusive: bool) -> None:
    """It is what a full disk or a broken copy left: taken for a new one, it would let in whom the deny-list kept out."""
    sqlite_place.path.touch(0o600)
    with pytest.raises(OperationError, match=r"corrupt \(the file is empty\).*'Restore'"):
        async with sqlite_place.open(ManualClock(), exclusive=exclusive):
            pass
    assert sqlite_place.path.read_bytes() == b""


class _EndedError(Exception):
    """The end of the process, as far as the database's file is concerned."""


def _end(*_: object) -> None:
    raise _EndedError


@pytest.mark.parametrize("left", [b"", b"half a page"])
async def test_a_first_start_that_was_killed_is_begun_again(
    sqlite_place: StorePlace, left: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was about: the database is there with its first page, or not at all."""
    sqlite_place.path.with_name(".broker.db.new").write_bytes(left)
    sqlite_place.path.with_name(".broker.db.new-journal").write_bytes(left)
    with monkeypatch.context() as patch:
        patch.setattr(files, "migrate", _end)
        with pytest.raises(_EndedError):
            async with sqlite_place.open(ManualClock()):
                pass
    assert sqlite_place.path.stat().st_size >= PAGE
    async with sqlite_place.open(ManualClock()) as stores:
        assert stores.ready()
    assert sorted(file.name for file in sqlite_place.path.parent.iterdir()) == ["broker.db", "broker.db.lock"]


def other_program(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE t (x)")


def newer_schema(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")
        other.execute("UPDATE shared_values SET value = '9998' WHERE name = 'schema_readable_from'")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(lambda path: (path.unlink(), other_program(path)), "another program", id="another's database"),
        pytest.param(newer_schema, "newer certplane-broker", id="newer schema"),
        pytest.param(a_folder, "is not a file", id="folder"),
    ],
)
async def test_a_wrong_database_is_a_mistake_of_the_configuration(
    sqlite_place: StorePlace, spoil: Any, says: str
) -> None:
    """One line with the path, the key and a remedy; nothing is changed."""
    async with sqlite_place.open(ManualClock()):
        pass
    spoil(sqlite_place.path)
    before = sqlite_place.path.read_bytes() if sqlite_place.path.is_file() else b""
    for exclusive in (True, False):
        with pytest.raises(ConfigurationError) as caught:
            async with sqlite_place.open(ManualClock(), exclusive=exclusive):
                pass
        (problem,) = caught.value.problems
        assert (problem.file, problem.key) == (str(sqlite_place.path), "store.path")
        assert problem.remedy
        assert says in problem.message or not exclusive
    assert (sqlite_place.path.read_bytes() if sqlite_place.path.is_file() else b"") == before


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The remedy says which folder to make."""
    place = StorePlace("sqlite", tmp_path / "none" / "broker.db")
    with pytest.raises(ConfigurationError, match=f"create the folder {tmp_path / 'none'}"):
        async with place.open(ManualClock()):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may remount a file system")
async def test_a_read_only_file_system_is_named(small_disk: SmallDisk) -> None:
    """A database that can be read but not written is refused at the start, not at the first order."""
    place = StorePlace("sqlite", small_disk.folder / "broker.db")
    async with place.open(ManualClock()):
        pass
    small_disk.make_read_only()
    with pytest.raises(ConfigurationError, match="writable"):
        async with place.open(ManualClock()):
            pass


# Row 28: a second broker on the same state


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePlace:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    return StorePlace(request.param, tmp_path / "broker.db", url)


async def test_a_second_broker_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    """Row 28: one line and a remedy; a command may come in beside; after the first has ended the next may start."""
    place = StorePlace("sqlite", tmp_path / "broker.db")
    async with place.open(ManualClock()):
        with pytest.raises(OperationError, match="another broker") as caught:
            async with place.open(ManualClock()):
                pass
        assert "\n" not in str(caught.value)
        async with place.open(ManualClock(), exclusive=False) as beside:
            assert await beside.audit.tail(1) == []
    async with place.open(ManualClock()):
        pass


async def test_brokers_share_a_server_s_database(postgres_place: StorePlace) -> None:
    """Any number of them, and commands beside; who wants it alone is refused while one is there, and the other way."""
    wait = timedelta(seconds=5)
    async with postgres_place.open(ManualClock()), postgres_place.open(ManualClock()):
        async with postgres_place.open(ManualClock(), exclusive=False) as beside:
            assert await beside.audit.tail(1) == []
        with (
            pytest.raises(OperationError, match="a broker uses this database") as caught,
            postgresql.alone(postgres_place.url, wait, "store.url", empty=False),
        ):
            pass
        assert "\n" not in str(caught.value)
    with postgresql.alone(postgres_place.url, wait, "store.url", empty=False):
        with pytest.raises(OperationError, match="to itself") as caught:
            async with postgres_place.open(ManualClock()):
                pass
        assert "\n" not in str(caught.value)


@contextlib.contextmanager
def running_storm(place: StorePlace, output: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.support.store_storm", place.kind, str(place.path), place.url]
    process = subprocess.Popen(command, stdout=output, cwd=Path(__file__).parents[2])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("after", [0.1, 0.7])
async def test_a_kill_in_a_storm_of_commits_loses_nothing_acknowledged(
    place: StorePlace, tmp_path: Path, after: float
) -> None:
    """Kill -9 with 64 callers under way: all that was acknowledged is there, the lock is free, the database is sound."""
    told = tmp_path / "told"
    with told.open("wb") as output, running_storm(place, output.fileno()) as process:
        await until(lambda: told.stat().st_size, what="the first commit")
        await asyncio.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.wait()
    acknowledged = {line for line in told.read_text().splitlines(keepends=True) if line.endswith("\n")}
    assert len(acknowledged) > 64

    async def stored() -> set[str] | None:
        try:
            async with place.open(ManualClock()) as stores:
                found = {f"{record['event_id']}\n" for record in await stores.audit.tail(10_000_000)}
                return found | {f"{order.order_id}\n" for order in await stores.orders.unfinished_orders()}
        except OperationError:  # PostgreSQL takes a moment to see that the connection with the lock is gone
            return None

    assert acknowledged - await until(stored, what="the end of the lock") == set()
    if place.kind == "sqlite":
        with contextlib.closing(sqlite3.connect(place.path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_kill_leaves_no_lock_behind(sqlite_place: StorePlace, tmp_path: Path) -> None:
    """Row 28: the process that holds the lock is named while it lives; once it is killed the next may start at once."""
    told = tmp_path / "told"
    with told.open("wb") as output, running_storm(sqlite_place, output.fileno()) as process:
        await until(lambda: told.stat().st_size, what="the first commit")
        with pytest.raises(OperationError, match=f"process {process.pid}"):
            async with sqlite_place.open(ManualClock()):
                pass
        process.kill()
        process.wait()
        async with sqlite_place.open(ManualClock()):
            pass


# PostgreSQL's own


@pytest.fixture
def postgres_place(postgres_url: str, tmp_path: Path) -> StorePlace:
    return StorePlace("postgresql", tmp_path / "broker.db", postgres_url)


def cut_connections(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


async def test_lost_connections_are_made_again(postgres_place: StorePlace) -> None:
    """A server that was restarted costs nobody an answer: reads and writes go on over new connections, the lock is held."""
    async with postgres_place.open(ManualClock()) as stores:
        store = StoreHarness(postgres_place, ManualClock(), stores)
        order = await store.open_order()
        cut_connections(postgres_place.url)
        assert await stores.orders.get_order(order.order_id) == order
        await asyncio.gather(
            *(stores.audit.append([store.event()]) for _ in range(5)),
            *(store.open_order(public_key_sha256=f"key-{number}") for number in range(5)),
        )
        assert sorted(await store.event_ids()) == [f"event-{number:06d}" for number in range(1, 6)]
        assert len(await stores.orders.unfinished_orders()) == 6
        with (
            pytest.raises(OperationError, match="a broker uses this database"),
            postgresql.alone(postgres_place.url, timedelta(seconds=5), "store.url", empty=False),
        ):
            pass


async def test_a_broker_that_lost_its_lock_to_a_copy_writes_nothing(postgres_place: StorePlace) -> None:
    """After the connection was lost and somebody has the database alone, the broker's writes are refused."""
    async with postgres_place.open(ManualClock()) as stores:
        store = StoreHarness(postgres_place, ManualClock(), stores)
        cut_connections(postgres_place.url)
        with postgresql.alone(postgres_place.url, timedelta(seconds=5), "store.url", empty=False):
            assert await refusal_of(store.open_order()) is Reason.STORE_UNAVAILABLE
            assert await refusal_of(stores.audit.append([store.event()])) is Reason.AUDIT_UNAVAILABLE
        await store.open_order()


@pytest.mark.parametrize("exclusive", [True, False])
async def test_an_unreachable_server_is_one_line_without_the_password(tmp_path: Path, exclusive: bool) -> None:
    """What failed and what to check, and never the URL."""
    place = StorePlace("postgresql", tmp_path / "b.db", "postgresql://broker:hunter2@127.0.0.1:1/certplane")
    with pytest.raises(CertplaneError) as caught:
        async with place.open(ManualClock(), exclusive=exclusive):
            pass
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "store.url" in str(caught.value)
