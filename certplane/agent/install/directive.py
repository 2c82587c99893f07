"""`directive.json` of a lineage: when the broker last said its certificate should be renewed. The port `DirectiveFile`.

A file of its own, since the status has another writer: the lineage's life keeps it in memory over a whole step.
"""

from pathlib import Path

from certplane.agent.install.json_file import LineageJson
from certplane.agent.model import DirectedRenewal


class JsonDirectiveFile:
    """`DirectiveFile` in a lineage's directory."""

    def __init__(self, directory: Path) -> None:
        """Nothing is touched before the first call.

        Args:
            directory: The lineage's directory, absolute; made (0755) when it is first needed.
        """
        self._file = LineageJson(directory, "directive.json", if_unreadable="counts for nothing")

    def load(self) -> DirectedRenewal | None:
        """See `DirectiveFile.load`."""
        return self._file.load(DirectedRenewal)

    def save(self, directed: DirectedRenewal) -> None:
        """See `DirectiveFile.save`.

        Raises:
            OperationError: the disk refuses; what was saved before is still there.
        """
        self._file.save(directed)
