"""`certplane-broker store copy`: SQLite to PostgreSQL and back, every row, or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from sqlalchemy import select

from certplane.broker import copy_command
from certplane.broker.accounts.model import Account
from certplane.broker.model import DenyEntry
from certplane.broker.settings import BrokerSettings, load_settings
from certplane.broker.store import copying
from certplane.broker.store.schema import metadata
from certplane.errors import CertplaneError, OperationError
from tests.fakes.clock import ManualClock
from tests.support.audit_log import verified
from tests.support.broker_files import BrokerFiles
from tests.support.old_data import make_sqlite
from tests.support.stores import StoreHarness, StorePlace
from tests.support.waiting import HANG, blocking_until

pytestmark = pytest.mark.integration


class Copies:
    """Configurations of one database each, and copies between them."""

    def __init__(self, folder: Path, url: str) -> None:
        self._files = BrokerFiles(folder)
        self.folder = folder
        self.sqlite = StorePlace("sqlite", folder / "broker.db")
        self.postgresql = StorePlace("postgresql", folder / "none.db", url)
        self.back = StorePlace("sqlite", folder / "back.db")
        self.said: list[str] = []

    def configuration(self, place: StorePlace) -> Path:
        made = {**self._files.settings}
        key = {"path": str(place.path)} if place.kind == "sqlite" else {"url": place.url}
        made["store"] = {"driver": place.kind, **key}
        made["audit"] = {"spill_path": str(self.folder / "spill.jsonl")}
        path = self.folder / f"{place.kind}-{place.path.name}.yml"
        path.write_text(yaml.safe_dump(made))
        return path

    def settings(self, place: StorePlace) -> BrokerSettings:
        return load_settings(self.configuration(place))

    async def copy(self, source: StorePlace, target: StorePlace) -> list[dict[str, Any]]:
        ends = [await copy_command.place(self.settings(place)) for place in (source, target)]
        return await asyncio.to_thread(copy_command.copy_store, *ends, self.said.append)

    async def refusal(self, source: StorePlace, target: StorePlace) -> str:
        with pytest.raises(CertplaneError) as caught:
            await self.copy(source, target)
        return str(caught.value)


@pytest.fixture
def copies(tmp_path: Path, postgres_url: str) -> Copies:
    return Copies(tmp_path, postgres_url)


async def fill(place: StorePlace) -> None:
    """Some of everything that a contract suite's harness makes, with texts and octets of all kinds."""
    async with place.open(clock := ManualClock()) as stores:
        store = StoreHarness(place, clock, stores)
        for number in range(5):
            await store.issue(key=f"key-{number}")
        await store.open_order(public_key_sha256="key-open", csr_der=bytes(range(256)))
        await stores.deny_list.deny(DenyEntry(name="b\u00fccher.example", reason='tab\t, \\ and "'), [store.event()])
        await stores.deny_list.deny(DenyEntry(name="zz.example"), [store.event()])
        await stores.deny_list.allow(DenyEntry(name="zz.example"), [store.event()])
        await stores.accounts.change(None, Account("default", "https://ca.example", "a" * 64, bytes(range(256))))


def all_rows(place: StorePlace) -> dict[str, list[tuple[Any, ...]]]:
    return {table.name: sorted(place.query(str(select(table))), key=repr) for table in metadata.sorted_tables}


def is_empty(url: str) -> bool:
    with psycopg.connect(url) as server:
        query = "SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
        return server.execute(query).fetchone() == (0,)


async def test_every_row_there_and_back_again(copies: Copies) -> None:
    """PostgreSQL has what SQLite had, and a new SQLite file what PostgreSQL had; each copy is an audit event."""
    await fill(copies.sqlite)
    before = all_rows(copies.sqlite)
    grown = {"audit_events": None, "audit_chains": None}
    rows = await copies.copy(copies.sqlite, copies.postgresql)
    assert {row["table"]: row["rows"] for row in rows} == {name: len(found) for name, found in before.items()}
    there = all_rows(copies.postgresql)
    (event,) = set(there["audit_events"]) - set(before["audit_events"])
    assert event[-1] == "store_copied"
    assert {**there, **grown} == {**before, **grown}
    assert any(line.startswith("orders: 6 rows") for line in copies.said)
    again = await copies.copy(copies.postgresql, copies.back)
    back = all_rows(copies.back)
    assert {**back, **grown} == {**before, **grown}
    assert len(back["audit_events"]) == len(before["audit_events"]) + 2
    hashes = [{row["table"]: row["sha256"] for row in each if row["table"] not in grown} for each in (rows, again)]
    assert hashes[0] == hashes[1]
    assert copies.back.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("target", ["postgresql", "back"])
async def test_the_target_numbers_on(copies: Copies, target: str) -> None:
    """Numbers that were given are never given again, also those of rows that are gone."""
    await fill(copies.sqlite)
    if target == "back":
        await copies.copy(copies.sqlite, copies.postgresql)
        await copies.copy(copies.postgresql, copies.back)
    else:
        await copies.copy(copies.sqlite, copies.postgresql)
    place = getattr(copies, target)
    async with place.open(ManualClock()) as stores:
        store = StoreHarness(place, ManualClock(), stores)
        await stores.deny_list.deny(DenyEntry(name="new.example"), [store.event(reason="new")])
        newest, last = (await stores.audit.tail(2))[::-1]
        assert (newest["reason"], last["event_type"]) == ("new", "store_copied")
        found, result = await verified(store, [])
        assert (found, result.unchained_event_count) == ([], 0), "the copy's event is in a chain too"
    assert place.query("SELECT entry_id FROM deny_entries WHERE name = 'new.example'") == [(3,)]


async def test_a_copy_serves(copies: Copies) -> None:
    """A broker's store over the copy has the orders, certificates and the deny-list, and goes on with them."""
    await fill(copies.sqlite)
    async with copies.sqlite.open(ManualClock()) as stores:
        (order,) = await stores.orders.unfinished_orders()
    await copies.copy(copies.sqlite, copies.postgresql)
    async with copies.postgresql.open(ManualClock()) as stores:
        assert await stores.orders.unfinished_orders() == [order]
        assert stores.deny_list.denied("b\u00fccher.example", "", "") is not None
        store = StoreHarness(copies.postgresql, ManualClock(), stores)
        joined = await store.open_order(public_key_sha256="key-open", csr_der=bytes(range(256)))
        assert joined.order_id == order.order_id


# What is refused


async def test_a_running_broker_is_refused(copies: Copies) -> None:
    """Neither a source nor a target that a broker has open is touched."""
    await fill(copies.sqlite)
    async with copies.sqlite.open(ManualClock()):
        assert "another broker" in await copies.refusal(copies.sqlite, copies.postgresql)
    assert is_empty(copies.postgresql.url)
    async with copies.postgresql.open(ManualClock()):
        assert "a broker uses" in await copies.refusal(copies.sqlite, copies.postgresql)
        assert "a broker uses" in await copies.refusal(copies.postgresql, copies.back)


async def test_a_target_with_anything_in_it_is_refused(copies: Copies) -> None:
    """Another's table, or a broker's database however young: what to do is said, nothing is changed."""
    await fill(copies.sqlite)
    copies.postgresql.execute("CREATE TABLE mine (id integer)")
    said = await copies.refusal(copies.sqlite, copies.postgresql)
    assert "there is something in the target database" in said
    assert "createdb" in said
    copies.postgresql.execute("DROP TABLE mine")
    await copies.copy(copies.sqlite, copies.postgresql)
    assert "there is something" in await copies.refusal(copies.sqlite, copies.postgresql)
    await fill(copies.back)
    assert "there is something" in await copies.refusal(copies.sqlite, copies.back)


async def test_an_older_schema_is_refused(copies: Copies) -> None:
    """The remedy is one start of this version's broker."""
    make_sqlite(copies.sqlite.path)
    said = await copies.refusal(copies.sqlite, copies.postgresql)
    assert "start certplane-broker of this version once" in said
    assert is_empty(copies.postgresql.url)


async def test_a_source_that_is_not_there_is_refused(copies: Copies) -> None:
    """Nothing is made at its place."""
    assert "there is no such database" in await copies.refusal(copies.sqlite, copies.postgresql)
    assert not copies.sqlite.path.exists()


async def test_events_that_wait_in_the_spill_file_are_not_left_behind(copies: Copies) -> None:
    """They are rows to be: a start takes them in first."""
    await fill(copies.sqlite)
    (copies.folder / "spill.jsonl").write_text("{}\n")
    assert "audit events wait here" in await copies.refusal(copies.sqlite, copies.postgresql)


async def test_a_row_that_postgresql_can_not_hold_is_named(copies: Copies) -> None:
    """NUL in a text: the table and the cause, and nothing stays."""
    await fill(copies.sqlite)
    with contextlib.closing(sqlite3.connect(copies.sqlite.path)) as source, source:
        source.execute("UPDATE keys SET identity = 'nul' || char(0) WHERE public_key_sha256 = 'key-1'")
    said = await copies.refusal(copies.sqlite, copies.postgresql)
    assert said.startswith("keys: a row from 1 to")
    assert "NUL" in said
    assert is_empty(copies.postgresql.url)


async def test_a_copy_that_is_not_the_same_is_undone(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that stores something else than was read gets nothing."""
    await fill(copies.sqlite)
    copy_rows = copying.PostgresqlDatabase.add

    def losing(self: copying.PostgresqlDatabase, table: Any, rows: Any) -> None:
        copy_rows(self, table, rows)
        if table.name == "keys":
            self._connection.execute("UPDATE keys SET first_use_time = 1 WHERE public_key_sha256 = 'key-1'")

    monkeypatch.setattr(copying.PostgresqlDatabase, "add", losing)
    said = await copies.refusal(copies.sqlite, copies.postgresql)
    assert said.startswith("keys: 6 rows read, SHA-256")
    assert is_empty(copies.postgresql.url)


def program(copies: Copies, source: StorePlace, target: StorePlace) -> list[str]:
    command = [sys.executable, "-m", "certplane.broker", "-c", str(copies.configuration(source)), "store", "copy"]
    return [*command, "--to", str(copies.configuration(target))]


def test_the_program_tells_what_it_copied(copies: Copies) -> None:
    """Progress is on standard error, the tables with their hashes are on standard output."""
    asyncio.run(fill(copies.sqlite))
    command = program(copies, copies.sqlite, copies.postgresql)
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert (done.returncode, "certplane-broker: orders: 6 rows" in done.stderr) == (0, True), done.stderr
    assert '"table": "certificates", "rows": 5' in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert again.returncode == 2
    assert len(again.stderr.splitlines()) == 1
    assert "there is something in the target database" in again.stderr


@pytest.mark.parametrize("target", ["postgresql", "back"])
def test_a_kill_in_the_middle_leaves_the_target_empty(copies: Copies, target: str) -> None:
    """Killed while rows go over: the target takes the next copy, whole; the source is as it was."""
    asyncio.run(fill(copies.sqlite))
    with contextlib.closing(sqlite3.connect(copies.sqlite.path)) as source, source:
        rows = ((f"bulk-{number:06d}", number, "x" * 500) for number in range(150_000))
        source.executemany("INSERT INTO audit_events (event_id, create_time, record) VALUES (?, ?, ?)", rows)
    place = getattr(copies, target)
    log = copies.folder / "copy.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(program(copies, copies.sqlite, place), stdout=output, stderr=output) as process,
    ):
        blocking_until(lambda: "audit_events: 100000 rows so far" in log.read_text())
        process.kill()

    def copied() -> list[dict[str, Any]] | None:
        with contextlib.suppress(OperationError):  # the server takes a moment to see that the connection is gone
            return asyncio.run(copies.copy(copies.sqlite, place))
        return None

    found = {row["table"]: row["rows"] for row in blocking_until(copied)}
    assert found["audit_events"] > 150_000
