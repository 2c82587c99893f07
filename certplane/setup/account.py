"""The user whose program is set up, and doing a part of the work as that user. Blocks.

Root makes the folders and writes what belongs to root; what the program itself will own is made by a process of the
program's user, which has no more rights than the program will have. That process is a fork: it must be made before
any thread is, and before gRPC is used.
"""

from __future__ import annotations

import json
import os
import pwd
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from certplane.errors import CertplaneError, OperationError
from certplane.runtime.command import exit_status
from certplane.runtime.failpoints import belong_to
from certplane.runtime.files import Owner
from certplane.setup.internal_ca import as_flags


class EndedError(Exception):
    """The part of the program's user has failed, and has said why; `status` is the program's, never 0."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True, slots=True)
class Account:
    """A user by name, and the owner of what is theirs: None where that is who runs this, and may give nothing away."""

    name: str
    owner: Owner | None


def account(name: str | None, usual: str, *, remedy: str) -> Account:
    """Whose program is set up: the user of this name, by default `usual` for root and oneself for everybody else.

    Args:
        name: an argument's text; None where it wasn't given.
        usual: the user that the program's package makes.
        remedy: what to do where there is no such user.

    Raises:
        OperationError: there is no such user, or somebody else than root names another one.
    """
    if os.geteuid() != 0:
        own = _name_of(os.geteuid())
        if name is not None and name != own:
            raise OperationError(
                f"only root sets up a program of user {name}", remedy="run it as root, or as that user"
            )
        return Account(own, None)
    try:
        found = pwd.getpwnam(name or usual)
    except (KeyError, ValueError) as error:
        raise OperationError(f"there is no user {name or usual}", remedy=remedy) from error
    return Account(found.pw_name, Owner(found.pw_uid, found.pw_gid))


def as_account(
    who: Account, program: str, work: Callable[[], Mapping[str, Any]], load: Callable[[], None] = lambda: None
) -> Mapping[str, Any]:
    """Do some work as the program's user, in a process of its own; returns what it returned.

    Args:
        who: the user.
        program: how a failure is told on standard error: `certplane-agent`.
        work: returns what the caller needs, as JSON's values. It says itself what it has to say.
        load: imports what `work` needs, which that user may have no way to in root's virtual environment.

    Raises:
        EndedError: it failed, which was told in the words of somebody who has typed arguments.
    """
    sys.stdout.flush()  # or both would write it
    sys.stderr.flush()
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_child(parent, writer, lambda: _worked(who, load, work), program)
    os.close(writer)
    answer = b""
    try:
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
    finally:  # Ctrl-C reaches the child too, which may have something to finish
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0 or not answer:
        raise EndedError(status if status > 0 else 128 - status if status < 0 else 1)
    result: Mapping[str, Any] = json.loads(answer)
    return result


def _worked(who: Account, load: Callable[[], None], work: Callable[[], Mapping[str, Any]]) -> bytes:
    load()
    _become(who)
    try:
        return json.dumps(work()).encode()
    except CertplaneError as error:
        raise as_flags(error) from error


def _in_child(parent: int, writer: int, worked: Callable[[], bytes], program: str) -> NoReturn:
    """What the caller's process has begun, such as a display, isn't ended here a second time."""
    status = 1
    try:
        belong_to(parent)

        def working() -> int:
            answer = worked()
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(answer)
            return 0

        status = exit_status(program, working)
    finally:
        os._exit(status)


def _become(who: Account) -> None:
    if who.owner is None or who.owner.uid == os.geteuid():
        return
    os.initgroups(who.name, who.owner.gid)
    os.setresgid(who.owner.gid, who.owner.gid, who.owner.gid)
    os.setresuid(who.owner.uid, who.owner.uid, who.owner.uid)


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
