"""One JSON file of a lineage's directory, replaced at once. Readable by everybody: nothing secret belongs in one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from certplane.errors import OperationError
from certplane.runtime.files import open_directory

__all__ = ["LineageJson"]

_LOG = logging.getLogger(__name__)

_FORMAT = 1

T = TypeVar("T")


class LineageJson:
    """Reads and writes one file; which members it has is the caller's, but for the format's number."""

    def __init__(self, directory: Path, name: str, *, if_unreadable: str) -> None:
        """Nothing is touched before the first call.

        Args:
            directory: The lineage's directory, absolute; made (0755) when it is first needed.
            name: The file's.
            if_unreadable: What comes of a file that can't be read, for the log: "starts over".
        """
        self._directory = directory
        self._name = name
        self._if_unreadable = if_unreadable

    def load(self, parse: Callable[[dict[str, Any]], T]) -> T | None:
        """What `parse` makes of the file; None if there is none, or, with a warning, if it can't be read."""
        try:
            with open_directory(self._directory) as lineage:
                return parse(_members(lineage.read(self._name)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("%s can't be read and %s: %s", self._directory / self._name, self._if_unreadable, error)
            return None

    def save(self, members: dict[str, Any]) -> None:
        """Replace the file; durable before it returns.

        Raises:
            OperationError: the disk refuses; what was saved before is still there.
        """
        document = json.dumps({"format": _FORMAT, **members}, indent=1).encode() + b"\n"
        try:
            with open_directory(self._directory, create_mode=0o755) as lineage:
                lineage.replace(self._name, document, mode=0o644)
        except OSError as error:
            raise OperationError(f"{self._directory / self._name} can't be written: {error}") from error


def _members(data: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(data)
    if document["format"] != _FORMAT:
        raise ValueError("written by another release")
    return document
