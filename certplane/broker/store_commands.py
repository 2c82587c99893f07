"""`certplane-broker store`: whether the database is whole (`check`), and the same rows in another database (`copy`).

`check` changes nothing, and a broker may run meanwhile. `copy` needs both databases to itself.
"""

from __future__ import annotations

from typing import Any

from certplane.broker.database import open_store
from certplane.broker.settings import BrokerSettings, StoreDriver
from certplane.broker.store.files import look_through

Row = dict[str, Any]
COLUMNS = ("result", "what")
REMEDY = "stop the broker and restore a copy of the database: docs/operations.md, 'Restore'"


async def check_store(settings: BrokerSettings, *, full: bool) -> list[Row]:
    """What was found: a row with `result` `whole`, or one with `damaged` for each thing that is.

    Args:
        settings: Which database.
        full: Of SQLite, compare indexes with their tables too. A server's own tools do that for it.

    Raises:
        ConfigurationError: there is none, or it is none of the broker's.
        OperationError: it can't be read at all.
    """
    if settings.store.driver is StoreDriver.SQLITE:
        path = settings.store.path
        found = look_through(path, full=full)
        whole = f"{path}: {path.stat().st_size >> 20} MiB read from end to end"
        whole += ", indexes compared with their tables" if full else ""
    else:
        async with open_store(settings) as stores:
            found = [*await stores.soundness.damage()]
        whole = "the server knows of no damage; pages that it hasn't read lately are looked at by its own pg_amcheck"
    return [{"result": "damaged", "what": line} for line in found] or [{"result": "whole", "what": whole}]


def damaged(rows: list[Row]) -> bool:
    """Whether anything is."""
    return any(row["result"] == "damaged" for row in rows)
