"""What every statement of the store keeps: it is an index search on SQLite and on PostgreSQL (`query_plans`).

The other contract suites look at the statements that are compiled only when they are needed, each at its test's end.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from certplane.broker.store import schema
from certplane.broker.store.cells import CERTIFICATE
from certplane.broker.store.statements import Statement
from tests.fakes.clock import ManualClock
from tests.support.query_plans import (
    ALLOWED,
    collecting,
    postgresql_to_explain,
    scans,
    sqlite_to_explain,
    steps,
)
from tests.support.stores import StorePlace

INDEXES = sorted(str(index.name) for table in schema.metadata.sorted_tables for index in table.indexes)
STAND_INS = {
    "ix_broker_requests_create_time", "ix_budget_waits_order_id", "ix_certificates_cached", "ix_certificates_create_time", "ix_certificates_identity",
    "ix_orders_end_time", "ix_orders_identity", "ix_orders_identity_profile", "ix_orders_profile", "ix_orders_spent",
    "ix_policy_versions_hash", "ix_renewal_plans_check", "ix_renewal_plans_host", "ix_renewal_requests_request_id", "ix_rollout_items_place", "uq_orders_lane", "uq_orders_open",
}  # fmt: skip
"""Where another index begins with the same column, or has it (PostgreSQL goes through the whole key of the requests), or
the newest row is found from the end of the key (of policy versions): a statement without one of these is slower, and no
scan."""


@dataclass
class Planning:
    """A database that makes plans, and the statements that stores of its kind always compile."""

    database: Any
    statements: list[Statement]

    def scans(self) -> list[str]:
        return scans(self.database, self.statements)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePlace:
    """Where a database of each kind is made."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    return StorePlace(request.param, tmp_path / "broker.db", url)


@pytest_asyncio.fixture
async def planning(place: StorePlace) -> AsyncIterator[Planning]:
    """Of each kind."""
    with collecting(place.kind) as statements:
        async with place.open(ManualClock()):
            pass
    with postgresql_to_explain(place.url) if place.url else sqlite_to_explain() as database:
        yield Planning(database, statements)


async def test_every_statement_is_an_index_search(planning: Planning) -> None:
    """However large a table becomes, no call and no chore reads it from end to end."""
    assert len(planning.statements) > 60
    assert planning.scans() == []


async def test_each_allowed_scan_is_one(planning: Planning, place: StorePlace) -> None:
    """An allowance that nothing needs any more, in either database, would hide the next scan."""
    whole = {
        allowed
        for statement in planning.statements
        for step in steps(planning.database, statement)
        if step.whole
        for allowed in ALLOWED
        if allowed.of in step.of and allowed.sql in statement.sql
    }
    assert {allowed for allowed in ALLOWED if place.kind in allowed.drivers} == whole


async def test_each_index_answers_a_statement(planning: Planning) -> None:
    """One that answers none costs each write and is missed by nobody."""
    used = {name for one in planning.statements for step in steps(planning.database, one) for name in step.of}
    assert sorted(set(INDEXES) - used - {"uq_orders_open", "uq_orders_lane"}) == []


@pytest.mark.parametrize("index", [index for index in INDEXES if index not in STAND_INS])
async def test_a_missing_index_is_noticed(planning: Planning, index: str) -> None:
    """Without one a statement reads a table from end to end, and is found."""
    planning.database.execute(f"DROP INDEX {index}")
    assert planning.scans() != []


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        pytest.param("certificates.profile_hash = ", "ix_certificates_cached", id="answer from the cache"),
        pytest.param("next_check_time IS NULL", "ix_renewal_plans_check", id="certificate never asked about"),
        pytest.param("next_check_time <= ", "ix_renewal_plans_check", id="certificate to be asked about"),
        pytest.param("orders.retry_time > ", "ix_orders_key", id="failed order of a key"),
    ],
)
async def test_where_two_indexes_fit_the_narrow_one_is_taken(planning: Planning, sql: str, index: str) -> None:
    """An identity may have any number of certificates and orders: its own index would grow with them."""
    found = [one for one in planning.statements if sql in one.sql and one.sql.startswith("SELECT")]
    assert found
    for statement in found:
        assert any(index in step.of for step in steps(planning.database, statement))


async def test_what_is_kept_of_a_certificates_row_never_changes_there(planning: Planning) -> None:
    """`find_cached` keeps records: of all columns that any statement changes, its narrow read asks for by what it says.

    `revocation_reason` and `withdrawn` change with `revoke_time` alone, and that is its condition. `forget_time` is in no
    record.
    """
    set_ = re.compile(r"UPDATE certificates SET (.*) WHERE ", re.DOTALL)
    changes = [found[1] for one in planning.statements if (found := set_.match(one.sql)) is not None]
    columns = {name for change in changes for name in re.findall(r"(?:^|, )(\w+)\s?=", change)}
    assert columns == {"deliver_time", "revoke_time", "revocation_reason", "withdrawn", "forget_time"}
    assert "forget_time" not in CERTIFICATE.names
    assert [change for change in changes if "withdrawn" in change or "reason" in change] == [
        change for change in changes if "revoke_time=" in change.replace(" ", "")
    ]
    inserted = [one.sql for one in planning.statements if one.sql.startswith("INSERT INTO certificates ")]
    assert inserted
    assert not any("ON CONFLICT" in sql for sql in inserted)
