"""Who may read an output: what the configuration says, over what a file had before.

Users and groups are looked up when a version is put in place, since a host may know them only after its start. Whatever
can't be had is an error here and stops the activation: a service that can't read its key is worse off than with the
certificate before.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from certplane.agent.install.versions import Permission
from certplane.errors import OperationError
from certplane.runtime.files import Owner

__all__ = ["AccessError", "FileAccess", "setting_owners"]


class AccessError(OperationError):
    """A configured owner, group or mode can't be had."""


@dataclass(frozen=True, slots=True)
class FileAccess:
    """Owner, group and mode that are configured for one file; what is None stays as it is."""

    owner: str | None = None
    group: str | None = None
    mode: int | None = None

    def over(self, before: Permission) -> Permission:
        """What the file is to have.

        Raises:
            AccessError: this host has no such user or group.
        """
        uid = before.owner.uid if self.owner is None else _uid(self.owner)
        gid = before.owner.gid if self.group is None else _gid(self.group)
        return Permission(Owner(uid, gid), before.mode if self.mode is None else self.mode)


@contextmanager
def setting_owners(path: object) -> Iterator[None]:
    """Say what a `PermissionError` means where configured owners are set, on files of `path`."""
    try:
        yield
    except PermissionError as error:
        raise AccessError(
            f"the configured owner or group can't be given to the files of {path}: {error.strerror}",
            remedy="run the agent as root, make its user a member of the group, or drop `owner` and `group`",
        ) from error


def _uid(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError as error:
        raise AccessError(f"this host has no user {name}", remedy="create the user, or correct `owner`") from error


def _gid(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise AccessError(f"this host has no group {name}", remedy="create the group, or correct `group`") from error
