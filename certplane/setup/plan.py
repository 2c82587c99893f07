"""What a set-up makes, as values in the order in which it is made. Pure: nothing here looks at a disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from certplane.runtime.files import Owner


@dataclass(frozen=True, slots=True)
class MakeFolder:
    """A folder that has to be there; the folders above it have to be there already, or be steps before it.

    Attributes:
        path: absolute, without `..`.
        mode: permission bits of a new one.
        owner: of a new one; None for who runs the program.
        exact: whether one that is there has to belong to this owner and be no more open than this mode. Where it is
            false, what others made is used as it is: a folder that several programs share.
    """

    path: Path
    mode: int
    owner: Owner | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True)
class WriteFile:
    """A file with this text; the same text of another owner, or more open than this mode, is another file.

    Attributes:
        path: absolute, without `..`.
        text: all of it, ending with a newline.
        mode: permission bits.
        owner: None for who runs the program.
        secret: whether its text is shown to nobody, not as a difference either.
        once: whether one that is there is kept whatever it says: a first text, for a person to go on with.
    """

    path: Path
    text: str
    mode: int = 0o644
    owner: Owner | None = None
    secret: bool = False
    once: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a person is told at this place; nothing is made."""

    text: str


Step = MakeFolder | WriteFile | Note


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in their order."""

    steps: tuple[Step, ...] = ()

    def __add__(self, other: Plan) -> Plan:
        """This plan and then the other one."""
        return Plan(self.steps + other.steps)
