"""The symbolic links of a lineage's own directory: `current`, and `held` while a first use is under way."""

from __future__ import annotations

import logging
import re
import stat
from pathlib import Path

from certplane.runtime.files import open_directory, open_for_reading

CURRENT = "current"
HELD = "held"

_LOG = logging.getLogger(__name__)

_VERSION = re.compile(r"versions/(0|[1-9][0-9]{0,8})")


class Pointers:
    """Reads and moves them; each move is atomic and durable."""

    def __init__(self, lineage: Path) -> None:
        self._path = lineage

    def target(self, name: str) -> str | None:
        """Where a pointer points, relative to the lineage; None if it isn't there."""
        try:
            with open_for_reading(self._path) as lineage:
                return lineage.link_target(name)
        except FileNotFoundError:
            return None

    def number(self, name: str) -> int | None:
        """The version that a pointer names; None if it isn't there or names something else."""
        match = _VERSION.fullmatch(self.target(name) or "")
        return None if match is None else int(match[1])

    def stands(self, name: str) -> bool:
        """Whether anything is there under the pointer's name."""
        try:
            with open_for_reading(self._path) as lineage:
                return lineage.status(name) is not None
        except FileNotFoundError:
            return False

    def point(self, name: str, target: str) -> None:
        """Make a pointer name `target`, relative to the lineage.

        A directory in its place (a copy that followed links makes one) is set aside: nothing here is ever destroyed.
        """
        with open_directory(self._path, create_mode=0o755) as lineage:
            status = lineage.status(name)
            if status is not None and stat.S_ISDIR(status.st_mode):
                aside = lineage.set_aside(name)
                _LOG.warning("%s is a directory instead of a link; it is now %s", self._path / name, aside)
            lineage.replace_with_link(name, target)

    def remove(self, name: str) -> None:
        """Remove a pointer if it is there."""
        with open_directory(self._path) as lineage:
            lineage.discard(name)
            lineage.sync()
