"""One JSON file of a lineage's directory, replaced at once. Readable by everybody: nothing secret belongs in one."""

import logging
import stat
from pathlib import Path
from typing import Any, TypeVar

from certplane.errors import OperationError
from certplane.runtime.disk_errors import disk_error
from certplane.runtime.files import open_directory, open_for_reading
from certplane.runtime.json_state import MOST_BYTES, StateError, decode, encode

_LOG = logging.getLogger(__name__)

T = TypeVar("T")


class LineageJson:
    """Reads and writes one value; whatever else stands in the file counts for nothing."""

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

    def load(self, kind: type[T]) -> T | None:
        """The value; None if there is none, or, with a warning, if the file can't be read."""
        try:
            with open_for_reading(self._directory) as lineage:
                return decode(kind, lineage.read(self._name, most=MOST_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, StateError) as error:
            _LOG.warning("%s can't be read and %s: %s", self._directory / self._name, self._if_unreadable, error)
            return None

    def save(self, value: Any) -> None:
        """Replace the file; durable before it returns.

        Raises:
            OperationError: the disk refuses; what was saved before is still there.
        """
        try:
            with open_directory(self._directory, create_mode=0o755) as lineage:
                status = lineage.status(self._name)
                if status is not None and stat.S_ISDIR(status.st_mode):
                    aside = lineage.set_aside(self._name)
                    _LOG.warning("%s is a directory instead of a file; it is now %s", lineage.path / self._name, aside)
                lineage.replace(self._name, encode(value), mode=0o644)
        except OSError as error:
            path = self._directory / self._name
            raise disk_error(OperationError, f"{self._name} can't be written", error, path) from error
