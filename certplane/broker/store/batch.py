"""Group commit: many jobs, one transaction, one fsync; each job ends as if it had been alone.

How a batch is written:

- Events alone (every answer from the cache): one INSERT of all rows in a transaction of its own. That is a single
  step of the database, so that the interpreter's lock is given up once and not once a row.
- One change of one statement, without events (a count of repeats): that statement alone, for the same reason.
- With changes: one transaction, a SAVEPOINT around each change, then the events of all changes that went well.
- Changes that brokers decide one after another have their locks (`locks`) before anything else. Where one can't be had
  in time, the changes that wanted any are refused, and the others are written without them.
- Whatever the savepoints can't contain (an event refused, the commit failed, the database ended the transaction)
  undoes everything, and the jobs are tried singly, each in a transaction of its own. So a job's failure is never its
  neighbour's.
- A transaction that the database undid for another's sake (UNDONE) is begun again, `_TRIES` times in all, before its
  caller hears of it: the other program has gone on by then.

How a job's events fail is the audit mode's. `fail_closed`: the change is undone, AUDIT_UNAVAILABLE. `fail_open`: the
change is made again in a new transaction, without the events, which are rescued before it is committed: a crash in
between may leave an event of a change that was not made, never a change without its event. (A new transaction and not
a savepoint, because a full disk may have ended the old one, savepoints and all.)

This module is synchronous and runs on the writer's thread; `writer` owns the queue, the waiting and the waking.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from typing import Any, Final, Generic, Protocol, TypeVar

from certplane.broker.ports import AuditFallback
from certplane.broker.proof.chain import Head
from certplane.broker.store.audit_records import EventRow
from certplane.broker.store.session import Fault, Session, SqlError
from certplane.errors import Reason, RefusalError

_log = logging.getLogger("certplane.store")

T = TypeVar("T")

_RETRY_AFTER: Final = timedelta(seconds=2)
"""A lock is usually gone by then; a full disk isn't, but a call every two seconds costs nobody anything."""

_TRIES: Final = 4
"""Of one transaction. PostgreSQL finds a deadlock after a second (`deadlock_timeout`) and ends one of those in it, so
that the other's transaction is over soon; who meets four in a row has a fault that no fifth try mends."""


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What a change came to, and whether its events are to be written: all that came with it, unless it names them."""

    value: T
    audited: bool = True
    events: Sequence[EventRow] | None = None


Change = Callable[[Session], Done[T]]
"""A job's work inside a transaction. It may run more than once, each time from the committed state: whatever it makes
up
(ids, times) is decided outside. Raises `RefusalError` to be undone and told."""


@dataclass(slots=True, eq=False)
class Job:
    """Something to write, and in the end its outcome."""

    change: Change[Any] | None
    events: Sequence[EventRow]
    future: asyncio.Future[Any]
    single: bool = False
    """Whether the change is one statement, and can be a transaction of its own; it has no events and no locks then."""
    locks: Sequence[int] = ()
    """What the change's transaction has to have for itself (`locks`)."""
    value: Any = None
    audited: bool = True
    error: Exception | None = None
    rescued: bool = False

    @property
    def recorded(self) -> bool:
        """Whether the job's events are in the database."""
        return self.error is None and self.audited and not self.rescued

    def take(self, done: Done[Any]) -> None:
        """The change went well."""
        self.value, self.audited = done.value, done.audited
        if done.events is not None:
            self.events = done.events

    def reset(self) -> None:
        """Forget an outcome that was undone."""
        self.value, self.audited, self.error, self.rescued = None, True, None, False


class AuditTable(Protocol):
    """How audit rows are inserted."""

    head: Head | None
    """How far the chain of rows has come, set back when rows are undone; None where nobody knows (`audit_chain`)."""

    def insert(self, session: Session, rows: Sequence[EventRow], *, again: bool = False) -> None:
        """Insert `rows`, whole or not at all if the session is in no transaction.

        `again`: rows that are there already (of a commit whose answer was lost) are passed over.
        """
        ...


def store_unavailable(message: str = "the store can't be written now") -> RefusalError:
    """The refusal of a change that could not be made durable."""
    return RefusalError(Reason.STORE_UNAVAILABLE, message, retry_after=_RETRY_AFTER)


def audit_unavailable(message: str = "the audit log can't be written now") -> RefusalError:
    """The refusal of what must not happen unlogged."""
    return RefusalError(Reason.AUDIT_UNAVAILABLE, message, retry_after=_RETRY_AFTER)


class _Step(Enum):
    CHANGE = auto()
    EVENTS = auto()
    COMMIT = auto()


class _StepError(Exception):
    """A job's own transaction ended at `step`, undone; `error` is why."""

    def __init__(self, step: _Step, error: SqlError) -> None:
        super().__init__(str(error))
        self.step = step
        self.error = error


_SHARED: Final = frozenset({Fault.BUSY, Fault.UNREACHABLE, Fault.BROKEN})
"""Faults that the next job would meet too: nobody is made to wait for them once more."""
_WHOLE: Final = frozenset({Fault.LOST, Fault.BROKEN, Fault.UNDONE})
"""Faults of a whole transaction, whatever a savepoint could contain."""


class GroupCommit:
    """Writes batches through one session.

    `broken` is set, and everything refused from then on, when the database is found corrupt or a sync has failed: the
    kernel forgets dirty pages whose sync failed, so that a later commit would promise what isn't on the disk. A start
    checks the database again.
    """

    def __init__(self, session: Session, audit: AuditTable, fallback: AuditFallback) -> None:
        self._session = session
        self._audit = audit
        self._fallback = fallback
        self.broken = ""

    def stop(self, why: str) -> None:
        """Write nothing any more, and leave the database as it is for the checks of the next start. For any thread."""
        if not self.broken:
            self.broken = why
            self._session.abandon()
            _log.critical("nothing is written until the broker is started again: %s", why)

    def run(self, jobs: Sequence[Job]) -> None:
        """Give every job its outcome: `value`, or `error`."""
        try:
            self._run(jobs)
        except Exception:
            self._session.rollback()
            self._audit.head = None
            raise

    def _run(self, jobs: Sequence[Job]) -> None:
        fault: SqlError | None = SqlError(Fault.BROKEN, self.broken) if self.broken else None
        again = False
        if fault is None and len(jobs) > 1:
            failure = self._all_at_once(jobs)
            if failure is None:
                return
            again = failure.fault is Fault.LOST
            fault = failure if failure.fault in _SHARED else None
        for job in jobs:
            job.reset()
            if fault is not None:
                self._refuse(job, _StepError(_Step.CHANGE, fault))
                continue
            failure = self._alone(job, again=again)
            fault = failure if failure is not None and failure.fault in _SHARED else None

    def _all_at_once(self, jobs: Sequence[Job]) -> SqlError | None:
        """All jobs in one transaction, begun again if it was undone; returns what the database did wrong, if anything.

        Nothing was written then, or (LOST, while committing) nobody knows.
        """
        head = self._audit.head
        for left in reversed(range(_TRIES)):
            try:
                self._together(jobs)
                return None
            except SqlError as error:
                self._session.rollback()
                self._set_back(head, error)
                self._note(error)
                if error.fault is not Fault.UNDONE or not left:
                    return error
            for job in jobs:
                job.reset()
        raise AssertionError("unreachable")

    def _together(self, jobs: Sequence[Job]) -> None:
        """All jobs in one transaction.

        Raises:
            SqlError: nothing was written, or (LOST, while committing) nobody knows.
        """
        session = self._session
        changes = [job for job in jobs if job.change is not None]
        if not changes:
            self._audit.insert(session, [row for job in jobs for row in job.events])
            return
        session.begin()
        changes = self._locked(changes)
        for job in changes:
            self._contained(job)
        rows = [row for job in jobs if job.error is None and job.audited for row in job.events]
        if rows:
            self._audit.insert(session, rows)
        session.commit()

    def _locked(self, changes: list[Job]) -> list[Job]:
        """The changes that can be made: the transaction that was begun has their locks, or another was begun since.

        Raises:
            SqlError: the transaction is lost, and not for a lock.
        """
        session = self._session
        keys = sorted({key for job in changes for key in job.locks})
        if not keys:
            return changes
        try:
            session.lock(keys)
        except SqlError as error:
            if error.fault is not Fault.BUSY:
                raise
            self._note(error)
            for job in changes:
                job.error = _store_refusal(error) if job.locks else None
            session.rollback()
            session.begin()
            return [job for job in changes if job.error is None]
        return changes

    def _contained(self, job: Job) -> None:
        """One change inside a savepoint; its failure is noted on the job.

        Raises:
            SqlError: the transaction itself is lost.
        """
        assert job.change is not None
        self._session.savepoint()
        head = self._audit.head
        try:
            done = job.change(self._session)
        except SqlError as error:
            if not self._session.in_transaction or error.fault in _WHOLE:
                raise
            self._session.rollback_to_savepoint()
            self._audit.head = head
            job.error = _store_refusal(error)
        except Exception as error:  # noqa: BLE001 - a refusal, or a fault of the change: its caller's to see
            self._session.rollback_to_savepoint()
            self._audit.head = head
            job.error = error
        else:
            self._session.release()
            job.take(done)

    def _alone(self, job: Job, *, again: bool) -> SqlError | None:
        """One job in its own transaction, to its end; returns what the database did wrong, if anything.

        `again`: an earlier try may have been committed after all.
        """
        undone = 0
        while True:
            try:
                self._transact(job, again=again)
                return None
            except _StepError as failed:
                self._note(failed.error)
                undone += failed.error.fault is Fault.UNDONE
                if failed.error.fault is Fault.LOST and not again:
                    again = True
                elif failed.error.fault is not Fault.UNDONE or undone == _TRIES:
                    return self._give_up(job, failed)
            job.reset()

    def _give_up(self, job: Job, failed: _StepError) -> SqlError | None:
        """A job whose transaction can't be had: its change without its events (`fail_open`), or its refusal.

        Returns what the database did wrong; None if the change was made.
        """
        events_to_blame = failed.step is not _Step.CHANGE and job.change is not None and job.audited and job.events
        if events_to_blame and self._fallback.fail_open and failed.error.fault not in (Fault.LOST, Fault.BROKEN):
            try:
                self._transact(job, rescue=failed.error)
            except _StepError as second:
                self._note(second.error)
                failed = _StepError(_Step.CHANGE, second.error)
            else:
                return None
        self._refuse(job, failed)
        return failed.error

    def _transact(self, job: Job, *, again: bool = False, rescue: SqlError | None = None) -> None:
        """The job's change and events, durable; or the change alone, and its events rescued.

        Raises:
            _StepError: nothing was written, or (LOST, while committing) nobody knows.
        """
        step = _Step.CHANGE
        head = self._audit.head
        try:
            if job.change is None:
                step = _Step.EVENTS
                self._audit.insert(self._session, job.events, again=again)
                return
            if not job.single:
                self._session.begin()
            if job.locks:
                self._session.lock(sorted(job.locks))
            try:
                done = job.change(self._session)
            except SqlError:
                raise
            except Exception as error:  # noqa: BLE001 - a refusal, or a fault of the change: its caller's to see
                self._session.rollback()
                self._audit.head = head
                job.error = error
                return
            job.take(done)
            if job.single:
                return
            if job.events and job.audited:
                step = _Step.EVENTS
                if rescue is None:
                    self._audit.insert(self._session, job.events, again=again)
                else:
                    self._rescue(job, rescue)
            step = _Step.COMMIT
            self._session.commit()
        except SqlError as error:
            self._session.rollback()
            self._set_back(head, error)
            raise _StepError(step, error) from error

    def _set_back(self, head: Head | None, error: SqlError) -> None:
        """The transaction that failed so is undone, and gives back the numbers that its events had got."""
        self._audit.head = None if error.fault in (Fault.LOST, Fault.BROKEN) else head

    def _refuse(self, job: Job, failed: _StepError) -> None:
        """Nothing of the job was written: say so, or, where its events may go elsewhere, let them."""
        rescued = job.rescued
        job.reset()
        if job.change is None and self._fallback.fail_open:
            self._rescue(job, failed.error)
        elif job.change is None or failed.step is _Step.EVENTS:
            job.error = audit_unavailable()
            job.error.__cause__ = failed.error
        else:
            job.rescued = rescued
            job.error = _store_refusal(failed.error)

    def _rescue(self, job: Job, cause: SqlError) -> None:
        if not job.rescued:
            self._fallback.rescue([row.text for row in job.events], cause)
        job.rescued = True

    def _note(self, error: SqlError) -> None:
        _log.warning("the database failed (%s): %s", error.fault.name.lower(), error)
        if error.fault is Fault.BROKEN:
            self.stop(str(error))


def _store_refusal(cause: SqlError) -> RefusalError:
    refusal = store_unavailable()
    refusal.__cause__ = cause
    return refusal
