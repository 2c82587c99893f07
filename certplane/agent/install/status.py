"""`status.json` of a lineage: what survives a restart besides versions and pending key. The port `StatusFile`."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any

from certplane.agent.install.json_file import LineageJson
from certplane.agent.model import LineageState, LineageStatus, LineageStep

__all__ = ["JsonStatusFile", "status_members", "status_of"]

_FIELDS = tuple(field.name for field in dataclasses.fields(LineageStatus))
_TIMES = frozenset(
    {
        "update_time",
        "renew_time",
        "next_attempt_time",
        "retry_time",
        "next_activation_time",
        "activate_after",
        "verify_time",
        "served_not_before",
        "served_not_after",
        "next_verify_time",
    }
)


class JsonStatusFile:
    """`StatusFile` in a lineage's directory."""

    def __init__(self, directory: Path) -> None:
        """Nothing is touched before the first call.

        Args:
            directory: The lineage's directory, absolute; made (0755) when it is first needed.
        """
        self._file = LineageJson(directory, "status.json", if_unreadable="starts over")

    def load(self) -> LineageStatus | None:
        """See `StatusFile.load`."""
        return self._file.load(status_of)

    def save(self, status: LineageStatus) -> None:
        """See `StatusFile.save`.

        Raises:
            OperationError: the disk refuses; what was saved before is still there.
        """
        self._file.save(status_members(status))


def status_members(status: LineageStatus) -> dict[str, Any]:
    """The members of the JSON object that is kept of a status; times in ISO 8601."""
    values = {name: getattr(status, name) for name in _FIELDS}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}


def status_of(document: dict[str, Any]) -> LineageStatus:
    """The status of such an object; members that an older release didn't write have their defaults.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    values = {name: document[name] for name in _FIELDS if name in document}
    for name in _TIMES & values.keys():
        if values[name] is not None:
            values[name] = datetime.fromisoformat(values[name])
    values["state"] = LineageState(values["state"])
    if values.get("failed_step") is not None:
        values["failed_step"] = LineageStep(values["failed_step"])
    values["revoked_versions"] = tuple(map(int, values.get("revoked_versions", ())))
    return LineageStatus(**values)
