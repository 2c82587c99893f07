"""`status.json` of a lineage: what survives a restart besides versions and pending key. The port `StatusFile`."""

from pathlib import Path

from certplane.agent.install.json_file import LineageJson
from certplane.agent.model import LineageStatus


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
        return self._file.load(LineageStatus)

    def save(self, status: LineageStatus) -> None:
        """See `StatusFile.save`.

        Raises:
            OperationError: the disk refuses; what was saved before is still there.
        """
        self._file.save(status)
