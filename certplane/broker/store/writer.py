"""The writer: one thread that owns the connection that writes, and the queue before it.

What waits is taken together, up to a limit, and written as one group commit (`batch`). All waiters of a group are
woken by one call into the event loop.

Groups are what makes the broker fast under load, and not for the sync that they share: the writer's thread and the
loop's contend for the interpreter's lock, each group hands it over some ten times, and a hand-over costs more than the
rows do. Left alone the two fall into step, one job a group. So jobs are handed over once per turn of the loop, all that
came in it, and where groups of several have been usual lately the writer waits a little for the others. Calls answered
from the cache, 64 at a time: 1.3 jobs a group without the wait, 8 to 10 with it, and a quarter to a half more answers.
A lone caller waits for nobody.

Rules it keeps:

- The queue is bounded. A full one refuses at once, with a time to come back; it never makes the loop wait.
- Cancelling a waiter stops its waiting alone: what was put in is written.
- `close` refuses what is new and writes what waits.

The queue's bound is counted on the loop alone, which is why a lock isn't needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from certplane.broker import metrics
from certplane.broker.ports import AuditFallback, Meter
from certplane.broker.store.audit_records import EventRow
from certplane.broker.store.batch import Change, GroupCommit, Job, audit_unavailable, store_unavailable
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

_log = logging.getLogger("certplane.store")

T = TypeVar("T")

_GROUP: Final = 256
"""Jobs after which a group is full: what a group adds to the wait of its last job stays a few milliseconds."""
_QUEUE: Final = 4_096
"""Jobs that may wait: some seconds of the writer's work at the rate of an ordinary disk, and about 10 MB."""
_LINGER: Final = timedelta(milliseconds=1)
_LINGERS: Final = 4
"""How often the writer waits for more, each time only if the wait before brought some. What a call can lose is small
beside what it waits for its turn when there are so many."""


class Writer:
    """Accepts jobs on the event loop that it was started on, and writes them on its own thread."""

    def __init__(
        self,
        commit: GroupCommit,
        fallback: AuditFallback,
        meter: Meter,
        clock: Clock,
        *,
        gate: AbstractContextManager[object],
        after_group: Callable[[int, int], None],
        queue_limit: int = _QUEUE,
        linger: timedelta = _LINGER,
    ) -> None:
        """`gate` is held while a group is written and `after_group` told how many jobs and bytes of records it was."""
        self._commit = commit
        self._fallback = fallback
        self._meter = meter
        self._clock = clock
        self._gate = gate
        self._after_group = after_group
        self._limit = queue_limit
        self._linger = linger.total_seconds()
        self._queue: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._turn: list[Job] = []
        self._waiting = 0
        self._usual = 1
        self._closed = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._rescuers = BlockingPool("audit-rescue", 1)
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    @property
    def broken(self) -> str:
        """Why nothing is written any more; empty while all is well."""
        return self._commit.broken

    @property
    def rescued(self) -> int:
        """How many audit events went elsewhere since the start, as `AuditFallback` has it."""
        return self._fallback.rescued

    async def write(
        self, change: Change[T], events: Sequence[EventRow], *, single: bool = False, locks: Sequence[int] = ()
    ) -> T:
        """Make a change and record its events, in one durable transaction.

        Args:
            change: What is written.
            events: Recorded with it.
            single: The change is one statement, and has no events and no locks: left alone it is written in one step.
            locks: Keys of decisions that brokers make one after another (`locks`).

        Raises:
            RefusalError: the change's own; STORE_UNAVAILABLE; AUDIT_UNAVAILABLE (`fail_closed`).
        """
        if self._closed or self._waiting >= self._limit:
            raise store_unavailable(self._why_not())
        value: T = await self._put(Job(change, events, self._loop.create_future(), single, locks))
        return value

    async def append(self, events: Sequence[EventRow]) -> None:
        """Record events; under `fail_open` they may end in the spill file instead.

        Raises:
            RefusalError: AUDIT_UNAVAILABLE (`fail_closed`).
        """
        if not events:
            return
        if self._closed or self._waiting >= self._limit:
            refusal = audit_unavailable(self._why_not())
            if not self._fallback.fail_open:
                raise refusal
            await self._rescuers.run(self._fallback.rescue, [row.text for row in events], refusal)
            return
        await self._put(Job(None, events, self._loop.create_future()))

    async def close(self) -> None:
        """Write what waits, then end the thread."""
        if not self._closed:
            self._closed = True
            self._hand_over()
            self._queue.put(None)
            self._closing.set()
        if self._thread.is_alive():
            await self._ended.wait()
        self._rescuers.close()

    def _put(self, job: Job) -> asyncio.Future[Any]:
        self._waiting += 1
        if not self._turn:
            self._loop.call_soon(self._hand_over)
        self._turn.append(job)
        return job.future

    def _hand_over(self) -> None:
        """Give the writer what came in this turn of the loop."""
        if self._turn:
            self._queue.put(self._turn)
            self._turn = []

    def _why_not(self) -> str:
        return "the broker is stopping" if self._closed else "too much waits to be written"

    # On the writer's thread.

    def _run(self) -> None:
        try:
            while group := self._take():
                self._write(group)
                del group  # or its events would live until the next one comes
        finally:
            with contextlib.suppress(RuntimeError):  # the loop was closed without waiting for us
                self._loop.call_soon_threadsafe(self._ended.set)

    def _take(self) -> list[Job]:
        """The next group; empty when the writer was closed and nothing is left."""
        group = self._queue.get()
        if group is None:
            return []
        more = self._gather(group)
        # Fewer than usual: the others are about to come. When they are all here, or nobody is, waiting ends.
        for _ in range(_LINGERS):
            count = len(group)
            if not more or count >= self._usual or self._closing.wait(self._linger):
                break
            more = self._gather(group)
            if len(group) == count:
                break
        self._usual = max(len(group), self._usual * 3 // 4)
        return group

    def _gather(self, group: list[Job]) -> bool:
        """Add what waits now to `group`; whether there may be more: not when it is full, or the last."""
        while len(group) < _GROUP:
            try:
                jobs = self._queue.get_nowait()
            except Empty:
                return True
            if jobs is None:
                self._queue.put(None)  # the end, found before this group was written: it comes after it
                break
            group += jobs
        return False

    def _write(self, group: list[Job]) -> None:
        begun = self._clock.monotonic()
        with self._gate:
            try:
                self._commit.run(group)
            except Exception as error:  # noqa: BLE001 - see below
                # Not a fault of the database: ours. The callers are told, the thread lives on.
                _log.exception("a group could not be written")
                for job in group:
                    job.reset()
                    job.error = error
            written = [row for job in group if job.recorded for row in job.events]
            self._after_group(len(group), sum(row.size for row in written))
        with contextlib.suppress(RuntimeError):  # the loop was closed without waiting for us: the rows stand
            self._loop.call_soon_threadsafe(self._wake, group)
        if written and self._fallback.mirrors:
            self._fallback.written([row.text for row in written])
        self._meter.observe(metrics.STORE_GROUP, timedelta(seconds=self._clock.monotonic() - begun))

    # Back on the loop.

    def _wake(self, group: list[Job]) -> None:
        self._waiting -= len(group)
        for job in group:
            if job.future.done():  # cancelled: nobody waits, and what was written stands
                continue
            if job.error is None:
                job.future.set_result(job.value)
            else:
                job.future.set_exception(job.error)
