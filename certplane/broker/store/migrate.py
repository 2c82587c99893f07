"""Brings a database to the program's schema, under the lock that the caller holds.

Releases overlap: while the brokers of a fleet are upgraded one by one, an older one works, and starts, on the schema of
the newer one. So migrations only add (ADR 0037), and the newest one leaves word in the database from which schema on a
program can use it (`READABLE_FROM`).

Alembic is imported only when there is something to do: it costs more than the rest of a start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import READABLE_FROM, SCHEMA_REVISION
from certplane.runtime.clock import SystemClock

_log = logging.getLogger("certplane.store")

_NOTE: Final = "schema_readable_from"
"""The name of its row in `shared_values`."""


class SchemaError(Exception):
    """The schema of a database isn't the program's: what is wrong, and what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy)


@dataclass(frozen=True, slots=True)
class FoundSchema:
    """What a database has.

    Attributes:
        revision: The migration that it was brought to last; None of an empty one.
        readable_from: The oldest schema whose programs can use it; empty of one that doesn't say.
    """

    revision: str | None = None
    readable_from: str = ""

    @property
    def is_newer(self) -> bool:
        """Whether a newer release has made it and this program can use it all the same. Revisions sort by their age."""
        readable = self.readable_from != "" and self.readable_from <= SCHEMA_REVISION
        return self.revision is not None and self.revision > SCHEMA_REVISION and readable


def found_schema(has_table: Callable[[str], bool], first: Callable[[str], Any]) -> FoundSchema:
    """The schema of a database; `first` gives the first column of a query's first row, None without a row."""
    if not has_table("alembic_version"):
        return FoundSchema()
    revision = first("SELECT version_num FROM alembic_version")
    note = first(f"SELECT value FROM shared_values WHERE name = '{_NOTE}'") if has_table("shared_values") else None  # noqa: S608 - a constant
    return FoundSchema(None if revision is None else str(revision), str(note or ""))


def check_known(found: FoundSchema) -> None:
    """Whether this program knows the schema of a database, or can use it without.

    Raises:
        SchemaError: it doesn't.
    """
    if found.revision not in (None, SCHEMA_REVISION) and not found.is_newer:
        _check_known(_configuration(), found)


def check_current(found: FoundSchema) -> None:
    """Whether a program that may not migrate can use the database.

    Raises:
        SchemaError: it can't.
    """
    check_known(found)
    if found.revision != SCHEMA_REVISION and not found.is_newer:
        raise SchemaError(
            "the database has the schema of another version of the program",
            "start certplane-broker of this version once, it brings the schema up to date",
        )


def check_whole(found: FoundSchema) -> None:
    """Whether this program knows all tables and columns of the database, as who copies it must.

    Raises:
        SchemaError: it doesn't.
    """
    check_current(found)
    if found.is_newer:
        raise SchemaError(
            f"the database has the schema {found.revision} of a newer certplane-broker; this one knows only a part",
            "do it with the program of that release",
        )


def upgrade_notices(place: str, found: FoundSchema) -> list[str]:
    """What a start would do to the schema of the database at `place`; a line, or none.

    Raises:
        SchemaError: a start would refuse it.
    """
    check_known(found)
    if found.is_newer:
        return [f"{place}: {_newer(found)}"]
    if found.revision in (None, SCHEMA_REVISION):
        return []
    return [
        f"{place}: the next start brings the schema from {found.revision} to {SCHEMA_REVISION}; make a copy before it"
    ]


def migrate(
    dialect: str, connect: Callable[[], Any], found: FoundSchema, *, fill: Callable[[Any], None] | None = None
) -> None:
    """Run the migrations that are missing, all in one transaction.

    Args:
        dialect: SQLAlchemy's URL of the dialect, `sqlite://` or `postgresql+psycopg://`.
        connect: Makes a driver's connection, which is closed afterwards.
        found: What the database has.
        fill: Called with the driver's connection in the same transaction; what it raises undoes everything.

    Raises:
        SchemaError: nothing was changed.
        sqlalchemy.exc.SQLAlchemyError: nothing was changed.
    """
    if found.is_newer:
        _log.warning("%s", _newer(found))
    if found.revision == SCHEMA_REVISION or found.is_newer:
        return
    from alembic import command  # noqa: PLC0415 - see above
    from sqlalchemy import create_engine, event, text  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    config = _configuration()
    _check_known(config, found)
    engine = create_engine(dialect, creator=connect, poolclass=NullPool)
    if engine.dialect.name == "sqlite":
        # The driver is in autocommit mode, so that no DDL ends a transaction; what begins one is this.
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if fill is not None:
            fill(connection.connection.driver_connection)
        # After `fill`, which has the row of its source, and so unchanged where it is right.
        connection.execute(
            text(
                "INSERT INTO shared_values (name, value, change_time) VALUES (:name, :value, :time) "
                "ON CONFLICT (name) DO UPDATE SET value = excluded.value, change_time = excluded.change_time "
                "WHERE shared_values.value <> excluded.value"
            ),
            {"name": _NOTE, "value": READABLE_FROM, "time": to_micros(SystemClock().now())},
        )
    engine.dispose()
    _log.info("the store's schema went from %s to %s", found.revision or "nothing", SCHEMA_REVISION)


def _newer(found: FoundSchema) -> str:
    return f"the database has the schema {found.revision} of a newer certplane-broker, which this one can use"


def _configuration() -> Any:
    from alembic.config import Config  # noqa: PLC0415 - see above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _check_known(config: Any, found: FoundSchema) -> None:
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see above
    from alembic.util import CommandError  # noqa: PLC0415

    try:
        ScriptDirectory.from_config(config).get_revision(found.revision or "base")
    except CommandError as error:
        least = f", which programs of schema {found.readable_from} and newer can use" if found.readable_from else ""
        raise SchemaError(
            f"the database was written by a newer certplane-broker (schema {found.revision}{least})",
            "install that version, or restore a copy made before it ran",
        ) from error
