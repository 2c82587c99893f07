"""What the broker said of a lineage's certificates: the ports `DirectiveFile` and `ActivationFile`.

`directive.json` is when it should be renewed, and how; `activation.json` which of those that are held back may be used.
Files of their own, since the status has another writer: the lineage's runner keeps it in memory over a whole step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from certplane.agent.install.json_file import LineageJson
from certplane.agent.model import Activation, DirectedRenewal
from certplane.agent.ports import ActivationFile, DirectiveFile


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


@dataclass(frozen=True, slots=True)
class _Activations:
    activations: tuple[Activation, ...] = ()


class JsonActivationFile(ActivationFile):
    """`ActivationFile` in a lineage's directory."""

    def __init__(self, directory: Path) -> None:
        """Nothing is touched before the first call.

        Args:
            directory: The lineage's directory, absolute; made (0755) when it is first needed.
        """
        self._file = LineageJson(directory, "activation.json", if_unreadable="is ignored")

    @override
    def load(self) -> tuple[Activation, ...]:
        found = self._file.load(_Activations)
        return () if found is None else found.activations

    @override
    def save(self, activations: Sequence[Activation]) -> None:
        """As the port describes, with these errors.

        Raises:
            OperationError: the disk refuses; what was saved before is still there.
        """
        self._file.save(_Activations(tuple(activations)))
