"""Named places where a test may kill or stall a program, to prove what survives a crash there.

A failpoint does nothing unless the environment of the process says so when it starts:

    CERTPLANE_FAILPOINTS="order.finalize.before=kill,install.switched=kill"

`kill` ends the process by SIGKILL, as a power cut or the OOM killer would; `kill@3` does so at the third pass; `hang`
blocks the calling thread for good. A name that no code passes is not an error, since it may belong to the other
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


def failpoint(name: str) -> None:
    """Pass the failpoint `name`; one dictionary look-up when nothing is armed."""
    action = _armed.get(name)
    if action is None:
        return
    _passes[name] += 1
    what, _, nth = action.partition("@")
    if _passes[name] < int(nth or 1):
        return
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "hang":
        threading.Event().wait()
