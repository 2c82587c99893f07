"""Opens the store and closes it: the one place that knows which parts there are and how they hang together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Protocol

from typing_extensions import override

from certplane.broker.ports import AuditFallback, Meter, NullMeter
from certplane.broker.store import sqlite
from certplane.broker.store.accounts import SqlAccounts
from certplane.broker.store.audit_log import AuditRows, SqlAuditLog
from certplane.broker.store.audit_proof import SqlAuditProof
from certplane.broker.store.audit_reader import SqlAuditReader
from certplane.broker.store.audit_sinks import SqlStoredEvents
from certplane.broker.store.batch import GroupCommit
from certplane.broker.store.broker_requests import SqlBrokerRequests
from certplane.broker.store.budget import SqlBudget
from certplane.broker.store.certificates import SqlCertificateStore
from certplane.broker.store.change_feed import ChangeLog, SqlChangeFeed
from certplane.broker.store.checkpoint import Checkpointer
from certplane.broker.store.conditions import SqlConditionTeller
from certplane.broker.store.deny_list import SqlDenyList
from certplane.broker.store.enrollments import SqlEnrollmentStore
from certplane.broker.store.files import StateLock, open_writer
from certplane.broker.store.fleet import SqlFleetStore
from certplane.broker.store.forgetting import SqlHostRemoval
from certplane.broker.store.holds import SqlHoldStore
from certplane.broker.store.identities import SqlIdentityLedger
from certplane.broker.store.incidents import SqlIncidents
from certplane.broker.store.issued import SqlIssuedCertificates
from certplane.broker.store.members import SqlMemberStore
from certplane.broker.store.order_listing import SqlOrderListing
from certplane.broker.store.orders import SqlKeyLedger, SqlOrderStore
from certplane.broker.store.outbox import SqlOutbox
from certplane.broker.store.policy_versions import SqlPolicyHistory
from certplane.broker.store.renewal_plans import SqlRenewalPlanStore
from certplane.broker.store.repeats import SqlRepeatCounts
from certplane.broker.store.retry_epoch import SqlEpochStore
from certplane.broker.store.roles import SqlRoleStore
from certplane.broker.store.rollouts import SqlRolloutStore
from certplane.broker.store.session import Database, Session
from certplane.broker.store.shared_orders import SqlSharedOrders
from certplane.broker.store.soundness import ServerSoundness, SqliteSoundness, corrupt
from certplane.broker.store.statements import Driver
from certplane.broker.store.successors import SqlSuccessors
from certplane.broker.store.upkeep import SqlUpkeep
from certplane.broker.store.watches import SqlServiceWatches
from certplane.broker.store.writer import Writer
from certplane.errors import OperationError
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.ids import TimeOrderedIds
from certplane.runtime.pool import BlockingPool

_BUSY: Final = timedelta(seconds=5)
"""How long the writer waits for another's lock before a group is refused."""


class _NoAudit(AuditFallback):
    """`AuditFallback` where auditing is switched off: no events reach it."""

    fail_open = True
    mirrors = False

    @override
    def rescue(self, records: Sequence[str], cause: Exception) -> None:
        pass

    @override
    def written(self, records: Sequence[str]) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Stores:
    """The broker's database through its ports."""

    orders: SqlOrderStore
    shared_orders: SqlSharedOrders
    order_listing: SqlOrderListing
    members: SqlMemberStore
    broker_requests: SqlBrokerRequests
    policy_history: SqlPolicyHistory
    accounts: SqlAccounts
    holds: SqlHoldStore
    budget: SqlBudget
    conditions: SqlConditionTeller
    retry_epoch: SqlEpochStore
    roles: SqlRoleStore
    certificates: SqlCertificateStore
    keys: SqlKeyLedger
    deny_list: SqlDenyList
    identities: SqlIdentityLedger
    renewal_plans: SqlRenewalPlanStore
    incidents: SqlIncidents
    rollouts: SqlRolloutStore
    enrollments: SqlEnrollmentStore
    host_removal: SqlHostRemoval
    fleet: SqlFleetStore
    issued: SqlIssuedCertificates
    watches: SqlServiceWatches
    successors: SqlSuccessors
    audit: SqlAuditLog
    audit_reader: SqlAuditReader
    audit_proof: SqlAuditProof
    repeats: SqlRepeatCounts
    upkeep: SqlUpkeep
    changes: SqlChangeFeed
    outbox: SqlOutbox
    stored_events: SqlStoredEvents
    soundness: SqliteSoundness | ServerSoundness
    writer: Writer

    def ready(self) -> bool:
        """Whether writes can be durable, and the deny-list and the identities are current."""
        return not self.writer.broken and self.changes.current


class _Reader(Database, Protocol):
    async def close(self) -> None: ...


@asynccontextmanager
async def open_stores(
    *,
    driver: Driver = "sqlite",
    path: Path | None = None,
    url: str = "",
    direct_url: str = "",
    audit: AuditFallback | None,
    exclusive: bool = True,
    clock: Clock | None = None,
    meter: Meter | None = None,
    busy_timeout: timedelta = _BUSY,
    new_id: Callable[[], str] | None = None,
) -> AsyncIterator[Stores]:
    """The stores, for the length of a `with` block; leaving it writes what waits.

    Args:
        driver: `sqlite` needs `path`, `postgresql` needs `url` (libpq's form).
        path: The database file; made if there is none.
        url: The database server, with credentials: it appears in no message.
        direct_url: The server past the pooler that `url` leads to; empty if there is none.
        audit: The audit mode (`certplane.broker.audit`); None writes no audit events at all.
        exclusive: The broker's own use: takes the lock, checks and migrates. Without it: a command beside a running
            broker, on a database that is there and current.
        clock: Times of orders, and the rhythm at which other programs' changes are looked for.
        meter: Gets `store_group`, the time a group took to be durable.
        busy_timeout: How long a group waits for a lock that another program holds.
        new_id: Makes order ids.

    Raises:
        ConfigurationError: the path, URL, or schema is wrong.
        OperationError: another broker has the store, it is corrupt, or it can't be reached.
    """
    clock = clock or SystemClock()
    meter = meter or NullMeter()
    fallback = audit or _NoAudit()
    async with AsyncExitStack() as stack:
        opener = BlockingPool("store-open", 1)
        with contextlib.closing(opener):
            if driver == "sqlite":
                if path is None:
                    raise ValueError("sqlite needs a path")
                session, reader, checkpointer = await opener.run(_open_sqlite, path, busy_timeout, exclusive, stack)
            else:
                session, reader = await opener.run(_open_postgresql, url, direct_url, busy_timeout, exclusive, stack)
                checkpointer = None
        stack.push_async_callback(reader.close)
        rows = AuditRows(reader.compiler, str(uuid.uuid4()), clock)
        commit = GroupCommit(session, rows, fallback)
        writer = Writer(
            commit,
            fallback,
            meter,
            clock,
            gate=checkpointer.gate if checkpointer else contextlib.nullcontext(),
            after_group=checkpointer.note if checkpointer else lambda _jobs, _size: None,
        )
        if checkpointer is not None:
            checkpointer.on_failed_sync = commit.stop
            checkpointer.start()
        writer.start()
        stack.push_async_callback(writer.close)
        stores = assemble(
            reader,
            writer,
            rows,
            audit=audit,
            clock=clock,
            meter=meter,
            new_id=new_id or TimeOrderedIds(clock),
            path=path if driver == "sqlite" else None,
            database=checkpointer.database if checkpointer else None,
        )
        stack.push_async_callback(stores.soundness.close)
        await stores.changes.look()
        if (trouble := stores.changes.trouble) is not None:  # none is served by a ledger that is empty only in memory
            unread = OperationError("the deny-list or the identities can't be read", remedy="see the log for the cause")
            raise corrupt("store.url" if path is None else str(path), trouble) or unread from trouble
        following = asyncio.create_task(stores.changes.run(remove=exclusive), name="change feed")
        stack.push_async_callback(_end, following)
        yield stores


def assemble(
    reader: Database,
    writer: Writer,
    rows: AuditRows,
    *,
    audit: AuditFallback | None,
    clock: Clock,
    meter: Meter,
    new_id: Callable[[], str],
    path: Path | None = None,
    database: int | None = None,
) -> Stores:
    """The stores over a database that is open; deny-list and identities are empty until `changes` looks.

    Args:
        reader: Reads committed rows.
        writer: Writes.
        rows: The audit log's, as the writer has them.
        audit: See `open_stores`.
        clock: See `open_stores`.
        meter: Counts.
        new_id: Makes order ids.
        path: SQLite's file, whose size is asked for.
        database: A descriptor of it (`SqliteSoundness`).
    """
    log = SqlAuditLog(reader, writer, rows, enabled=audit is not None)
    writer_id = rows.writer_id  # also this broker's among the others
    changes = ChangeLog(reader.compiler, writer_id, clock)
    feed = SqlChangeFeed(reader, writer, writer_id, clock)
    return Stores(
        orders=SqlOrderStore(reader, writer, log, clock, new_id, holder=writer_id, changes=changes),
        shared_orders=SqlSharedOrders(reader, writer, clock, holder=writer_id, changes=changes),
        order_listing=SqlOrderListing(reader),
        members=SqlMemberStore(reader, writer, clock, writer_id, changes),
        broker_requests=SqlBrokerRequests(reader, writer, clock, changes),
        policy_history=SqlPolicyHistory(reader, writer),
        accounts=SqlAccounts(reader, writer, clock, changes),
        holds=SqlHoldStore(reader, writer, changes),
        budget=SqlBudget(reader, writer, clock, changes),
        conditions=SqlConditionTeller(writer, changes),
        retry_epoch=SqlEpochStore(reader, writer, clock, writer_id, changes),
        roles=SqlRoleStore(reader, writer, clock, broker_id=writer_id, changes=changes),
        certificates=SqlCertificateStore(reader, writer, log, changes),
        keys=SqlKeyLedger(reader),
        deny_list=SqlDenyList(reader, writer, log, clock, changes=changes, feed=feed),
        identities=SqlIdentityLedger(reader, writer, log, meter, changes=changes, feed=feed),
        renewal_plans=SqlRenewalPlanStore(reader, writer, log, changes),
        incidents=SqlIncidents(reader, writer, log, changes),
        rollouts=SqlRolloutStore(reader, writer, log, clock, changes),
        enrollments=SqlEnrollmentStore(reader, writer, log),
        host_removal=SqlHostRemoval(reader, writer, log, changes),
        fleet=SqlFleetStore(reader, writer, log, broker_id=writer_id, changes=changes),
        issued=SqlIssuedCertificates(reader),
        watches=SqlServiceWatches(reader, writer, clock, writer_id, changes),
        successors=SqlSuccessors(reader),
        audit=log,
        audit_reader=SqlAuditReader(reader, clock),
        audit_proof=SqlAuditProof(reader, writer, rows, clock),
        repeats=SqlRepeatCounts(reader, writer, log, rows, audit or _NoAudit(), clock=clock, broker_id=writer_id),
        upkeep=SqlUpkeep(reader, writer, path),
        changes=feed,
        outbox=SqlOutbox(reader, writer, clock),
        stored_events=SqlStoredEvents(reader, writer, clock),
        soundness=ServerSoundness(reader) if path is None else SqliteSoundness(path, database),
        writer=writer,
    )


def _open_sqlite(
    path: Path, wait: timedelta, exclusive: bool, stack: AsyncExitStack
) -> tuple[Session, _Reader, Checkpointer | None]:
    """What must be closed is left on `stack`; the connection that writes is closed last, and so empties the log."""
    if exclusive:
        stack.callback(StateLock(path).release)
    session = sqlite.SqliteSession(open_writer(path, wait, exclusive=exclusive))
    checkpointer = database = None
    if exclusive:
        # Closed after every connection of ours: closing a descriptor of the file drops SQLite's locks on it.
        database = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, database)
    stack.callback(session.close)
    if database is not None:
        checkpointer = Checkpointer(sqlite.connect_to_copy_log(path), database)
        stack.callback(checkpointer.stop)
    return session, sqlite.SqliteReader(path), checkpointer


def _open_postgresql(
    url: str, direct_url: str, wait: timedelta, exclusive: bool, stack: AsyncExitStack
) -> tuple[Session, _Reader]:
    # Only who uses PostgreSQL loads its driver.
    from certplane.broker.store import postgresql, postgresql_reader  # noqa: PLC0415

    standing = postgresql_reader.Standing()
    key = "store.direct_url" if direct_url else "store.url"
    session = postgresql.PostgresqlSession(direct_url or url, wait, exclusive=exclusive, standing=standing, key=key)
    stack.callback(session.close)
    return session, postgresql_reader.PostgresqlReader(url, wait, standing=standing, pooled=bool(direct_url))


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
