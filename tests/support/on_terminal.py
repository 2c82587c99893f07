"""What a program writes on a terminal, whole."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence

from tests.support.waiting import HANG


def written_on_terminal(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, stream: str = "stdout"
) -> str:
    """Run `command` with its standard output, or standard error, on a terminal; it must end with 0.

    A terminal hands over what is written in pieces, and some time after it was: all is there once nobody has it open.
    """
    reading, writing = os.openpty()
    written = bytearray()
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {stream: writing}
    try:
        with subprocess.Popen(command, **streams, env=environment) as process:
            os.close(writing)
            with contextlib.suppress(OSError):  # EIO: the program has closed its end
                while data := os.read(reading, 65536):
                    written += data
            assert process.wait(HANG) == 0, written
    finally:
        os.close(reading)
    return written.decode()
