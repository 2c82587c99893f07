"""`directive.json` of a lineage: when the broker last said its certificate should be renewed. The port `DirectiveFile`.

A file of its own, since the status has another writer: the lineage's runner keeps it in memory over a whole step.
"""

from pathlib import Path

from typing_extensions import override

from certplane.agent.install.json_file import LineageJson
from certplane.agent.model import DirectedRenewal
from certplane.agent.ports import DirectiveFile


class JsonDirectiveFile(DirectiveFile):
    """`DirectiveFile` in a lineage's directory."""

    def __init__(self, directory: Path) -> None:
        """Nothing is touched before the first call.

        Args:
            directory: The lineage's directory, absolute; made (0755) when it is first needed.
        """
        self._file = LineageJson(directory, "directive.json", if_unreadable="is ignored")

    @override
    def load(self) -> DirectedRenewal | None:
        return self._file.load(DirectedRenewal)

    @override
    def save(self, directed: DirectedRenewal) -> None:
        """As the port describes, with these errors.

        Raises:
            OperationError: the disk refuses; what was saved before is still there.
        """
        self._file.save(directed)
