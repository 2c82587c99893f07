"""How the PostgreSQL server is called; what it then does is the contract suites'."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from certplane.broker.store.postgresql import PostgresqlSession
from certplane.errors import OperationError


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
