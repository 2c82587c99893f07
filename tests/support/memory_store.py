"""The real stores over SQLite in memory, with scripted faults: what unit tests of their callers run on.

Every rule is the product's own: limits, first use, epochs, single flight of orders, what is audited. Different is only
where the rows are, and that a transaction is written at the moment it is asked for, in the event loop: its caller
learns of it a turn of the loop later, so that a test with a `ManualClock` never waits for a thread.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import sqlite3
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import Table
from typing_extensions import override

from certplane.broker.audit.fallback import FailureMode
from certplane.broker.events import AuditEvent
from certplane.broker.model import (
    CertificateRecord,
    ChangeKind,
    DenyEntry,
    EnrollmentReport,
    KeyUse,
    KnownIdentity,
    Order,
)
from certplane.broker.ports import AuditFallback, NullMeter
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.store import identities, order_rows, schema
from certplane.broker.store.audit_log import AuditRows
from certplane.broker.store.audit_records import EventRow, record_of
from certplane.broker.store.batch import Change, GroupCommit, Job
from certplane.broker.store.cells import CERTIFICATE, PLAN
from certplane.broker.store.fleet import SqlFleetStore
from certplane.broker.store.migrate import FoundSchema, migrate
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.session import Database, Fault, SqlError
from certplane.broker.store.sqlite import SqliteSession
from certplane.broker.store.statements import Compiler, Row, Statement
from certplane.broker.store.stores import Stores, assemble
from certplane.runtime.clock import Clock
from tests.fakes.faults import FaultScript

T = TypeVar("T")

_AUDIT_TABLES: Final = ("audit_events", "audit_repeats")


class _Connection(sqlite3.Connection):
    """Closes itself with the last who uses it: tests end in the middle of things. Python 3.13 warns of others."""

    def __del__(self) -> None:
        self.close()


def _connect(name: str = ":memory:") -> sqlite3.Connection:
    connection = sqlite3.connect(
        name, uri=True, isolation_level=None, check_same_thread=False, cached_statements=512, factory=_Connection
    )
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


@cache
def migrated() -> sqlite3.Connection:
    """A database that the migrations have made, once for all tests of a process."""
    name = f"file:{uuid.uuid4()}?mode=memory&cache=shared"
    connection = _connect(name)
    migrate("sqlite://", lambda: _connect(name), FoundSchema())
    return connection


class _SharedStatement(Statement):
    """A statement that copies of a store have in common."""

    def __deepcopy__(self, _memo: object) -> Statement:
        return self


class _Compiler(Compiler):
    @override
    def __call__(self, *arguments: Any) -> Statement:
        made = super().__call__(*arguments)
        return _SharedStatement(made.sql, made.names, made.constants)


class _Session(SqliteSession):
    """`Session` of a database that a test can take away."""

    def __init__(self, database: MemoryDatabase) -> None:
        super().__init__(database.connection)
        self._database = database

    @override
    def begin(self) -> None:
        self._database.check()
        super().begin()

    @override
    def execute(self, statement: Statement, arguments: Sequence[object]) -> int:
        self._database.check()
        return super().execute(statement, arguments)


class _Reader(Database):
    """`Database` over the connection that writes: between two turns of the loop everything is committed."""

    def __init__(self, database: MemoryDatabase, compiler: Compiler) -> None:
        self.compiler = compiler
        self._database = database
        self._session = SqliteSession(database.connection)

    @property
    @override
    def standing(self) -> int:
        return 0

    @override
    async def one(self, statement: Statement, values: Mapping[str, object]) -> Row | None:
        self._database.check()
        return self._session.one(statement, values)

    @override
    async def all(self, statement: Statement, values: Mapping[str, object]) -> list[Row]:
        self._database.check()
        return self._session.all(statement, values)


class _Writer:
    """The writer without its thread: each job is a group of its own."""

    def __init__(self, database: MemoryDatabase, commit: GroupCommit) -> None:
        self._database = database
        self._commit = commit

    @property
    def broken(self) -> str:
        return self._commit.broken

    async def write(
        self, change: Change[T], events: Sequence[EventRow], *, single: bool = False, locks: Sequence[int] = ()
    ) -> T:
        value: T = self._run(Job(change, events, None, single, locks))  # type: ignore[arg-type]  # nobody waits for it
        return value

    async def append(self, events: Sequence[EventRow]) -> None:
        if events:
            self._run(Job(None, events, None))  # type: ignore[arg-type]

    def _run(self, job: Job) -> Any:
        self._commit.run([job])
        if job.error is not None:
            raise job.error
        self._database.commits += 1
        return job.value


class _FleetStore(SqlFleetStore):
    """Streams that follow each other soon don't wait for more: that would be time that a `ManualClock` doesn't know."""

    _put_time = property(lambda _self: float("-inf"), lambda _self, _time: None)  # type: ignore[assignment]


class _Spill(AuditFallback):
    """`AuditFallback` whose spill file is a list."""

    def __init__(self, mode: FailureMode) -> None:
        self._fail_open = mode == "fail_open"
        self.records: list[str] = []

    @property
    @override
    def fail_open(self) -> bool:
        return self._fail_open

    @override
    def rescue(self, records: Sequence[str], cause: Exception) -> None:
        self.records += records

    @property
    @override
    def mirrors(self) -> bool:
        return False

    @override
    def written(self, records: Sequence[str]) -> None:
        pass


class MemoryDatabase:
    """Rows, the audit log, and the faults of both.

    `fork` copies everything as it is now, as a disk would be found after a power cut.

    Attributes:
        faults: By the name of a store's method.
        down: Whether the database answers nobody.
        commits: Transactions that were written.
    """

    def __init__(self, clock: Clock, *, failure_mode: FailureMode = "fail_closed") -> None:
        self.clock = clock
        self.failure_mode: FailureMode = failure_mode
        self.faults = FaultScript()
        self.down = False
        self.commits = 0
        self.connection = _connect()
        migrated().backup(self.connection)
        self._audit_down = False
        self._spill = _Spill(failure_mode)
        self.stores: Stores

    def connect(self) -> None:
        """Make the stores of another process: copies of some that were assembled once, since that takes 70 ms."""
        ids = itertools.count(1 + self._one("SELECT count(*) FROM orders"))
        reader = _Reader(self, _parts().compiler)
        rows = _parts().rows_of(self.clock)
        writer = _Writer(self, GroupCommit(_Session(self), rows, self._spill))
        self.stores = _parts().copy(reader, writer, rows, self._spill, self.clock, lambda: f"order-{next(ids):06d}")
        self.stores.fleet.__class__ = _FleetStore
        self.stores.upkeep.size = self._size  # type: ignore[method-assign]  # there is no file to look at
        run(self.stores.changes.look())

    async def _size(self) -> int:
        pages, page_size = self._one("PRAGMA page_count"), self._one("PRAGMA page_size")
        return int(pages * page_size)

    def fork(self) -> MemoryDatabase:
        """A database with the same rows and without the faults."""
        other = MemoryDatabase(self.clock, failure_mode=self.failure_mode)
        self.connection.backup(other.connection)
        other.audit_down = False
        other._spill.records += self._spill.records
        return other

    def check(self) -> None:
        """Raise what a database that is down makes a statement raise."""
        if self.down:
            raise SqlError(Fault.UNREACHABLE, "the database does not answer")

    @property
    def audit_down(self) -> bool:
        """Whether no event can be written; what follows is the failure mode's."""
        return self._audit_down

    @audit_down.setter
    def audit_down(self, down: bool) -> None:
        self._audit_down = down
        for table in _AUDIT_TABLES:
            self.connection.execute(f"DROP TRIGGER IF EXISTS refuse_{table}")
            if down:
                self.connection.execute(
                    f"CREATE TRIGGER refuse_{table} BEFORE INSERT ON {table} "
                    "BEGIN SELECT RAISE(ABORT, 'no space for this'); END"
                )

    # What is stored, whether the database is down or not.

    @property
    def events(self) -> list[AuditEvent]:
        """The audit log, oldest first."""
        rows = self._all("SELECT event_id, create_time, record, body FROM audit_events ORDER BY sequence")
        return [_event(record_of(*row)) for row in rows]

    @property
    def spilled(self) -> list[AuditEvent]:
        """The spill file."""
        return [_event(record) for record in self._spill.records]

    @property
    def counts(self) -> dict[str, AuditEvent]:
        """Repeated events while they are counted, by event_id."""
        rows = self._all("SELECT event_id, record FROM audit_repeats ORDER BY event_id")
        return {event_id: _event(record) for event_id, record in rows}

    @property
    def orders(self) -> dict[str, Order]:
        """All orders, oldest first."""
        return self._each("SELECT order_id FROM orders ORDER BY rowid", self.stores.orders.get_order)

    @property
    def certificates(self) -> dict[str, CertificateRecord]:
        """All certificates, oldest first."""
        return self._each(
            "SELECT certificate_id FROM certificates ORDER BY rowid", self.stores.certificates.get_certificate
        )

    @property
    def keys(self) -> dict[str, KeyUse]:
        """All keys, by their hash."""
        return self._each("SELECT public_key_sha256 FROM keys", self.stores.keys.key_use)

    @property
    def identities(self) -> dict[str, KnownIdentity]:
        """All identities, by name."""
        return {known.name: known for known in self._up(self.stores.identities.identities())}

    @property
    def denied(self) -> list[DenyEntry]:
        """The deny-list, oldest first."""
        return list(self._up(self.stores.deny_list.entries()))

    @property
    def plans(self) -> dict[str, RenewalPlan]:
        """All renewal plans, by the certificate's id."""
        rows = self._all(f"SELECT {', '.join(PLAN.names)} FROM renewal_plans WHERE cause <> ''")  # noqa: S608 - names of columns
        return {plan.certificate_id: plan for plan in map(PLAN.value, rows)}

    @property
    def reports(self) -> dict[str, EnrollmentReport]:
        """The last enrollment report of each identity."""
        rows = self._all("SELECT * FROM enrollment_reports")
        decode = msgspec.json.decode
        return {
            identity: EnrollmentReport(identity, version, tuple(map(tuple, decode(facts))), serial, from_micros(time))
            for identity, version, facts, serial, time in rows
        }

    @property
    def request_count(self) -> int:
        """How many renewals that operators asked for are known."""
        return self._one("SELECT count(*) FROM renewal_requests")

    # What another program, or time, has done to the rows.

    def put_order(self, order: Order) -> None:
        """Store an order as it is."""
        self._put(schema.orders, "order_id", order_rows._values(order))

    def put_certificate(self, record: CertificateRecord) -> None:
        """Store a certificate as it is."""
        self._put(schema.certificates, "certificate_id", CERTIFICATE.values(record))
        run(self.stores.renewal_plans.adopt(self.clock.now()))

    def put_key(self, public_key_sha256: str, use: KeyUse) -> None:
        """Store what is known of a key."""
        now = to_micros(self.clock.now())
        values = {
            "public_key_sha256": public_key_sha256,
            "identity": use.identity,
            "first_use_time": now,
            "block_time": now if use.blocked else None,
            "spend_time": now if use.spent else None,
        }
        self._put(schema.keys, "public_key_sha256", values)

    def put_identity(self, known: KnownIdentity) -> None:
        """Store an identity as it is, and have it heard of."""
        self._put(
            schema.identities, "name", dict(zip(schema.identities.c.keys(), identities._row(1, known), strict=True))
        )
        run(self.stores.changes.reread(ChangeKind.IDENTITY))

    def shut_out(self, entry: DenyEntry) -> None:
        """Add to the deny-list, have it heard of, and end no order."""
        time = to_micros(entry.create_time or self.clock.now())
        values = (entry.name, entry.issuer, entry.serial_number, entry.reason, time)
        self.connection.execute(
            "INSERT INTO deny_entries (name, issuer, serial_number, reason, create_time) VALUES (?, ?, ?, ?, ?)", values
        )
        run(self.stores.changes.reread(ChangeKind.DENY_ENTRY))

    def deny(self, entry: DenyEntry) -> None:
        """Shut out, as an operator's command does: open orders end."""
        run(self.stores.deny_list.deny(entry, ()))

    def let_in(self) -> None:
        """Empty the deny-list."""
        self.connection.execute("DELETE FROM deny_entries")
        run(self.stores.changes.reread(ChangeKind.DENY_ENTRY))

    def forget(self, table: str) -> None:
        """Lose all rows of a table."""
        self.connection.execute(f"DELETE FROM {table}")  # noqa: S608 - a name from a test

    def _put(self, table: Table, key: str, values: Mapping[str, object]) -> None:
        names = ", ".join(values)
        changes = ", ".join(f"{name} = excluded.{name}" for name in values if name != key)
        self.connection.execute(
            f"INSERT INTO {table.name} ({names}) VALUES ({', '.join('?' * len(values))}) "  # noqa: S608 - names of columns
            f"ON CONFLICT ({key}) DO UPDATE SET {changes}",
            tuple(values.values()),
        )

    def _all(self, sql: str) -> list[Row]:
        return self.connection.execute(sql).fetchall()

    def _one(self, sql: str) -> Any:
        return self._all(sql)[0][0]

    def _each(self, sql: str, get: Any) -> dict[str, Any]:
        return {name: self._up(get(name)) for (name,) in self._all(sql)}

    def _up(self, reading: Coroutine[Any, Any, T]) -> T:
        down, self.down = self.down, False
        try:
            return run(reading)
        finally:
            self.down = down


class _Parts:
    """Stores that were assembled once, to be copied."""

    def __init__(self) -> None:
        self.compiler = _Compiler("sqlite")
        self.rows = AuditRows(self.compiler, "", None)  # type: ignore[arg-type]  # those of each copy have them
        self._reader = _Nothing()
        self._reader.compiler = self.compiler
        self._writer, self._fallback, self._clock, self._new_id = (_Nothing() for _ in range(4))
        self._stores = assemble(
            self._reader,  # type: ignore[arg-type]  # all of them are replaced in each copy
            self._writer,  # type: ignore[arg-type]
            self.rows,
            audit=self._fallback,  # type: ignore[arg-type]
            clock=self._clock,  # type: ignore[arg-type]
            meter=NullMeter(),
            new_id=self._new_id,  # type: ignore[arg-type]
        )

    def rows_of(self, clock: Clock) -> AuditRows:
        """Audit rows of a writer of its own, over statements that were made once."""
        rows = copy.copy(self.rows)
        rows._chain = chain = copy.copy(rows._chain)
        chain.writer_id, chain._clock, chain.head = str(uuid.uuid4()), clock, None
        return rows

    def copy(
        self,
        reader: Database,
        writer: _Writer,
        rows: AuditRows,
        fallback: AuditFallback,
        clock: Clock,
        new_id: Any,
    ) -> Stores:
        """Stores of these parts, which have seen nothing yet."""
        same = {id(self.compiler): self.compiler, id(self.rows): rows}
        mine = (self._reader, self._writer, self._fallback, self._clock, self._new_id)
        memo: dict[int, Any] = {
            **same,
            **dict(zip(map(id, mine), (reader, writer, fallback, clock, new_id), strict=True)),
        }
        made = copy.deepcopy(self._stores, memo)
        writer_id = rows.writer_id
        for part in (made.changes, made.certificates._changes):
            part._writer_id = writer_id
        for part in (made.members, made.fleet, made.retry_epoch, made.watches):
            part.broker_id = writer_id
        made.orders.holder = made.shared_orders.holder = writer_id
        made.repeats._broker_id = made.roles._broker_id = writer_id
        return made


class _Nothing:
    """Stands for a part until there is one."""

    compiler: Compiler

    def now(self) -> None:
        """No time."""


@cache
def _parts() -> _Parts:
    return _Parts()


class _Faulty:
    """A store whose methods run with the faults of their names."""

    def __init__(self, store: object, faults: FaultScript) -> None:
        self._store = store
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*arguments: Any, **options: Any) -> Any:
            async with self._faults.around(name):
                return await method(*arguments, **options)

        return call


@dataclass(frozen=True, slots=True)
class MemoryStores(Stores):
    """The stores over a `MemoryDatabase`, with its faults."""

    database: MemoryDatabase

    @classmethod
    def over(cls, database: MemoryDatabase) -> MemoryStores:
        """The stores of a process that works with `database` from now on."""
        database.connect()
        faulty: dict[str, Any] = {
            field.name: _Faulty(getattr(database.stores, field.name), database.faults) for field in fields(Stores)
        }
        return cls(**faulty, database=database)

    @classmethod
    def open(cls, clock: Clock, *, failure_mode: FailureMode = "fail_closed") -> MemoryStores:
        """The stores of a new database."""
        return cls.over(MemoryDatabase(clock, failure_mode=failure_mode))


def run(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine that waits for nothing comes to, for callers that can't wait."""
    try:
        while True:
            assert work.send(None) is None, "a store in memory waits for nobody"  # it lets others run, at most
    except StopIteration as done:
        result: T = done.value
        return result


def _event(record: str) -> AuditEvent:
    return msgspec.json.decode(record, type=AuditEvent)
