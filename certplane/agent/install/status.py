"""`status.json` of a lineage: what survives a restart besides versions and pending key. The port `StatusFile`."""

from __future__ import annotations

import dataclasses
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

from certplane.agent.model import LineageState, LineageStatus, LineageStep
from certplane.errors import OperationError
from certplane.runtime.files import open_directory

__all__ = ["JsonStatusFile"]

_LOG = logging.getLogger(__name__)

_NAME = "status.json"
_FORMAT = 1
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
    """`StatusFile` in a lineage's directory. Readable by everybody: nothing in it is secret."""

    def __init__(self, directory: Path) -> None:
        """Nothing is touched before the first call.

        Args:
            directory: The lineage's directory, absolute; made (0755) when it is first needed.
        """
        self._directory = directory

    def load(self) -> LineageStatus | None:
        """See `StatusFile.load`."""
        try:
            with open_directory(self._directory) as lineage:
                return _from_json(lineage.read(_NAME))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("%s can't be read and starts over: %s", self._directory / _NAME, error)
            return None

    def save(self, status: LineageStatus) -> None:
        """See `StatusFile.save`.

        Raises:
            OperationError: the disk refuses; what was saved before is still there.
        """
        try:
            with open_directory(self._directory, create_mode=0o755) as lineage:
                lineage.replace(_NAME, _to_json(status), mode=0o644)
        except OSError as error:
            raise OperationError(f"{self._directory / _NAME} can't be written: {error}") from error


def _to_json(status: LineageStatus) -> bytes:
    document: dict[str, Any] = {"format": _FORMAT}
    for name in _FIELDS:
        value = getattr(status, name)
        document[name] = value.isoformat() if isinstance(value, datetime) else value
    return json.dumps(document, indent=1).encode() + b"\n"


def _from_json(data: bytes) -> LineageStatus:
    document: dict[str, Any] = json.loads(data)
    if document["format"] != _FORMAT:
        raise ValueError("written by another release")
    values = {name: document[name] for name in _FIELDS if name in document}
    for name in _TIMES & values.keys():
        if values[name] is not None:
            values[name] = datetime.fromisoformat(values[name])
    values["state"] = LineageState(values["state"])
    if values.get("failed_step") is not None:
        values["failed_step"] = LineageStep(values["failed_step"])
    values["revoked_versions"] = tuple(map(int, values.get("revoked_versions", ())))
    return LineageStatus(**values)
