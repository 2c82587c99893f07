"""What a plan would do on this machine: each step looked at, nothing changed. Blocks.

Links are followed nowhere below a folder that is opened: a file that is a link differs, whatever it leads to. What
can't be read, since this user may not, differs too, and the finding says so.
"""

from __future__ import annotations

import difflib
import os
import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from certplane.errors import OperationError
from certplane.runtime.disk_errors import explain, user_name
from certplane.runtime.files import Directory, Owner, UnsafeDirectoryError, open_directory, open_for_reading
from certplane.runtime.text import printable
from certplane.setup.plan import MakeFolder, Note, Plan, Step, WriteFile

_MOST_OCTETS = 1024 * 1024
"""More than any file of ours has; a larger one differs, without its difference."""
_MOST_LINE = 400


class State(StrEnum):
    """What a step finds: nothing, what it would make, or something else."""

    MAKE = "make"
    KEEP = "keep"
    DIFFERS = "differs"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One step, and what stands in its place.

    Attributes:
        step: of the plan.
        state: what there is to do.
        why: how it differs, in words.
        diff: the lines of a unified difference from what is there to what would be; empty where none is shown.
        in_the_way: whether it is of another kind, which nothing takes the place of, even where that is asked for.
    """

    step: Step
    state: State
    why: str = ""
    diff: tuple[str, ...] = ()
    in_the_way: bool = False

    @property
    def path(self) -> Path | None:
        """What it is about; None of a remark."""
        return None if isinstance(self.step, Note) else self.step.path


def look(plan: Plan) -> tuple[Finding, ...]:
    """What each step would do.

    Raises:
        OperationError: a folder on the way is a link or can't be looked into, so nothing can be said; or root would
            write into one that others may write.
    """
    return tuple(_look(step) for step in plan.steps)


def _look(step: Step) -> Finding:
    if isinstance(step, Note):
        return Finding(step, State.NOTE)
    try:
        with open_for_reading(step.path.parent) as folder:
            found = _folder(step, folder) if isinstance(step, MakeFolder) else _file(step, folder)
        if found.state is not State.KEEP:  # a run would write there, so that who else may is to be told now
            open_directory(step.path.parent).close()
        return found
    except FileNotFoundError:  # the folder above is a step of the plan, or is told when it is missing
        return Finding(step, State.MAKE)
    except UnsafeDirectoryError:
        raise
    except OSError as error:
        cause, remedy = explain(error, step.path)
        raise OperationError(cause, remedy=remedy) from error


def _folder(step: MakeFolder, above: Directory) -> Finding:
    status = above.status(step.path.name)
    if status is None:
        return Finding(step, State.MAKE)
    if not stat.S_ISDIR(status.st_mode):
        return Finding(step, State.DIFFERS, "is no folder", in_the_way=True)
    why = _permission(status, step) if step.exact else ""
    return Finding(step, State.DIFFERS if why else State.KEEP, why)


def _file(step: WriteFile, folder: Directory) -> Finding:
    status = folder.status(step.path.name)
    if status is None:
        return Finding(step, State.MAKE)
    return _other_file(step, folder, status)


def _other_file(step: WriteFile, folder: Directory, status: os.stat_result) -> Finding:
    """What stands where a file would be written."""
    if not stat.S_ISREG(status.st_mode):
        link = stat.S_ISLNK(status.st_mode)
        return Finding(step, State.DIFFERS, "is a symbolic link" if link else "is no file", in_the_way=not link)
    if step.once:
        return Finding(step, State.KEEP)
    if status.st_size > _MOST_OCTETS:
        return Finding(step, State.DIFFERS, "is larger than what would be written")
    try:
        there = folder.read(step.path.name)
    except PermissionError:
        return Finding(step, State.DIFFERS, "can't be read by this user, so nobody knows whether it is the same")
    why = _permission(status, step)
    if there == step.text.encode():
        return Finding(step, State.DIFFERS if why else State.KEEP, why)
    what = "has another text" + (f", and {why}" if why else "")
    return Finding(step, State.DIFFERS, what, () if step.secret else _diff(step.path, there, step.text))


def _permission(status: os.stat_result, step: MakeFolder | WriteFile) -> str:
    """How mode and owner differ, in words; empty if they don't. What is more closed is somebody's choice."""
    parts = []
    owner, mode = Owner(status.st_uid, status.st_gid), stat.S_IMODE(status.st_mode)
    if step.owner is not None and owner != step.owner:
        parts.append(f"belongs to {_owner_text(owner)} instead of {_owner_text(step.owner)}")
    if mode & ~step.mode:
        parts.append(f"has the mode {mode:04o} instead of {step.mode:04o}")
    return " and ".join(parts)


def _owner_text(owner: Owner) -> str:
    return f"{user_name(owner.uid)}:{owner.gid}"


def _diff(path: Path, there: bytes, text: str) -> tuple[str, ...]:
    old = there.decode(errors="backslashreplace").splitlines()
    lines = difflib.unified_diff(old, text.splitlines(), str(path), f"{path} (init)", lineterm="", n=2)
    return tuple(printable(line, _MOST_LINE) for line in lines)
