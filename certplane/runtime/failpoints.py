"""Named places where a test may kill or stall a program, to prove what survives a crash there.

A failpoint does nothing unless the environment of the process says so when it starts:

    CERTPLANE_FAILPOINTS="order.finalize.before=kill,install.switched=kill"

`kill` ends the program by SIGKILL, as a power cut would; `kill@3` does so at the third pass; `crash` ends the process
alone that passes, as the OOM killer would, which is another thing where that is a part of a program (`belong_to`);
`stop` lets the program stand still (SIGSTOP) until somebody says SIGCONT to it, as a machine does that is suspended;
`hang` blocks the calling thread for good. A name that no code passes is not an error, since it may belong to the other
program. The names in use are listed by the tests that walk them (tests/e2e).
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

_VARIABLE = "CERTPLANE_FAILPOINTS"
_armed = dict(entry.split("=", 1) for entry in os.environ.get(_VARIABLE, "").split(",") if "=" in entry)
_passes: Counter[str] = Counter()


_program = 0


def belong_to(program: int) -> None:
    """This process is a part of the program of this process id, which `kill` and `stop` end or stop with it."""
    global _program  # noqa: PLW0603 - a fact of the process, told once
    _program = program


def failpoint(name: str) -> None:
    """Pass the failpoint `name`; one dictionary look-up when nothing is armed."""
    action = _armed.get(name)
    if action is None:
        return
    _passes[name] += 1
    what, _, nth = action.partition("@")
    if _passes[name] < int(nth or 1):
        return
    if what == "kill" and _program:
        os.kill(_program, signal.SIGKILL)
    if what in {"kill", "crash"}:
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop" and _passes[name] == int(nth or 1):  # once: it is to go on
        if _program:
            os.kill(_program, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "hang":
        threading.Event().wait()
