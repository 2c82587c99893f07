"""What is old is removed in small batches, and little room is told in time."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker import metrics
from certplane.broker.events import AuditEvent, AuditEventType
from certplane.broker.proof.sealing import Sealing
from certplane.broker.retention import Retention, Room, little_room
from certplane.runtime.pool import BlockingPool
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.support.memory_store import MemoryStores
from tests.support.waiting import until

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
GIB = 1 << 30
MIB = 1 << 20


class Setting:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.numbers = itertools.count()
        self.stores = MemoryStores.open(self.clock)
        self.stores.upkeep.size = self.size  # type: ignore[method-assign]  # a database in memory has no file
        self.meter = FakeMeter()
        self.files = BlockingPool("files", 1)
        self.retention = Retention(
            self.stores.upkeep,
            keep_audit=30 * DAY,
            keep_ended=None,
            places={"store": folder},
            clock=self.clock,
            meter=self.meter,
            files=self.files,
        )

    async def size(self) -> int:
        return 1000 * len(self.stores.database.events)

    async def write(self, count: int) -> None:
        now = self.clock.now()
        await self.stores.audit.append(
            [AuditEvent(f"event-{next(self.numbers)}", now, AuditEventType.CERTIFICATE_CACHE_HIT) for _ in range(count)]
        )
        await Sealing(self.stores.audit_proof, self.clock, None, FakeMeter()).seal_own()

    @asynccontextmanager
    async def running(self, work: Coroutine[None, None, None]) -> AsyncIterator[None]:
        task = asyncio.create_task(work)
        try:
            await settled()
            yield
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait({task})
            self.files.close()


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_what_is_due_goes_a_batch_at_a_time(tmp_path: Path) -> None:
    """With a pause after each, until nothing is left; then again an hour later."""
    s = Setting(tmp_path)
    await s.write(300)
    s.clock.advance(31 * DAY)
    await s.write(5)
    async with s.running(s.retention.prune()):
        assert len(s.stores.database.events) == 305 - 128
        s.clock.advance(timedelta(seconds=1))
        await settled()
        assert len(s.stores.database.events) == 305 - 256
        s.clock.advance(timedelta(seconds=1))
        await settled()
        assert len(s.stores.database.events) == 5
        assert s.meter.total(metrics.ROWS_PRUNED, table="audit_events") == 300
        s.clock.advance(31 * DAY)
        await settled()
        assert s.stores.database.events == []


async def test_a_store_that_is_down_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An hour later; what looks at the room goes on too."""
    s = Setting(tmp_path)
    await s.write(10)
    s.clock.advance(31 * DAY)
    s.stores.database.down = True
    async with s.running(s.retention.prune()):
        assert "next try in an hour" in caplog.text
        s.stores.database.down = False
        s.clock.advance(HOUR)
        await settled()
        assert s.stores.database.events == []


async def test_room_is_measured(tmp_path: Path) -> None:
    """Size, growth of the last hour and not of the whole life, and the free space of each place."""
    s = Setting(tmp_path)
    await s.write(100)
    async with s.running(s.retention.watch()):
        for count in [50] * 3 + [0] * 58:
            await until_looked(s)
            await s.write(count)
            s.clock.advance(MINUTE)
        await until_looked(s)
        assert (s.meter.levels[metrics.STORE_SIZE], s.meter.levels[metrics.STORE_GROWTH]) == (250_000, 100_000)
        assert s.meter.levels[metrics.FREE_SPACE] > 0
        assert s.meter.levels[metrics.SPACE_LOW] == 0


async def until_looked(s: Setting) -> None:
    """Wait until it sleeps: the file system is asked on another thread."""
    await asyncio.sleep(0)  # who was woken just now is a sleeper until its turn
    await until(lambda: s.clock.sleepers, poll=0.001)


@pytest.mark.parametrize(
    ("free", "total", "growth", "said"),
    [
        pytest.param(50 * GIB, 100 * GIB, 0, "", id="half"),
        pytest.param(4 * GIB, 100 * GIB, 0, "", id="little of much"),
        pytest.param(900 * MIB, 100 * GIB, 0, "900 MiB are free for the database", id="less than a gigabyte"),
        pytest.param(60 * MIB, GIB, 0, "", id="much of little"),
        pytest.param(50 * MIB, GIB, 0, "50 MiB are free", id="less than a twentieth"),
        pytest.param(50 * GIB, 100 * GIB, 700 * MIB, "", id="enough for three days"),
        pytest.param(50 * GIB, 100 * GIB, 800 * MIB, "enough for 64 hours", id="full within three days"),
        pytest.param(900 * GIB, 1000 * GIB, 2 * GIB, "grown by 2048 MiB in an hour", id="grows fast"),
        pytest.param(50 * GIB, 100 * GIB, -GIB, "", id="shrinks"),
    ],
)
def test_little_room(free: int, total: int, growth: int, said: str) -> None:
    """Each way of running out is told with its figures before it happens."""
    problem = little_room({"store": Room(free, total)}, growth)
    assert (said in problem) if said else problem == ""


def test_the_spill_file_has_a_place_of_its_own() -> None:
    """Where it lies on another file system, that may be full while the database's isn't."""
    places = {"store": Room(50 * GIB, 100 * GIB), "spill": Room(MIB, GIB)}
    assert "spill file" in little_room(places, 0)


async def test_little_room_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once that there is enough again."""
    s = Setting(tmp_path)
    rooms = {"store": Room(MIB, GIB)}
    monkeypatch.setattr("certplane.broker.retention._rooms", lambda _places: rooms)
    caplog.set_level(logging.INFO)
    async with s.running(s.retention.watch()):
        for _ in range(3):
            await until_looked(s)
            assert s.meter.levels[metrics.SPACE_LOW] == 1
            s.clock.advance(MINUTE)
        rooms["store"] = Room(GIB, GIB)
        await until_looked(s)
        s.clock.advance(MINUTE)
        await until_looked(s)
        assert s.meter.levels[metrics.SPACE_LOW] == 0
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
