"""Who may read an output: what the configuration says, over what a file had before.

Users and groups are looked up when a version is put in place, since a host may know them only after its start. What
can't be set is an error and stops the activation: a service that can't read its key is worse off than with the
certificate before.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from certplane.agent.install.versions import Permission
from certplane.errors import OperationError
from certplane.runtime.files import Owner

_NO_ID = 2**32 - 1
"""(uid_t)-1: what chown(2) takes for "leave it"; no user or group has it, or more."""


class AccessError(OperationError):
    """A configured owner, group or mode can't be set."""


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
    return _number(name, "user", "owner", lambda: pwd.getpwnam(name).pw_uid)


def _gid(name: str) -> int:
    return _number(name, "group", "group", lambda: grp.getgrnam(name).gr_gid)


def _number(name: str, what: str, key: str, look_up: Callable[[], int]) -> int:
    """By number, or by what the system's name service (files, LDAP, a domain) says of the name."""
    if name.isascii() and name.isdecimal():
        if int(name) < _NO_ID:
            return int(name)
        raise AccessError(f"{name} is no number of a {what}", remedy=f"correct `{key}`")
    try:
        return look_up()
    except KeyError as error:
        database = "passwd" if what == "user" else "group"
        raise AccessError(
            f"this host has no {what} {name}",
            remedy=f"create the {what}, or correct `{key}`; `getent {database} '{name}'` says whether there is one",
        ) from error
