"""Brings a database to the program's schema, under the lock that the caller holds.

Alembic is imported only when there is something to do: it costs more than the rest of a start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from certplane.broker.store.schema import SCHEMA_REVISION

_log = logging.getLogger("certplane.store")


class SchemaError(Exception):
    """The schema of a database isn't the program's: what is wrong, and what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy)


def check_known(revision: str | None) -> None:
    """Whether this program knows the schema of a database.

    Raises:
        SchemaError: it doesn't.
    """
    if revision not in (None, SCHEMA_REVISION):
        _check_known(_configuration(), revision)


def check_current(revision: str | None) -> None:
    """Whether a program that may not migrate can use the database.

    Raises:
        SchemaError: it can't.
    """
    check_known(revision)
    if revision != SCHEMA_REVISION:
        raise SchemaError(
            "the database has the schema of another version of the program",
            "start certplane-broker of this version once, it brings the schema up to date",
        )


def upgrade_notices(place: str, revision: str | None) -> list[str]:
    """What a start would do to the schema of the database at `place`; a line, or none.

    Raises:
        SchemaError: a start would refuse it.
    """
    check_known(revision)
    if revision in (None, SCHEMA_REVISION):
        return []
    return [f"{place}: the next start brings the schema from {revision} to {SCHEMA_REVISION}; make a copy before it"]


def migrate(
    dialect: str, connect: Callable[[], Any], revision: str | None, *, fill: Callable[[Any], None] | None = None
) -> None:
    """Run the migrations that are missing, all in one transaction.

    Args:
        dialect: SQLAlchemy's URL of the dialect, `sqlite://` or `postgresql+psycopg://`.
        connect: Makes a driver's connection, which is closed afterwards.
        revision: What the database has, None for an empty one.
        fill: Called with the driver's connection in the same transaction; what it raises undoes everything.

    Raises:
        SchemaError: nothing was changed.
        sqlalchemy.exc.SQLAlchemyError: nothing was changed.
    """
    if revision == SCHEMA_REVISION:
        return
    from alembic import command  # noqa: PLC0415 - see above
    from sqlalchemy import create_engine, event  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    config = _configuration()
    _check_known(config, revision)
    engine = create_engine(dialect, creator=connect, poolclass=NullPool)
    if engine.dialect.name == "sqlite":
        # The driver is in autocommit mode, so that no DDL ends a transaction; what begins one is this.
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if fill is not None:
            fill(connection.connection.driver_connection)
    engine.dispose()
    _log.info("the store's schema went from %s to %s", revision or "nothing", SCHEMA_REVISION)


def _configuration() -> Any:
    from alembic.config import Config  # noqa: PLC0415 - see above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _check_known(config: Any, revision: str | None) -> None:
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see above
    from alembic.util import CommandError  # noqa: PLC0415

    try:
        ScriptDirectory.from_config(config).get_revision(revision or "base")
    except CommandError as error:
        raise SchemaError(
            f"the database was written by a newer certplane-broker (schema {revision})",
            "install that version, or restore a copy made before it ran",
        ) from error
