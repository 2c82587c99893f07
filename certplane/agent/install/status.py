"""`status.json` of a lineage: what survives a restart besides versions and pending key. The port `StatusFile`."""

from pathlib import Path

from typing_extensions import override

from certplane.agent.install.json_file import LineageJson
from certplane.agent.model import LineageStatus
from certplane.agent.ports import StatusFile


class JsonStatusFile(StatusFile):
    """`StatusFile` in a lineage's directory."""

    def __init__(self, directory: Path) -> None:
        """Nothing is touched before the first call.

        Args:
            directory: The lineage's directory, absolute; made (0755) when it is first needed.
        """
        self._file = LineageJson(directory, "status.json", if_unreadable="starts over")

    @override
    def load(self) -> LineageStatus | None:
        return self._file.load(LineageStatus)

    @override
    def save(self, status: LineageStatus) -> None:
        """As the port describes, with these errors.

        Raises:
            OperationError: the disk refuses; what was saved before is still there.
        """
        self._file.save(status)
