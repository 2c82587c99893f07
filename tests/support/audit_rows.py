"""The audit log of a database that is read past the store."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from certplane.broker.store.audit_records import record_of

AUDIT_ROWS: Final = "SELECT event_id, create_time, record, body FROM audit_events ORDER BY sequence"


def records(rows: Iterable[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """The events of the rows of `AUDIT_ROWS`, in the public format."""
    return [json.loads(record_of(*row)) for row in rows]
