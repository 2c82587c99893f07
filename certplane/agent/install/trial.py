"""Would the next version of a lineage go to its configured paths? Found out by trying what can be tried without harm.

Nothing that anybody sees is changed: a file without a name is written where the real one would be, and what stands at
each path is looked at. What is found is certain to make an installation fail, so that a certificate isn't ordered for
it, and `check` tells it before that.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from certplane.agent.install.access import FileAccess
from certplane.agent.install.material import Outputs, Part
from certplane.agent.install.outputs import FOREIGN_REMEDY, Output, Standing, look
from certplane.agent.install.versions import Permission
from certplane.agent.model import InstallMode
from certplane.errors import OperationError
from certplane.runtime.disk_errors import explain, this_user
from certplane.runtime.files import Directory, Owner, UnsafeDirectoryError, open_directory, temporary_name

_ROOM = 128 * 1024
"""Octets: a version has six files of a few KiB, in blocks of 4 KiB, and a directory."""
_LONGEST_NAME = 255
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why an installation would fail: `key` is the output's in agent.yml, or `state_dir`; `cause` names the path."""

    key: str
    cause: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.key}: {self.cause}"
        return f"{text}; {self.remedy}" if self.remedy else text


def find_obstacles(
    lineage: Path,
    outputs: Outputs,
    access: Mapping[Part, FileAccess],
    *,
    mode: InstallMode,
) -> list[Obstacle]:
    """All that would be in the way, the lineage's own directory first. Blocks.

    Args:
        lineage: its directory, where versions are written.
        outputs: the configured paths.
        access: owners and groups that the files are to have.
        mode: where those files are: in the lineage, or at the paths.
    """
    wanted, found = _owners(access)
    mounts = _mount_points()
    in_lineage = [] if mode is InstallMode.COPY else list(wanted.values())
    for folder in (lineage, lineage / "versions"):
        obstacle = _try_folder(folder, "state_dir", in_lineage)
        if obstacle is not None:
            return [obstacle, *found]
    for part, path in outputs.paths().items():
        output = _standing(lineage, part, path)
        if mode is InstallMode.LINK and output is not None and output.target == str(lineage / "current" / part):
            continue  # the next version shows there without a change of the folder
        owners = _copy_owners(output, wanted.get(part)) if mode is InstallMode.COPY else []
        obstacle = _try_folder(path.parent, part.setting, owners) or _try_entry(
            lineage, part, path, part.setting, mounts
        )
        if obstacle is not None:
            found.append(obstacle)
    return found


def own_obstacles(folder: Path, *, files: Sequence[str], folders: Sequence[str]) -> Iterator[Obstacle]:
    """What stands where the agent keeps files and folders of its own, and is neither or can't be replaced. Blocks."""
    try:
        with open_directory(folder) as directory:
            for name in (*files, *folders):
                status, path = directory.status(name), folder / name
                if status is None:
                    continue
                is_right = stat.S_ISREG if name in files else stat.S_ISDIR
                if not is_right(status.st_mode):
                    what = "file" if name in files else "folder"
                    yield Obstacle("state_dir", f"{path} is not a {what}, as the agent expects there", "move it away")
                elif name in files and directory.is_fixed(name):
                    yield Obstacle("state_dir", f"{path} is immutable or append-only", f"chattr -i -a {path}")
    except (OSError, UnsafeDirectoryError):  # told by the folder's own trial, or still to be made
        return


def _standing(lineage: Path, part: Part, path: Path) -> Output | None:
    """What stands at a path; None where that can't be seen, which the trials tell."""
    try:
        with open_directory(path.parent) as directory:
            return look(directory, lineage, part, path)
    except (OSError, UnsafeDirectoryError):
        return None


def _copy_owners(output: Output | None, wanted: Owner | None) -> list[Owner]:
    """Whose a copy will be: as configured, and else as the file that it replaces."""
    before = None if output is None else output.owner
    if before is None:
        return [] if wanted is None else [wanted]
    if wanted is None:
        return [before]
    return [Owner(*(old if new < 0 else new for old, new in ((before.uid, wanted.uid), (before.gid, wanted.gid))))]


def _owners(access: Mapping[Part, FileAccess]) -> tuple[dict[Part, Owner], list[Obstacle]]:
    """The owners that are to be set, (uid_t)-1 where one isn't; those that this host doesn't have are obstacles."""
    owners: dict[Part, Owner] = {}
    found: dict[str, Obstacle] = {}
    for part, each in access.items():
        try:
            owners[part] = each.over(Permission(Owner(-1, -1), 0)).owner
        except OperationError as error:
            found.setdefault(error.message, Obstacle(part.setting, error.message, error.remedy))
    return owners, list(found.values())


def _try_folder(folder: Path, key: str, owners: Sequence[Owner]) -> Obstacle | None:
    """See whether files can be made in a folder, and be given to their owners; in the one above where it is missing."""
    try:
        with _nearest(folder) as directory:
            if directory.is_fixed():
                return Obstacle(key, f"{directory.path} is immutable or append-only", f"chattr -i -a {directory.path}")
            try:
                directory.try_new_file(_ROOM, owners)
            except PermissionError:
                return _forbidden(directory, key, owners)
            except FileNotFoundError:  # /proc says so of any new file
                return Obstacle(key, f"nothing can be made in {directory.path}", "configure another path")
    except UnsafeDirectoryError as error:
        return Obstacle(key, error.message, error.remedy)
    except OSError as error:
        return Obstacle(key, *explain(error, folder))
    return None


def _nearest(folder: Path) -> Directory:
    """The folder, or the nearest above it that exists: there the missing ones would be made."""
    for path in (folder, *folder.parents):
        try:
            return open_directory(path)
        except FileNotFoundError:
            continue
    raise AssertionError("the root is always there")


def _forbidden(directory: Directory, key: str, owners: Sequence[Owner]) -> Obstacle:
    try:
        directory.try_new_file(0)
    except PermissionError:
        return Obstacle(
            key,
            f"{directory.path} can't be written by {this_user()}",
            "give that user the right to write there (chown or setfacl), or run the agent as another user",
        )
    return Obstacle(
        key,
        f"{this_user()} can't give files in {directory.path} to their owner or group, as configured or as they are now "
        f"({', '.join(_owner_text(owner) for owner in owners)})",
        "run the agent as root, make its user a member of the group, or change `owner` and `group`, or the file's own",
    )


def _owner_text(owner: Owner) -> str:
    return ":".join("-" if number < 0 else str(number) for number in (owner.uid, owner.gid))


def _try_entry(lineage: Path, part: Part, path: Path, key: str, mounts: frozenset[Path]) -> Obstacle | None:
    """See whether what stands at a path can be replaced. Its folder is usable, or still to be made."""
    try:
        if len(os.fsencode(temporary_name(path.name))) > _LONGEST_NAME:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))  # noqa: TRY301 - as rename
        if path in mounts:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))  # noqa: TRY301 - as rename would
        with open_directory(path.parent) as directory:
            output = look(directory, lineage, part, path)
            if output.standing is Standing.FOREIGN:
                return Obstacle(key, f"{path} {output.problem}", FOREIGN_REMEDY)
            return _fixed(directory, path, key)
    except FileNotFoundError:  # the folder is still to be made
        return None
    except UnsafeDirectoryError as error:
        return Obstacle(key, error.message, error.remedy)
    except OSError as error:
        return Obstacle(key, *explain(error, path))


def _fixed(directory: Directory, path: Path, key: str) -> Obstacle | None:
    """Whether a rename would be refused though the folder may be written."""
    status = directory.status(path.name)
    if status is not None:
        if stat.S_ISREG(status.st_mode) and directory.is_fixed(path.name):
            return Obstacle(key, f"{path} is immutable or append-only", f"chattr -i -a {path}")
        above = directory.status(".")
        assert above is not None
        others = {0, status.st_uid, above.st_uid}
        if above.st_mode & stat.S_ISVTX and os.geteuid() not in others:
            cause = f"{path} belongs to user {status.st_uid} in a sticky folder, where only its owner replaces it"
            return Obstacle(key, cause, "choose another folder, or move the file away")
    left = directory.status(temporary_name(path.name))
    if left is not None and stat.S_ISDIR(left.st_mode):
        name = path.parent / temporary_name(path.name)
        return Obstacle(key, f"{name} is a directory, and new files have that name first", f"remove {name}")
    return None


def _mount_points() -> frozenset[Path]:
    """Where something is mounted; single files too. Empty where the system doesn't say."""
    return frozenset(_read_mounts())


def _read_mounts() -> Iterator[Path]:
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(b" ")
        if len(fields) > 4:  # proc_pid_mountinfo(5): the fifth, with octal escapes
            yield Path(os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), fields[4])))
