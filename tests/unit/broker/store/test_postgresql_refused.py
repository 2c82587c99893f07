"""A PostgreSQL database that can't keep what the broker writes is refused at the start, with cause and remedy."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from certplane.broker.store.postgresql import PostgresqlSession, look_at
from certplane.errors import CertplaneError
from tests.support.old_data import make_postgresql
from tests.support.waiting import HANG, blocking_until

pytestmark = pytest.mark.integration

WAIT = timedelta(seconds=10)


class Server:
    """A server where databases and users are made for one test."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._made: list[tuple[str, str]] = []

    def execute(self, statement: sql.Composable, database: str = "") -> None:
        with closing(psycopg.connect(self.url(database) if database else self._url, autocommit=True)) as connection:
            connection.execute(statement)

    def database(self, name: str, options: str) -> str:
        self.execute(sql.SQL("CREATE DATABASE {} " + options).format(sql.Identifier(name)))
        self._made.append(("DATABASE", name))
        return self.url(name)

    def user(self, name: str) -> str:
        self.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        self._made.append(("ROLE", name))
        return name

    def url(self, database: str, user: str = "") -> str:
        parts = urlsplit(self._url)
        place = parts.netloc.rpartition("@")
        return parts._replace(path=f"/{database}", netloc=f"{user or place[0]}@{place[2]}").geturl()

    def close(self) -> None:
        for kind, name in sorted(self._made):  # databases before the roles that own something in them
            force = " WITH (FORCE)" if kind == "DATABASE" else ""
            self.execute(sql.SQL("DROP " + kind + " {}" + force).format(sql.Identifier(name)))


@pytest.fixture
def server(postgres_url: str) -> Iterator[Server]:
    made = Server(postgres_url)
    yield made
    made.close()


def _refusal(url: str) -> str:
    with pytest.raises(CertplaneError) as caught:
        PostgresqlSession(url, WAIT, exclusive=True).close()
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
@pytest.mark.parametrize("parameters", ["", "?client_encoding=LATIN1", "?options=-c%20client_encoding%3DLATIN1"])
def test_another_encoding(server: Server, encoding: str, parameters: str) -> None:
    """Texts of the broker need UTF8, whatever encoding the client is told to have."""
    name = f"certplane_{encoding.lower()}_{len(parameters)}"
    url = server.database(name, f"ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    said = _refusal(url + parameters)
    with pytest.raises(CertplaneError) as looked:
        look_at(url + parameters, WAIT)
    assert str(looked.value) == said
    assert f"the database's encoding is {encoding}, and must be UTF8" in said
    assert "createdb --encoding UTF8 --template template0" in said


def test_a_look_changes_nothing(server: Server) -> None:
    """`check` makes nothing in a database that is empty, and says of one that can't be reached that it can't."""
    url = server.database("certplane_looked_at", "ENCODING 'UTF8' TEMPLATE template0")
    assert look_at(url, WAIT) == []
    with closing(psycopg.connect(url)) as connection:
        assert connection.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,)
    PostgresqlSession(url, WAIT, exclusive=True).close()
    assert look_at(url, WAIT) == []
    (notice,) = look_at("postgresql://nobody@127.0.0.1:1/x", WAIT)
    assert "can't be reached from here" in notice


@pytest.mark.parametrize("parameters", ["?client_encoding=LATIN1", "?client_encoding=SQL_ASCII"])
def test_the_client_s_encoding_is_ours(server: Server, parameters: str) -> None:
    """A URL that asks for another encoding of the client is no obstacle, and none to texts either."""
    name = f"certplane_utf8_{len(parameters)}"
    url = server.database(name, "ENCODING 'UTF8' TEMPLATE template0")
    with closing(PostgresqlSession(url + parameters, WAIT, exclusive=True)) as session:
        assert session._run("SELECT 'b\u00fccher \u2713'").fetchone() == ("b\u00fccher \u2713",)


def test_no_rights_to_make_tables(server: Server) -> None:
    """A user that may only connect is told that the database must be its own."""
    server.database("certplane_no_rights", "TEMPLATE template0")
    user = server.user("certplane_nobody")
    said = _refusal(server.url("certplane_no_rights", user))
    assert "permission denied" in said
    assert "must be the broker's own" in said


def test_tables_of_another_user(server: Server) -> None:
    """Tables that another user made are told of before the first write fails."""
    url = server.database("certplane_others", "TEMPLATE template0")
    PostgresqlSession(url, WAIT, exclusive=True).close()
    user = server.user("certplane_guest")
    said = _refusal(server.url("certplane_others", user))
    assert "permission denied" in said
    grant = sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(sql.Identifier(user))
    server.execute(grant, "certplane_others")
    said = _refusal(server.url("certplane_others", user))
    assert "the broker's user may not read and write acme_accounts, audit_chains" in said
    assert "OWNER TO" in said
    server.execute(
        sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {}").format(sql.Identifier(user)), "certplane_others"
    )


def test_a_database_that_can_only_be_read(server: Server) -> None:
    """A standby, or a database that is set to read only, is told at the start."""
    url = server.database("certplane_read_only", "TEMPLATE template0")
    server.execute(sql.SQL("ALTER DATABASE certplane_read_only SET default_transaction_read_only = on"))
    assert "can only be read: a standby, or default_transaction_read_only is on" in _refusal(url)


def _revision(url: str) -> object:
    with closing(psycopg.connect(url, autocommit=True, options="-c statement_timeout=0")) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()


def test_a_migration_beside_an_open_transaction(server: Server) -> None:
    """It locks whole tables: a session that reads one and doesn't end is told of, not waited for for ever."""
    url = server.database("certplane_read_beside", "TEMPLATE template0")
    make_postgresql(url)
    before = _revision(url)
    with closing(psycopg.connect(url)) as reader:
        reader.execute("SELECT count(*) FROM orders")
        with pytest.raises(CertplaneError) as caught:
            PostgresqlSession(url, timedelta(milliseconds=300), exclusive=True).close()
        assert "lock timeout" in str(caught.value)
        assert "end the session that holds a lock" in str(caught.value)
        assert _revision(url) == before
    PostgresqlSession(url, WAIT, exclusive=True).close()
    assert _revision(url) != before


def test_a_migration_that_meets_a_deadlock(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """With a broker of the release before, which has one table and wants the other: the migration is done again."""
    url = server.database("certplane_deadlock", "TEMPLATE template0")
    make_postgresql(url)
    before = _revision(url)
    waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'host_streams'::regclass AND NOT granted"
    with (
        closing(psycopg.connect(url, options="-c deadlock_timeout=10min")) as broker,  # so the migration is undone
        closing(psycopg.connect(url, autocommit=True)) as looking,
        ThreadPoolExecutor(1) as other,
    ):
        broker.execute("LOCK TABLE host_streams IN ROW EXCLUSIVE MODE")
        starting = other.submit(PostgresqlSession, url, WAIT, exclusive=True)
        blocking_until(lambda: looking.execute(waiting).fetchone() == (1,), what="the migration at the table")
        broker.execute("LOCK TABLE orders IN ROW EXCLUSIVE MODE")
        broker.rollback()
        starting.result(HANG).close()
    assert "waited for each other; it is done again" in caplog.text
    assert _revision(url) != before


@pytest.mark.parametrize("setting", ["statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout"])
def test_the_server_s_time_limits_end_no_migration(server: Server, setting: str) -> None:
    """Those that an operator gave the database for the statements of people."""
    name = f"certplane_{setting}"
    url = server.database(name, "TEMPLATE template0")
    make_postgresql(url)
    before = _revision(url)
    server.execute(sql.SQL("ALTER DATABASE {} SET {} = '1ms'").format(sql.Identifier(name), sql.Identifier(setting)))
    PostgresqlSession(url, WAIT, exclusive=True).close()
    assert _revision(url) != before


def test_a_migration_that_loses_its_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is the server, not the rights; nothing of it stands, and the next start makes all of it."""
    url = server.database("certplane_lost", "TEMPLATE template0")
    make_postgresql(url)
    before = _revision(url)
    connect = PostgresqlSession._connect_to_migrate

    def losing(self: PostgresqlSession) -> psycopg.Connection[Any]:
        connection = connect(self)
        connection.execute("UPDATE alembic_version SET version_num = version_num")
        with closing(psycopg.connect(url, autocommit=True)) as operator:
            operator.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(PostgresqlSession, "_connect_to_migrate", losing)
        said = _refusal(url)
    assert "see that the server runs" in said
    assert _revision(url) == before
    PostgresqlSession(url, WAIT, exclusive=True).close()
    assert _revision(url) != before


def test_a_search_path_of_the_url(server: Server) -> None:
    """Migrations, writes and looks are all in the schema that it names."""
    url = server.database("certplane_search_path", "TEMPLATE template0")
    server.execute(sql.SQL("CREATE SCHEMA ours"), "certplane_search_path")
    there = f"{url}?options=-c%20search_path%3Dours"
    PostgresqlSession(there, WAIT, exclusive=True).close()
    PostgresqlSession(there, WAIT, exclusive=False).close()
    assert look_at(there, WAIT) == []
    with closing(psycopg.connect(url)) as connection:
        found = connection.execute("SELECT DISTINCT schemaname FROM pg_tables WHERE tablename = 'orders'").fetchall()
    assert found == [("ours",)]
