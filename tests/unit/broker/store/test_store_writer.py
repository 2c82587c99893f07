"""The writer's queue: its bound, its end, and what one group costs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.broker.audit import SpillFallback
from certplane.broker.events import AuditEvent, AuditEventType
from certplane.broker.ports import NullMeter
from certplane.broker.store.audit_log import AuditRows
from certplane.broker.store.audit_records import EventRow, event_row
from certplane.broker.store.batch import Done, GroupCommit
from certplane.broker.store.files import open_writer
from certplane.broker.store.session import Fault, Session, SqlError
from certplane.broker.store.sqlite import SqliteSession
from certplane.broker.store.statements import Compiler
from certplane.broker.store.writer import Writer
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import SystemClock
from tests.fakes.clock import ManualClock
from tests.support.waiting import HANG, until


class CountingSession(SqliteSession):
    """A real session that counts its transactions and can be told to fail."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.began = 0
        self.alone = 0
        self.savepoints = 0
        self.fail_commits: list[Fault | None] = []

    def begin(self) -> None:
        self.began += 1
        super().begin()

    def savepoint(self) -> None:
        self.savepoints += 1
        super().savepoint()

    def execute(self, statement: Any, arguments: Sequence[object]) -> int:
        if not self.in_transaction:
            self.alone += 1
        return super().execute(statement, arguments)

    def commit(self) -> None:
        if self.fail_commits:
            fault = self.fail_commits.pop(0)
            if fault in (Fault.LOST, None):  # LOST: committed, and the answer was lost
                super().commit()
            if fault is not None:
                raise SqlError(fault, "told to fail")
            return
        super().commit()


class Bench:
    """A writer over a real database, and a way to hold it."""

    def __init__(self, writer: Writer, session: CountingSession, folder: Path) -> None:
        self.writer = writer
        self.session = session
        self.folder = folder
        self._numbers = iter(range(1, 1_000_000))
        self._leave = threading.Event()

    def row(self, event_id: str = "") -> EventRow:
        event_id = event_id or f"event-{next(self._numbers):04d}"
        return event_row(AuditEvent(event_id, ManualClock().now(), AuditEventType.BROKER_STARTED))

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """The writer is busy with one job meanwhile."""
        entered, leave = threading.Event(), threading.Event()

        def hold(session: Session) -> Done[None]:
            entered.set()
            leave.wait(HANG)
            return Done(None)

        holder = asyncio.create_task(self.writer.write(hold, ()))
        await until(entered.is_set)
        yield
        await asyncio.sleep(0)
        leave.set()
        await holder

    def stored(self) -> list[str]:
        rows = self.session._connection.execute("SELECT event_id FROM audit_events ORDER BY sequence").fetchall()
        return [event_id for (event_id,) in rows]


@asynccontextmanager
async def bench(
    folder: Path, failure_mode: Any = "fail_closed", *, mirror: bool = False, **settings: Any
) -> AsyncIterator[Bench]:
    session = CountingSession(open_writer(folder / "broker.db", timedelta(seconds=1), exclusive=True))
    fallback = SpillFallback(failure_mode, folder / "spill", mirror_to_log=mirror)
    writer = Writer(
        GroupCommit(session, AuditRows(Compiler("sqlite"), "writer", SystemClock()), fallback),
        fallback,
        NullMeter(),
        SystemClock(),
        gate=contextlib.nullcontext(),
        after_group=lambda jobs, size: None,
        **settings,
    )
    writer.start()
    try:
        yield Bench(writer, session, folder)
    finally:
        await writer.close()
        session.close()


async def together(*waits: Any) -> list[Any]:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.sleep(0)
    return tasks


async def test_events_alone_are_one_statement(tmp_path: Path) -> None:
    """However many wait, their rows are one INSERT in a transaction of its own."""
    async with bench(tmp_path) as b:
        await b.writer.append([b.row()])  # the first one begins the chain
        b.session.began = 0
        async with b.held():
            waits = await together(*(b.writer.append([b.row(), b.row()]) for _ in range(40)))
        await asyncio.gather(*waits)
        assert (b.session.alone, b.session.began) == (1, 1)  # the one BEGIN is the holder's
        assert b.stored() == [f"event-{number:04d}" for number in range(1, 82)]


async def test_changes_are_one_transaction_with_a_savepoint_each(tmp_path: Path) -> None:
    """A group of changes and events has one BEGIN and one COMMIT."""
    async with bench(tmp_path) as b:
        async with b.held():
            waits = await together(
                *(b.writer.write(lambda session: Done(None), [b.row()]) for _ in range(10)),
                *(b.writer.append([b.row()]) for _ in range(10)),
            )
        await asyncio.gather(*waits)
        assert (b.session.alone, b.session.began, b.session.savepoints) == (0, 2, 10)
        assert len(b.stored()) == 20


async def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    """With a time to come back; what was accepted is written; then there is room again."""
    async with bench(tmp_path, queue_limit=3) as b:
        async with b.held():
            waits = await together(b.writer.append([b.row()]), b.writer.append([b.row()]))
            with pytest.raises(RefusalError) as audit:
                await b.writer.append([b.row()])
            with pytest.raises(RefusalError) as store:
                await b.writer.write(lambda session: Done(None), [])
        assert (audit.value.refusal.reason, store.value.refusal.reason) == (
            Reason.AUDIT_UNAVAILABLE,
            Reason.STORE_UNAVAILABLE,
        )
        assert audit.value.refusal.retry_after
        assert store.value.refusal.retry_after
        await asyncio.gather(*waits)
        await b.writer.append([b.row("later")])
        assert b.stored() == ["event-0001", "event-0002", "later"]


async def test_a_full_queue_spills_events_under_fail_open(tmp_path: Path) -> None:
    """The caller isn't refused, and its event is in the spill file."""
    async with bench(tmp_path, "fail_open", queue_limit=1) as b:
        async with b.held():
            await b.writer.append([b.row("spilled")])
        assert "spilled" in (tmp_path / "spill").read_text()
        assert b.stored() == []


async def test_closing_writes_what_waits_and_refuses_the_rest(tmp_path: Path) -> None:
    """No accepted job is dropped; a closed writer says so."""
    async with bench(tmp_path) as b:
        async with b.held():
            waits = await together(*(b.writer.append([b.row()]) for _ in range(5)))
            closing = asyncio.create_task(b.writer.close())
            await asyncio.sleep(0)
            with pytest.raises(RefusalError, match="stopping"):
                await b.writer.append([b.row()])
        await asyncio.gather(*waits, closing)
        assert len(b.stored()) == 5


async def test_a_cancelled_waiter_leaves_its_job(tmp_path: Path) -> None:
    """What was put in is written though nobody waits for it any more."""
    async with bench(tmp_path) as b:
        async with b.held():
            (wait,) = await together(b.writer.append([b.row("orphan")]))
            wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        await b.writer.append([b.row("next")])
        assert b.stored() == ["orphan", "next"]


@pytest.mark.parametrize("jobs", [1, 3])
async def test_a_commit_whose_answer_is_lost_is_not_done_twice(tmp_path: Path, jobs: int) -> None:
    """The job is tried again on a new connection, finds its own rows, and succeeds."""
    async with bench(tmp_path) as b:
        made: list[int] = []

        def change(session: Session) -> Done[str]:
            made.append(1)
            return Done("done")

        async with b.held():
            waits = await together(*(b.writer.write(change, [b.row()]) for _ in range(jobs)))
            b.session.fail_commits = [None, Fault.LOST]  # the first is the holder's
        results = await asyncio.gather(*waits, return_exceptions=True)
        assert results == ["done"] * jobs
        assert len(b.stored()) == jobs
        assert len(made) == 2 * jobs


@pytest.mark.parametrize("failure_mode", ["fail_closed", "fail_open"])
async def test_after_a_failed_sync_nothing_is_written_any_more(
    tmp_path: Path, failure_mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What the kernel has lost can't be known: all is refused (events: spilled, if allowed) until a new start."""
    async with bench(tmp_path, failure_mode) as b:
        b.session.fail_commits = [Fault.BROKEN]
        with pytest.raises(RefusalError) as caught:
            await b.writer.write(lambda session: Done(None), [b.row()])
        assert caught.value.refusal.reason is Reason.STORE_UNAVAILABLE
        assert b.writer.broken
        with pytest.raises(RefusalError):
            await b.writer.write(lambda session: Done(None), [])
        if failure_mode == "fail_open":
            await b.writer.append([b.row("spilled")])
            assert "spilled" in (tmp_path / "spill").read_text()
        else:
            with pytest.raises(RefusalError) as caught:
                await b.writer.append([b.row()])
            assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
        assert b.stored() == []
    assert any(record.levelname == "CRITICAL" for record in caplog.records)


@pytest.mark.parametrize("failure_mode", ["fail_closed", "fail_open"])
async def test_a_commit_that_fails_under_each_audit_mode(tmp_path: Path, failure_mode: str) -> None:
    """fail_closed: the change is refused. fail_open: it may have been the events, so the change is made without them."""
    async with bench(tmp_path, failure_mode) as b:
        b.session.fail_commits = [Fault.FULL]
        writing = b.writer.write(lambda session: Done("made"), [b.row("event")])
        if failure_mode == "fail_closed":
            with pytest.raises(RefusalError) as caught:
                await writing
            assert caught.value.refusal.reason is Reason.STORE_UNAVAILABLE
            assert not (tmp_path / "spill").exists()
        else:
            assert await writing == "made"
            assert "event" in (tmp_path / "spill").read_text()
        assert b.stored() == []


async def test_a_fault_of_the_writer_itself_is_told_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Callers get the error, the log the traceback, and the next job is written."""
    async with bench(tmp_path) as b:
        with monkeypatch.context() as patch:
            patch.setattr(b.writer._commit, "run", lambda jobs: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await b.writer.append([b.row()])
        await b.writer.append([b.row("next")])
        assert b.stored() == ["next"]
    assert "a group could not be written" in caplog.text


async def test_durable_events_are_mirrored_to_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`mirror_to_log`: each durable event is a line, one that was refused is not."""
    caplog.set_level("INFO", "certplane.audit")
    async with bench(tmp_path, mirror=True) as b:
        await b.writer.append([b.row("one"), b.row("two")])
        with pytest.raises(RefusalError):
            await b.writer.append([b.row("one")])
        await b.writer.append([b.row("three")])
    mirrored = [
        getattr(record, "fields", {})["event"]["event_id"]
        for record in caplog.records
        if record.levelname == "INFO" and record.name == "certplane.audit"
    ]
    assert mirrored == ["one", "two", "three"]
