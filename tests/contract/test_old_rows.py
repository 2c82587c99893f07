"""Rows that 452d001 wrote, in SQLite and in PostgreSQL: they are migrated, and each is read as what it was.

Compared with the columns as they stood before anything newer touched them.
"""

import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql
from psycopg.rows import dict_row

from certplane.broker.audit import import_spill
from certplane.broker.ports import CertificateQuery
from tests.fakes.clock import ManualClock
from tests.support.old_data import DATA, make_postgresql, make_sqlite, missing, plain
from tests.support.stores import StorePlace

Rows = Mapping[str, list[dict[str, Any]]]

_TABLES = (
    "orders", "certificates", "renewal_plans", "keys", "deny_entries", "identities", "host_streams", "report_sequences", "certificate_statuses", "renewal_requests", "audit_events",
)  # fmt: skip
_STATUS = (
    "name", "state", "profile", "dns_names", "failed_step", "issued", "installed", "served", "renew_time",
    "renew_reason", "last_error", "request_failures", "activation_failures", "next_attempt_time", "activate_time",
    "update_time",
)  # fmt: skip
"""What the members of a status are, which 452d001 stored by their place."""
_HELD = ("serial_number", "not_before", "not_after", "certificate_id", "version", "observe_time")
_USE = ("issuer", "serial_number", "not_before", "time", "source_ip")
_TXT_RECORD = ("zone", "name", "value", "record_id", "credentials")


class OldStore:
    """The store of an old database, opened by the code of today, and what the tables held before."""

    def __init__(self, stores: Any, rows: Rows, clock: ManualClock) -> None:
        self.stores = stores
        self.rows = rows
        self.clock = clock

    def of(self, table: str, **facts: str) -> list[dict[str, Any]]:
        return [row for row in self.rows[table] if facts.items() <= row.items()]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePlace:
    """Where a database of each kind is, as 452d001 left it."""
    if request.param == "sqlite":
        make_sqlite(tmp_path / "broker.db")
        return StorePlace("sqlite", tmp_path / "broker.db")
    url = request.getfixturevalue("postgres_url")
    make_postgresql(url)
    return StorePlace("postgresql", tmp_path / "broker.db", url)


@pytest_asyncio.fixture
async def old(place: StorePlace) -> AsyncIterator[OldStore]:
    """The store there, opened."""
    rows = _rows_of(place)
    clock = ManualClock(datetime(2026, 11, 28, 10, tzinfo=UTC))
    async with place.open(clock) as stores:
        yield OldStore(stores, rows, clock)


def _rows_of(place: StorePlace) -> Rows:
    if place.kind == "postgresql":
        with psycopg.connect(place.url, row_factory=dict_row) as server:
            return {
                table: server.execute(sql.SQL("TABLE {}").format(sql.Identifier(table))).fetchall() for table in _TABLES
            }
    connection = sqlite3.connect(place.path)
    connection.row_factory = sqlite3.Row
    rows = {table: [dict(row) for row in connection.execute(f"SELECT * FROM {table}")] for table in _TABLES}  # noqa: S608 - names from above
    connection.close()
    return rows


def _named(names: tuple[str, ...], values: list[Any] | None) -> dict[str, Any] | None:
    return None if values is None else dict(zip(names, values, strict=True))


def _json(row: dict[str, Any], *columns: str, through: Callable[[Any], Any] = lambda value: value) -> dict[str, Any]:
    """The row with the values of its JSON columns."""
    return {**row, **{name: row[name] and through(json.loads(row[name])) for name in columns}}


def assert_says(expected: Any, found: Any) -> None:
    assert missing(expected, plain(found)) == []


async def test_orders(old: OldStore) -> None:
    """Issued, failed with the CA's problem documents, and open with their TXT records, in every column."""
    assert {row["state"] for row in old.rows["orders"]} == {"ISSUED", "FAILED", "FINALIZING", "VALIDATING"}
    for row in old.rows["orders"]:
        expected = _json(row, "dns_names", "txt_records", "error")
        del expected["names_sha256"], expected["end_time"]
        if expected["txt_records"]:
            expected["txt_records"] = [_named(_TXT_RECORD, fields) for fields in expected["txt_records"]]
        if expected["error"]:
            names = ("type", "detail", "status", "identifier")
            expected["error"]["problems"] = [_named(names, problem) for problem in expected["error"]["problems"]]
        assert_says(expected, await old.stores.orders.get_order(row["order_id"]))


async def test_open_orders_are_picked_up(old: OldStore) -> None:
    """What a start takes up: those two that were open."""
    unfinished = [order.order_id for order in await old.stores.orders.unfinished_orders()]
    open_rows = [row for row in old.rows["orders"] if row["end_time"] is None]
    assert unfinished == [row["order_id"] for row in sorted(open_rows, key=lambda row: int(row["create_time"]))]
    assert {row["state"] for row in open_rows} == {"FINALIZING", "VALIDATING"}


async def test_certificates(old: OldStore) -> None:
    """Each by its id and in its holder's list; the revoked one says so."""
    for row in old.rows["certificates"]:
        found = await old.stores.certificates.get_certificate(row["certificate_id"])
        assert_says(_json(row, "dns_names"), found)
        page = await old.stores.certificates.list_certificates(CertificateQuery(row["identity"]))
        assert found in page
    assert [row["revocation_reason"] for row in old.rows["certificates"] if row["revoke_time"]] == ["keyCompromise"]


async def test_keys(old: OldStore) -> None:
    """Whose each key is, and that the compromised one stays blocked."""
    for row in old.rows["keys"]:
        use = await old.stores.keys.key_use(row["public_key_sha256"])
        assert (use.identity, use.blocked) == (row["identity"], row["block_time"] is not None)
    assert any(row["block_time"] for row in old.rows["keys"])


async def test_identities_and_denials(old: OldStore) -> None:
    """Who is active, who is contested by whom, and who is shut out."""
    known = {each.name: each for each in await old.stores.identities.identities()}
    assert known.keys() == {row["name"] for row in old.rows["identities"]}
    for row in old.rows["identities"]:
        expected = _json(row, "retired", "contest")
        active = {name: row["activate_time" if name == "time" else name] for name in _USE}
        assert_says(
            {
                "active": active,
                "newest": row["newest_not_before"],
                "retired": [_named(_USE, use) for use in expected["retired"] or []],
                "contest": _named(_USE, expected["contest"]),
                "displaced_count": row["displaced_count"],
            },
            known[row["name"]],
        )
    assert known["clone1.certplane.test"].contest is not None
    (entry,) = await old.stores.deny_list.entries()
    assert_says({key: value for key, value in old.rows["deny_entries"][0].items() if key != "entry_id"}, entry)


async def test_hosts(old: OldStore) -> None:
    """What each host said last of each of its certificates, its stream, and how far its reports were acknowledged."""
    hosts = {each.host: each for each in await old.stores.fleet.list_hosts()}
    assert hosts.keys() == {row["host"] for row in old.rows["host_streams"]}
    for row in old.rows["host_streams"]:
        host = row["host"]
        del row["directive_error"]
        row["facts"] = {"agent_version": row.pop("agent_version")}
        statuses = []
        for status in sorted(old.of("certificate_statuses", host=host), key=lambda each: str(each["name"])):
            said: dict[str, Any] = dict(zip(_STATUS, json.loads(status["status"]), strict=True))
            statuses.append({**said, **{name: _named(_HELD, said[name]) for name in ("issued", "installed", "served")}})
        (counted,) = old.of("report_sequences", host=host)
        found = hosts[host]
        assert_says({"stream": row, "acknowledged_sequence": counted["acknowledged_sequence"]}, found)
        assert_says(statuses, sorted(plain(found)["certificates"], key=lambda each: str(each["name"])))
    assert sum(len(host.certificates) for host in hosts.values()) == len(old.rows["certificate_statuses"])


async def test_revoked_certificates_of_hosts(old: OldStore) -> None:
    """Who holds what was revoked."""
    (row,) = [row for row in old.rows["certificates"] if row["revoke_time"]]
    (revoked,) = await old.stores.fleet.list_revoked(old.clock.now())
    expected = {"host": row["identity"], "serial_number": row["serial_number"], "revoke_time": row["revoke_time"]}
    assert_says({**expected, "reason": "keyCompromise"}, revoked)


async def test_renewal_plans_and_requests(old: OldStore) -> None:
    """When each certificate is to be renewed and who wants it; an operator's request is not made twice."""
    chosen = await old.stores.renewal_plans.in_force_of(
        [row["host"] for row in old.rows["renewal_plans"]], old.clock.now()
    )
    plans = {each.certificate_id: each.plan for each in chosen if each.plan is not None}
    assert plans.keys() == {row["certificate_id"] for row in old.rows["renewal_plans"]}
    for row in old.rows["renewal_plans"]:
        assert_says(row, plans[row["certificate_id"]])
    for row in old.rows["renewal_requests"]:
        found = await old.stores.renewal_plans.find_request(row["requester"], row["request_id"])
        names = ("request_id", "certificate_count", "changed_count", "last_renew_time")
        assert_says({name: row[name] for name in names}, found)


async def test_audit_events(old: OldStore) -> None:
    """Each record as it was written, in its order; and the spilled ones are taken in, once."""
    records = [json.loads(row["record"]) for row in sorted(old.rows["audit_events"], key=lambda row: row["sequence"])]
    assert list(await old.stores.audit.tail(10_000)) == records


async def test_spilled_events(old: OldStore, tmp_path: Path) -> None:
    """Those of a spill file are imported, whatever their text, and once."""
    spilled = [json.loads(line) for line in (DATA / "spill.jsonl").read_text().splitlines()]
    assert "\u2028" in spilled[1]["reason"]
    for imported in (2, 0):
        shutil.copy(DATA / "spill.jsonl", tmp_path / "spill.jsonl")
        assert await import_spill(tmp_path / "spill.jsonl", old.stores.audit, old.clock) == imported
    events = await old.stores.audit.tail(10_000)
    assert [event for event in events if event in spilled] == spilled
