"""The store behind its ports, over SQLite in memory, on SQLite and on PostgreSQL: what the contract suites run on."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from certplane.broker.audit import SpillFallback
from certplane.broker.events import AuditEvent, AuditEventType
from certplane.broker.members.model import Member
from certplane.broker.model import CertificateRecord, Order, OrderDraft
from certplane.broker.ports import DurableLimits
from certplane.broker.proof.sealing import Sealing
from certplane.broker.store import open_stores
from certplane.sandbox.postgres import PostgresCluster
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.support.memory_store import MemoryStores
from tests.support.query_plans import check_new, record_statements
from tests.support.waiting import HANG

record_statements()

_numbers = itertools.count(1)

NO_LIMITS = DurableLimits()
IMPATIENT = {"busy_timeout": timedelta(milliseconds=300)}

_REFUSE_ON_POSTGRESQL = """
CREATE FUNCTION refuse_{table}() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'no space for this'; END $$;
CREATE TRIGGER refuse_{table} BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_{table}();
"""
_REFUSE_ON_SQLITE = """
CREATE TRIGGER refuse_{table} BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'no space for this'); END;
"""


@dataclass(frozen=True)
class StorePlace:
    """Where a store is: a kind (`memory`, `sqlite`, `postgresql`), and a path or URL."""

    kind: str
    path: Path
    url: str = ""

    @asynccontextmanager
    async def open(self, clock: ManualClock, failure_mode: Any = "fail_closed", **settings: Any) -> AsyncIterator[Any]:
        """The real stores at this place; `settings` as `open_stores` takes them.

        A lock is waited for as long as it takes, a database's that is still closing too; where one stays, a test gives
        `IMPATIENT`.
        """
        settings.setdefault("audit", SpillFallback(failure_mode, self.spill_path))
        settings.setdefault("busy_timeout", timedelta(seconds=HANG))
        async with open_stores(driver=self.kind, path=self.path, url=self.url, clock=clock, **settings) as stores:
            yield stores

    @property
    def spill_path(self) -> Path:
        return self.path.with_name("spill.jsonl")

    def execute(self, sql: str) -> None:
        """Run a script at the database, past the store."""
        if self.kind == "sqlite":
            connection = sqlite3.connect(self.path, isolation_level=None)
            connection.executescript(sql)
            connection.close()
        else:
            with psycopg.connect(self.url, autocommit=True) as server:
                server.execute(sql.encode())

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query at the database, past the store."""
        if self.kind == "sqlite":
            with contextlib.closing(sqlite3.connect(self.path)) as connection:
                return connection.execute(sql).fetchall()
        with psycopg.connect(self.url) as server:
            return server.execute(sql.encode()).fetchall()

    @contextmanager
    def refusing_rows(self, table: str) -> Iterator[None]:
        """The database takes no row into `table`."""
        sql = _REFUSE_ON_SQLITE if self.kind == "sqlite" else _REFUSE_ON_POSTGRESQL
        self.execute(sql.format(table=table))
        yield
        if self.kind == "sqlite":
            self.execute(f"DROP TRIGGER refuse_{table}")
        else:
            self.execute(f"DROP TRIGGER refuse_{table} ON {table}; DROP FUNCTION refuse_{table}")


@dataclass
class StoreHarness:
    """An open store, and what a test needs to fill it."""

    place: StorePlace
    clock: ManualClock
    stores: Any
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 1_000_000)))

    @contextmanager
    def audit_broken(self) -> Iterator[None]:
        """No audit event can be written, and no repeated one counted."""
        if self.place.kind == "memory":
            self.stores.database.audit_down = True
            yield
            self.stores.database.audit_down = False
            return
        with self.place.refusing_rows("audit_events"), self.place.refusing_rows("audit_repeats"):
            yield

    def event(self, event_type: AuditEventType = AuditEventType.CERTIFICATE_AUTHORIZED, **values: Any) -> AuditEvent:
        return AuditEvent(f"event-{next(self.numbers):06d}", self.clock.now(), event_type, **values)

    async def event_ids(self) -> list[object]:
        return [record["event_id"] for record in await self.stores.audit.tail(1000)]

    async def seal(self) -> None:
        """Give the own chain of audit events a checkpoint, as a broker does every few minutes."""
        await Sealing(self.stores.audit_proof, self.clock, None, FakeMeter()).seal_own()

    def draft(self, **values: Any) -> OrderDraft:
        return draft(**values)

    async def open_order(self, *, limits: DurableLimits = NO_LIMITS, **values: Any) -> Order:
        order: Order = (await self.stores.orders.open_order(draft(**values), limits, [])).order
        return order

    async def issue(self, *, key: str = "", lasts: timedelta = timedelta(days=90), **values: Any) -> CertificateRecord:
        """A finished order's certificate."""
        number = next(self.numbers)
        order = await self.open_order(public_key_sha256=key or f"key-{number}", **values)
        record = certificate(order, f"certificate-{number:06d}", self.clock.now(), lasts)
        await self.stores.orders.finish_order(order, record, [])
        return record


def draft(**values: Any) -> OrderDraft:
    return OrderDraft(
        **{
            "identity": "spiffe://example.org/host/web1",
            "profile": "web",
            "profile_hash": "9f86d081",
            "dns_names": ("*.example.org", "example.org"),
            "public_key_sha256": "key-a",
            "csr_der": b"\x30\x00csr",
            "issuer": "acme",
            "request_id": "request-1",
            **values,
        }
    )


def certificate(order: Order, certificate_id: str, now: datetime, lasts: timedelta) -> CertificateRecord:
    return CertificateRecord(
        certificate_id=certificate_id,
        order_id=order.order_id,
        identity=order.identity,
        profile=order.profile,
        profile_hash=order.profile_hash,
        issuer=order.issuer,
        dns_names=order.dns_names,
        public_key_sha256=order.public_key_sha256,
        serial_number="3e7" + certificate_id[-6:],
        certificate_pem="-----BEGIN CERTIFICATE-----\nleaf\n-----END CERTIFICATE-----\n",
        chain_pem="-----BEGIN CERTIFICATE-----\nissuer\n-----END CERTIFICATE-----\n",
        not_before=now,
        not_after=now + lasts,
        renew_time=now + lasts * 2 / 3,
        create_time=now,
        acme_order_url="https://ca.example/order/1",
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SQLite's file of an empty store: whoever begins with a copy of it waits for no migration."""
    path = tmp_path_factory.mktemp("migrated") / "broker.db"
    async with StorePlace("sqlite", path).open(ManualClock()):
        pass
    return path


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def migrated_database(postgres: PostgresCluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """PostgreSQL's database of an empty store, in the same way."""
    name = f"migrated_{os.getpid()}"
    url = await postgres.create_database(name)
    async with StorePlace("postgresql", tmp_path_factory.mktemp("migrated") / "none.db", url).open(ManualClock()):
        pass
    return name


@pytest_asyncio.fixture
async def migrated_url(postgres: PostgresCluster, migrated_database: str) -> AsyncIterator[str]:
    """The URL of a database with an empty store, of the test's own."""
    name = f"store_{next(_numbers)}_{os.getpid()}"
    yield await postgres.create_database(name, template=migrated_database)
    await postgres.drop_database(name)


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def store_place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePlace:
    """Each kind of store in turn, with its schema."""
    path = tmp_path / "broker.db"
    if request.param == "sqlite":
        shutil.copy2(request.getfixturevalue("migrated_file"), path)
    url = request.getfixturevalue("migrated_url") if request.param == "postgresql" else ""
    return StorePlace(request.param, path, url)


@pytest.fixture
def failure_mode() -> str:
    """The audit mode of `store`; a test overrides it by parametrizing."""
    return "fail_closed"


@pytest_asyncio.fixture
async def store(store_place: StorePlace, failure_mode: Callable[[], str]) -> AsyncIterator[StoreHarness]:
    """An open, empty store of each kind; each statement that a test was the first to need is an index search."""
    clock = ManualClock()
    if store_place.kind == "memory":
        yield StoreHarness(store_place, clock, MemoryStores.open(clock, failure_mode=failure_mode))  # type: ignore[arg-type]
    else:
        async with store_place.open(clock, failure_mode) as stores:
            yield StoreHarness(store_place, clock, stores)
    check_new(store_place.kind, store_place.url)


@pytest_asyncio.fixture
async def other(store: StoreHarness) -> AsyncIterator[StoreHarness]:
    """Another broker's store over the same database."""
    if store.place.kind == "memory":
        stores = MemoryStores.over(store.stores.database)
        store.stores.database.stores.orders._new_id = lambda: f"other-{next(store.numbers):06d}"
        yield StoreHarness(store.place, store.clock, stores, store.numbers)
        return
    async with store.place.open(store.clock, exclusive=False) as stores:
        yield StoreHarness(store.place, store.clock, stores, store.numbers)


def member(store: StoreHarness, **facts: Any) -> Member:
    """What the broker of a store says of itself."""
    return Member(
        broker_id=store.stores.members.broker_id,
        name="machine",
        address="[::]:8443",
        version="1",
        start_time=store.clock.now(),
        policy_hash="policy",
        trust_hash="trust",
        configuration_hash="configuration",
        **facts,
    )
