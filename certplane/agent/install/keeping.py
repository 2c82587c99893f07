"""Files that stand at configured paths and aren't ours: kept before anything takes their place, never destroyed.

A complete pair on a host that has no version yet becomes version 0, which a failed first activation goes back to. All
else goes to `<lineage>/replaced/<n>/`, under the names that a version's files have, and stays there until somebody
removes it. It isn't kept beside the original: services that load whole directories would load it too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from certplane.agent.install.material import KEY_PARTS, NoPairError, Part, complete
from certplane.agent.install.outputs import Output
from certplane.agent.install.steps import step
from certplane.agent.install.versions import IMPORTED, Metadata, Permission, VersionDirectories
from certplane.runtime.files import Directory, open_directory

_LOG = logging.getLogger(__name__)

_REPLACED = "replaced"
_NEW = ".new"


def keep(lineage: Path, versions: VersionDirectories, found: Sequence[Output], *, first_use: bool) -> str:
    """Keep what was read at the paths, durably; a crash in between keeps it twice at worst.

    Args:
        lineage: The lineage's directory.
        versions: Its versions.
        found: What stands at the paths now; those without `data` are passed over.
        first_use: No version has been shown yet, so that a complete pair becomes version 0.

    Returns:
        Where it is, relative to the lineage: `versions/0` or `replaced/<n>`.
    """
    files = {output.part: output.data for output in found if output.data is not None}
    permissions = permissions_of(found)
    with step("keep"):
        if first_use and _import(versions, files, permissions):
            return f"versions/{IMPORTED}"
        return _put_aside(lineage, files, permissions)


def permissions_of(found: Sequence[Output]) -> dict[Part, Permission]:
    """Owner and mode of what stands at the paths; a key-bearing file that isn't there would have the other one's."""
    permissions = {output.part: Permission(output.owner, output.mode) for output in found if output.owner is not None}
    of_keys = [permissions[part] for part in (Part.PRIVKEY, Part.COMBINED) if part in permissions]
    return {**{part: of_keys[0] for part in KEY_PARTS if of_keys}, **permissions}


def _import(versions: VersionDirectories, files: Mapping[Part, bytes], permissions: Mapping[Part, Permission]) -> bool:
    if versions.get(IMPORTED) is not None:
        imported = versions.read(IMPORTED)
        return all(imported.get(part) == data for part, data in files.items())
    try:
        everything = complete(files)
    except NoPairError as error:
        _LOG.warning("the files at %s are not a pair that can be restored: %s", ", ".join(sorted(files)), error)
        return False
    versions.add(IMPORTED, everything, Metadata(), permissions)
    return True


def _put_aside(lineage: Path, files: Mapping[Part, bytes], permissions: Mapping[Part, Permission]) -> str:
    with open_directory(lineage, create_mode=0o755) as directory, directory.child(_REPLACED, create_mode=0o755) as kept:
        known = sorted((name for name in kept.names() if name.isdecimal()), key=int)
        for name in known:
            if _holds(kept, name, files):
                return f"{_REPLACED}/{name}"
        number = int(known[-1]) + 1 if known else 1
        kept.discard_tree(_NEW)
        with kept.make(_NEW, mode=0o755) as new:
            for part, data in files.items():
                permission = permissions[part].narrowed(part)
                try:
                    new.write_new(part, data, mode=permission.mode, owner=permission.owner)
                except PermissionError:  # not root: the bytes are what counts
                    new.write_new(part, data, mode=permission.mode)
            new.sync()
        kept.rename(_NEW, str(number))
        kept.sync()
    _LOG.warning("the previous files of the configured paths are kept in %s", lineage / _REPLACED / str(number))
    return f"{_REPLACED}/{number}"


def _holds(kept: Directory, name: str, files: Mapping[Part, bytes]) -> bool:
    with kept.child(name) as directory:
        return {*directory.names()} == {*files} and all(directory.read(part) == data for part, data in files.items())
