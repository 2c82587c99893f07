"""The paths that services read, and what stands there now."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from certplane.agent.install.material import Outputs, Part
from certplane.errors import OperationError
from certplane.runtime.disk_errors import explain
from certplane.runtime.files import Directory, Owner, UnsafeDirectoryError, open_directory

FOREIGN_REMEDY = "move it away, or configure another path and point the service there"
_LARGEST = 1 << 20
"""Octets: a key with the longest chain has a hundredth of it; what is larger is no file of ours to replace."""

DIRECTORY_MODE = 0o755

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


class OutputError(OperationError):
    """What stands at a configured path isn't ours to replace."""


class Standing(Enum):
    """What stands at a configured path."""

    ABSENT = "absent"
    FILE = "file"
    CURRENT = "current"
    """A link through this lineage's `current`."""
    HELD = "held"
    """A link through this lineage's `held`: a first use that a crash interrupted."""
    SIBLING = "sibling"
    """A link through another lineage's `current` beside this one: the certificate was renamed in the configuration."""
    LINKED = "linked"
    """Somebody else's link to a file that can be read, as certbot's `live` has them: its content stands there."""
    FOREIGN = "foreign"


HAS_CONTENT = frozenset({Standing.FILE, Standing.SIBLING, Standing.LINKED})
"""What stands there isn't this lineage's, and is kept before something takes its place."""


@dataclass(frozen=True, slots=True)
class Output:
    """One configured path as it was found. `data`, `mode` and `owner` only of what can be read there now."""

    part: Part
    path: Path
    standing: Standing
    target: str = ""
    data: bytes | None = None
    mode: int = 0
    owner: Owner | None = None
    problem: str = ""


def survey(lineage: Path, outputs: Outputs) -> list[Output]:
    """Look at every configured path, making the directories that are missing.

    Raises:
        OutputError: a link to nothing, a directory or a device stands at one of them; all are named.
        UnsafeDirectoryError: see `certplane.runtime.files`.
        OSError: the disk refuses.
    """
    found = [_look(lineage, part, path) for part, path in outputs.paths().items()]
    _refuse_foreign([output for output in found if output.standing is Standing.FOREIGN])
    return found


def look_at_all(lineage: Path, outputs: Outputs) -> list[Output]:
    """What others left at the configured paths, nothing being made: files, and links that lead to one.

    Raises:
        OutputError, UnsafeDirectoryError, OSError: as `survey`.
    """
    found = []
    for part, path in outputs.paths().items():
        with contextlib.suppress(FileNotFoundError), open_directory(path.parent) as directory:
            found.append(look(directory, lineage, part, path))
    _refuse_foreign([output for output in found if output.standing is Standing.FOREIGN])
    return [output for output in found if output.standing in {Standing.FILE, Standing.LINKED}]


def _look(lineage: Path, part: Part, path: Path) -> Output:
    with open_directory(path.parent, create_mode=DIRECTORY_MODE) as directory:
        return look(directory, lineage, part, path)


def look(directory: Directory, lineage: Path, part: Part, path: Path) -> Output:
    """What stands at one configured path, which lies in `directory`.

    Raises:
        UnsafeDirectoryError, OSError: as `survey`.
    """
    status = directory.status(path.name)
    if status is None:
        return Output(part, path, Standing.ABSENT)
    if stat.S_ISLNK(status.st_mode):
        return _look_through(lineage, part, path, directory.link_target(path.name) or "")
    if (kind := _odd_kind(status)) is not None:
        return Output(part, path, Standing.FOREIGN, problem=kind)
    return _read(directory, path.name, Output(part, path, Standing.FILE))


def _odd_kind(status: os.stat_result) -> str | None:
    """Why an entry is no file of ours to replace; None if it may be one."""
    if not stat.S_ISREG(status.st_mode):
        return f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'not a regular file')}"
    return f"has {status.st_size} octets: no key or certificate" if status.st_size > _LARGEST else None


def _look_through(lineage: Path, part: Part, path: Path, target: str) -> Output:
    where = Path(target)
    if where.parent == lineage / "current":
        return Output(part, path, Standing.CURRENT, target)
    if where.parent.parent.parent == lineage.parent and where.parent.name == "current" and where.name in set(Part):
        standing = Standing.SIBLING
    elif where.parent == lineage / "held":
        standing = Standing.HELD
    else:
        return _look_at_linked(Output(part, path, Standing.LINKED, target))
    output = Output(part, path, standing, target)
    try:
        # Links within our own state directory, which nobody else may write: followed on purpose.
        with open_directory(where.parent.resolve(strict=True)) as directory:
            return _read(directory, where.name, output)
    except FileNotFoundError:
        return output


def _look_at_linked(output: Output) -> Output:
    """What somebody else's link leads to. As root only on a way that nobody else may change, like any other file."""
    here = f"is a symbolic link to {output.target}"
    try:
        where = (output.path.parent / output.target).resolve(strict=True)
        with open_directory(where.parent) as directory:
            status = directory.status(where.name)
            if status is not None and (kind := _odd_kind(status)) is None:
                return _read(directory, where.name, output)
        problem = f"{here}, which {kind if status is not None else 'is gone'}"
    except (FileNotFoundError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
        problem = f"{here}, which isn't there"
    except OSError as error:
        why = "isn't there" if error.errno == errno.ELOOP else f"can't be followed: {explain(error, output.path)[0]}"
        problem = f"{here}, which {why}"
    except UnsafeDirectoryError as error:
        problem = f"{here}, which isn't followed: {error.message}"
    return replace(output, standing=Standing.FOREIGN, problem=problem)


def _read(directory: Directory, name: str, output: Output) -> Output:
    data = directory.read(name)
    status = directory.status(name)
    assert status is not None
    return replace(output, data=data, mode=stat.S_IMODE(status.st_mode), owner=Owner(status.st_uid, status.st_gid))


def _refuse_foreign(foreign: Sequence[Output]) -> None:
    if foreign:
        problems = "; ".join(f"{output.path} {output.problem}" for output in foreign)
        raise OutputError(
            f"not replaced: {problems}",
            remedy=FOREIGN_REMEDY,
        )
