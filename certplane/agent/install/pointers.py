"""The symbolic links of a lineage's own directory: `current`, and `held` while a first use is under way."""

from __future__ import annotations

import re
from pathlib import Path

from certplane.runtime.files import open_directory, open_for_reading

__all__ = ["CURRENT", "HELD", "Pointers"]

CURRENT = "current"
HELD = "held"

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

    def point(self, name: str, target: str) -> None:
        """Make a pointer name `target`, relative to the lineage."""
        with open_directory(self._path, create_mode=0o755) as lineage:
            lineage.replace_with_link(name, target)

    def remove(self, name: str) -> None:
        """Remove a pointer if it is there."""
        with open_directory(self._path) as lineage:
            lineage.discard(name)
            lineage.sync()
