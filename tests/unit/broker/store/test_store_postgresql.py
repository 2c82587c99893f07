"""How the PostgreSQL server is called; what it then does is the contract suites'."""

from __future__ import annotations

import asyncio
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from certplane.broker.model import OrderState
from certplane.broker.ports import OrderChange
from certplane.broker.store import servers
from certplane.broker.store.postgresql import PostgresqlSession
from certplane.broker.store.session import Fault, SqlError
from certplane.errors import OperationError, Reason, RefusalError
from tests.fakes.clock import ManualClock
from tests.support.stores import StoreHarness, StorePlace
from tests.support.waiting import HANG, until


@pytest.mark.parametrize(
    ("url", "idle"),
    [
        pytest.param("postgresql://u:p%40ss@db.example/certplane", "10", id="default"),
        pytest.param("postgresql://u:p%40ss@db.example/certplane?keepalives_idle=60", "60", id="the URL's own"),
    ],
)
def test_a_server_that_is_gone_without_a_word_is_noticed(monkeypatch: pytest.MonkeyPatch, url: str, idle: str) -> None:
    """The kernel watches the connection, or a write would hang for a quarter of an hour after a failover."""
    called: list[str] = []

    def connect(conninfo: str, **_options: object) -> None:
        called.append(conninfo)
        raise psycopg.OperationalError("nobody is there")

    monkeypatch.setattr(psycopg, "connect", connect)
    with pytest.raises(OperationError):
        PostgresqlSession(url, timedelta(seconds=5), exclusive=True)
    parameters = conninfo_to_dict(called[0])
    assert (parameters["host"], parameters["dbname"], parameters["password"]) == ("db.example", "certplane", "p@ss")
    assert (parameters["keepalives_idle"], parameters["tcp_user_timeout"]) == (idle, "20000")


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        pytest.param("postgresql://u@db.example/certplane", None, id="one host"),
        pytest.param("postgresql://u@db1.example:5432,db2.example:5433/certplane", "read-write", id="several"),
        pytest.param("postgresql://u@/certplane?hostaddr=192.0.2.1,192.0.2.2", "read-write", id="several addresses"),
        pytest.param("postgresql://u@a,b/certplane?target_session_attrs=primary", "primary", id="the URL's own"),
    ],
)
def test_of_several_hosts_the_one_that_can_be_written_is_wanted(
    monkeypatch: pytest.MonkeyPatch, url: str, wanted: str | None
) -> None:
    """A standby is of no use: libpq goes on to the next host."""
    called: list[str] = []

    def connect(conninfo: str, **_options: object) -> None:
        called.append(conninfo)
        raise psycopg.OperationalError("nobody is there")

    monkeypatch.setattr(psycopg, "connect", connect)
    with pytest.raises(OperationError):
        PostgresqlSession(url, timedelta(seconds=5), exclusive=True)
    assert conninfo_to_dict(called[0]).get("target_session_attrs") == wanted


@pytest.mark.integration
def test_a_statement_is_sent_with_the_server_s_placeholders(postgres_url: str) -> None:
    """In their order, however many; `%%` is a per cent sign, and a text for the server may hold either."""
    with closing(servers.connect(postgres_url, timedelta(seconds=5))) as connection:
        numbers = ", ".join(["%s::int"] * 300)
        found = servers.run(connection, f"SELECT %s::text, 'a' LIKE 'a%%', ARRAY[{numbers}]", ("$1 %s", *range(300)))
        assert found.fetchone() == ("$1 %s", True, list(range(300)))


@pytest.mark.integration
async def test_an_order_that_another_program_ends_meanwhile_stays_ended(postgres_url: str, tmp_path: Path) -> None:
    """A step of a running order waits for a command that is denying its identity, and then finds it ended."""
    place = StorePlace("postgresql", tmp_path / "x", postgres_url)
    async with place.open(clock := ManualClock()) as stores:
        order = await StoreHarness(place, clock, stores).open_order()

        def waits() -> bool:
            return bool(place.query("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))

        with psycopg.connect(postgres_url) as command:
            command.execute("UPDATE orders SET state = 'FAILED', end_time = 1")
            step = asyncio.create_task(stores.orders.change_order(order, OrderChange(state=OrderState.VALIDATING)))
            await until(waits, by=step)
        with pytest.raises(RefusalError) as caught:
            await step
        assert caught.value.refusal.reason is Reason.ORDER_NOT_FOUND
        found = await stores.orders.get_order(order.order_id)
        assert found is not None
        assert found.state is OrderState.FAILED


@pytest.mark.integration
def test_a_broker_that_stands_still_in_a_transaction_keeps_no_locks(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends its session: others can write what it had locked, and it is told that nothing was written."""
    monkeypatch.setattr(servers, "_STANDS_STILL", timedelta(milliseconds=200))
    with closing(PostgresqlSession(postgres_url, timedelta(seconds=HANG), exclusive=True)) as session:
        session.begin()
        session._run("INSERT INTO shared_values (name, value, change_time) VALUES ('epoch', 'mine', 1)")
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute("INSERT INTO shared_values (name, value, change_time) VALUES ('epoch', 'theirs', 2)")
            with pytest.raises(SqlError) as caught:
                session.commit()
            assert caught.value.fault is Fault.LOST
            session.begin()
            session.commit()
            assert other.execute("SELECT value FROM shared_values WHERE name = 'epoch'").fetchall() == [("theirs",)]
