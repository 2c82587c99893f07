"""A process that is a part of a program doesn't outlive it, whatever ends the program."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
"""prctl(2). It is about the thread that started this process, which must be the program's main thread."""

FOR_THE_PROGRAM: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What a service manager may send to all processes of a service at once, and the program's own process answers. A part
of it is started with these blocked: the default for them, until it has handlers of its own, would be its end."""


def end_with_parent(parent: int) -> bool:
    """Have the kernel kill this process when its parent ends; False if `parent`, a process id, has ended already.

    Where the kernel has no such call, the end of whatever connects the two is all that tells.
    """
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), *[ctypes.c_ulong(0)] * 3)
    except (AttributeError, MemoryError, OSError):  # not Linux, or no foreign functions in this sandbox
        pass
    return os.getppid() == parent
