"""Named places at which a program stands still."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil

from tests.support.waiting import HANG, blocking_until

_PASS_TWICE = """
from certplane.runtime.failpoints import failpoint
failpoint("there")
failpoint("there")
print("went on", flush=True)
"""


def test_a_program_stands_still_once_and_goes_on() -> None:
    """`stop` is SIGSTOP at the pass that is named; after SIGCONT the place means nothing any more."""
    environment = {"CERTPLANE_FAILPOINTS": "there=stop"}
    command = [sys.executable, "-c", _PASS_TWICE]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as program:
        try:
            seen = psutil.Process(program.pid)
            blocking_until(lambda: seen.status() == psutil.STATUS_STOPPED, what="the program that stands still")
            program.send_signal(signal.SIGCONT)
            said, _ = program.communicate(timeout=HANG)
        finally:
            program.kill()
    assert (program.returncode, said) == (0, "went on\n")
