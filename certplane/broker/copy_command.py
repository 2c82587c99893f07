"""`certplane-broker store copy`: all of one configuration's database into the empty one of another."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from certplane.broker.configured import located, secret_source
from certplane.broker.database import database_url
from certplane.broker.events import AuditEvent, AuditEventType, AuditTrail
from certplane.broker.settings import BrokerSettings, StoreDriver
from certplane.broker.store import files, sqlite
from certplane.broker.store.audit_records import EventRow, event_row
from certplane.broker.store.copying import CopiedTable, Database, PostgresqlDatabase, SqliteDatabase, copy_all
from certplane.broker.store.migrate import FoundSchema, migrate
from certplane.errors import OperationError
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.ids import TimeOrderedIds
from certplane.runtime.pool import BlockingPool
from certplane.runtime.text import counted

COLUMNS: Final = ("table", "rows", "sha256")
_WAIT: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Place:
    """A configuration's database: a path, or a URL with its password."""

    settings: BrokerSettings
    url: str = ""

    @property
    def name(self) -> str:
        """For people, without the URL's credentials."""
        if self.settings.store.driver is StoreDriver.SQLITE:
            return str(self.settings.store.path)
        return f"the PostgreSQL database of {self.settings.source.file}"

    @property
    def key(self) -> str:
        """Where the URL stands."""
        return "store.direct_url" if self.settings.store.direct_url else "store.url"


async def place(settings: BrokerSettings) -> Place:
    """The database of a configuration, with its password read.

    Raises:
        ConfigurationError: the password can't be read.
    """
    store = settings.store
    if store.driver is StoreDriver.SQLITE:
        return Place(settings)
    with contextlib.closing(BlockingPool("broker-files", 1)) as pool:
        secrets = secret_source(settings, pool, SystemClock())
        return Place(settings, await database_url(settings, secrets, store.direct_url or store.url))


def copy_store(
    source: Place, target: Place, progress: Callable[[str], None], clock: Clock | None = None
) -> list[dict[str, Any]]:
    """Copy all rows; a row for each table, with what was compared. Blocks until the copy is durable.

    Raises:
        ConfigurationError: the source has another schema, or the target isn't empty.
        OperationError: a broker runs, a row can't be copied, or a database can't be used; the target is then empty as
            it was before.
    """
    _check_spill(source.settings.spill_path)
    clock = clock or SystemClock()

    def event(tables: Sequence[CopiedTable]) -> EventRow | None:
        if not target.settings.audit.enabled:
            return None
        return event_row(_event(AuditTrail(clock, TimeOrderedIds(clock)), source.name, tables))

    copied: list[CopiedTable] = []
    with _reading(source) as rows, located(target.settings):

        def fill(connection: Any) -> None:
            copied.extend(copy_all(rows, _database(target, connection), event, progress))

        _fill(target, fill)
    return [{"table": each.table, "rows": each.rows, "sha256": each.sha256} for each in copied]


def _event(trail: AuditTrail, source: str, tables: Sequence[CopiedTable]) -> AuditEvent:
    rows = sum(each.rows for each in tables)
    digest = hashlib.sha256("".join(each.sha256 for each in tables).encode()).hexdigest()
    reason = f"{counted(rows, 'row')} of {counted(len(tables), 'table')} copied from {source}, SHA-256 {digest}"
    return trail.event(AuditEventType.STORE_COPIED, reason=reason)


def _check_spill(path: Path) -> None:
    """Events that aren't in the database yet would be left behind."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size:
            raise OperationError(
                f"{path}: audit events wait here to be taken into the database that is to be copied",
                remedy="start the broker and stop it once: a start takes them in",
            )


@contextlib.contextmanager
def _reading(source: Place) -> Iterator[Database]:
    with located(source.settings):
        if source.settings.store.driver is StoreDriver.SQLITE:
            with files.alone(source.settings.store.path, _WAIT, empty=False) as file:
                yield SqliteDatabase(file)
            return
        from certplane.broker.store import postgresql  # noqa: PLC0415 - not without it

        with postgresql.alone(source.url, _WAIT, source.key, empty=False) as server:
            yield PostgresqlDatabase(server)


def _database(target: Place, connection: Any) -> Database:
    if target.settings.store.driver is StoreDriver.SQLITE:
        return SqliteDatabase(connection)
    return PostgresqlDatabase(connection)


def _fill(target: Place, fill: Callable[[Any], None]) -> None:
    """Make the schema and fill it, in one transaction, while nobody else uses the target."""
    try:
        if target.settings.store.driver is StoreDriver.SQLITE:
            path = target.settings.store.path
            with files.alone(path, _WAIT, empty=True):
                migrate("sqlite://", lambda: sqlite.connect_to_write(path, _WAIT), FoundSchema(), fill=fill)
            return
        from certplane.broker.store import postgresql, postgresql_schema  # noqa: PLC0415 - not without it

        with postgresql.alone(target.url, _WAIT, target.key, empty=True):
            connect = postgresql_schema.connect_to_migrate
            migrate("postgresql+psycopg://", lambda: connect(target.url, _WAIT), FoundSchema(), fill=fill)
    except (SQLAlchemyError, sqlite3.Error, UnicodeError) as error:
        cause = str(error.__cause__ or error).partition("\n")[0]
        raise OperationError(
            f"{target.name}: the copy has failed ({cause}), and nothing of it was kept",
            remedy="mend it, then copy again",
        ) from error
