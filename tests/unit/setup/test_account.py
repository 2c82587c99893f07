"""Part of a set-up done as the program's user, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from certplane.errors import OperationError
from certplane.setup.account import account

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
SCRIPT = """
import os, sys
from certplane.errors import OperationError
from certplane.setup.account import EndedError, account, as_account
who = account(sys.argv[1] or None, "no-such-user", remedy="")
def work():
    {work}
print("told once")
try:
    result = as_account(who, "certplane-x", work)
except EndedError as ended:
    result = ended.status
print(result, os.geteuid())
"""


def run(work: str, user: str = "") -> subprocess.CompletedProcess[str]:
    """A program that does `work` as `user`; fresh, since a fork wants no threads."""
    command = [sys.executable, "-c", SCRIPT.format(work=work), user or ("root" if os.geteuid() == 0 else "")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_the_work_returns_comes_back() -> None:
    """JSON's values through a pipe; what was printed before is printed once."""
    done = run('return {"a": [1, "b"]}')
    assert done.stdout.splitlines() == ["told once", f"{{'a': [1, 'b']}} {os.geteuid()}"]


def test_a_failure_is_told_by_the_process_that_failed() -> None:
    """Its line is on standard error, once, and its status comes back."""
    done = run('raise OperationError("it broke", remedy="mend it")')
    assert done.stdout.splitlines() == ["told once", f"1 {os.geteuid()}"]
    assert done.stderr == "certplane-x: it broke; mend it\n"


def test_a_process_that_is_killed_is_a_failure() -> None:
    """128 and the signal's number, as a shell gives it."""
    assert run("os.kill(os.getpid(), 9)").stdout.splitlines()[-1] == f"137 {os.geteuid()}"


@ROOT_ONLY
def test_the_work_is_done_by_the_user_for_good() -> None:
    """All three user ids and the groups are the user's; the caller stays root."""
    done = run('return {"ids": os.getresuid(), "gids": os.getresgid()}', "nobody")
    assert done.stdout.splitlines()[-1] == "{'ids': [65534, 65534, 65534], 'gids': [65534, 65534, 65534]} 0"


@ROOT_ONLY
def test_a_user_that_is_not_there_is_told_with_its_remedy() -> None:
    """The usual user is the package's to make."""
    with pytest.raises(OperationError, match="there is no user no-such-user; install it"):
        account(None, "no-such-user", remedy="install it")
