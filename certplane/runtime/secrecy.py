"""A program that holds keys and tokens leaves no copy of its memory behind.

A core dump of the broker has the ACME account key and every DNS credential in it, one of the agent the identity's key.
`LimitCORE=0` of the units keeps them from the disk where the kernel writes files; a crash reporter that reads dumps
from a pipe isn't bound by it everywhere. So the process itself says that it may not be dumped (prctl(2),
PR_SET_DUMPABLE), which also keeps others of the same user from attaching a debugger. What a dump is wanted for, where
the program was, is written as text: the stacks of all threads, without their values.
"""

import contextlib
import ctypes
import faulthandler
import resource
from typing import Final

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4


def keep_memory_private() -> None:
    """From now on neither a crash nor the watchdog's SIGABRT leaves a dump, but the stacks on standard error.

    Programs that this one starts are as they would be: execve(2) makes them dumpable again. Where the kernel has no
    such call, the limit of a core file is set to nothing instead, which they inherit, and may raise.
    """
    if not faulthandler.is_enabled():
        with contextlib.suppress(
            AttributeError, OSError, RuntimeError, ValueError
        ):  # standard error is closed, or no file
            faulthandler.enable()
    if not _set_undumpable():
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _set_undumpable() -> bool:
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (AttributeError, MemoryError, OSError):  # not Linux, or no foreign functions in this sandbox
        return False
    arguments = [ctypes.c_ulong(0)] * 4
    return bool(prctl(_PR_SET_DUMPABLE, *arguments) == 0 and prctl(_PR_GET_DUMPABLE, *arguments) == 0)
