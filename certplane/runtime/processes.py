"""What both programs need to run a command of the operator's: its process group, and the end of its output.

Whoever runs a program awaits its exit, not the end of its output: what it leaves running may keep the pipe for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from datetime import timedelta
from pathlib import Path

from certplane.runtime.clock import Clock

_CHUNK = 64 * 1024
_LAST_READS = 4
_REAPING = timedelta(seconds=10)
_INIT = 1


def signal_group(group: int, number: int) -> bool:
    """Signal a process group; whether there is one.

    Raises:
        PermissionError: every process in it is another user's (`sudo`): it can't be ended, and mustn't be waited for.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
        return True
    return False


class OutputTail:
    """A pipe of which the last octets are kept; read by the loop, so that a program never blocks on it."""

    def __init__(self, keep: int) -> None:
        """Make the pipe; `keep` is how many octets. `writer` is the program's end."""
        self._loop = asyncio.get_running_loop()
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._keep = keep
        self._kept = bytearray()
        self._writing = True
        self._loop.add_reader(self._reader, self._read)

    def started(self) -> None:
        """Close our own writing end: the program has it."""
        if self._writing:
            os.close(self.writer)
            self._writing = False

    def end(self) -> bytes:
        """The last of what has been written up to now."""
        for _ in range(_LAST_READS):  # bounded: what was left behind may go on writing
            if not self._read():
                break
        return bytes(self._kept)

    def close(self) -> None:
        """Read no more."""
        self.started()
        self._loop.remove_reader(self._reader)
        os.close(self._reader)

    def _read(self) -> bool:
        try:
            chunk = os.read(self._reader, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.remove_reader(self._reader)
            return False
        self._kept += chunk
        del self._kept[: -self._keep]
        return True


async def reap_as_init(clock: Clock) -> None:
    """Where this process is the first of its container: wait for what commands left behind, until cancelled.

    Such processes are process 1's children once their parent has gone, and zombies for good if it doesn't wait for
    them. Elsewhere init does, and this returns at once.
    """
    if os.getpid() != _INIT:
        return
    seen: frozenset[int] = frozenset()
    while True:
        await clock.sleep(_REAPING)
        seen = reap(seen)


def reap(seen: frozenset[int]) -> frozenset[int]:
    """Wait for the zombies that were seen before; returns those that are there now.

    A process of our own that has just ended is somebody's here to wait for, and is left to them: by the next look it is
    gone.
    """
    zombies = _zombies()
    for process in zombies & seen:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, os.WNOHANG)
    return zombies - seen


def _zombies() -> frozenset[int]:
    """This process's children that have ended and that nobody waited for (proc(5))."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                state, parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:2]
                if state == b"Z" and int(parent) == os.getpid():
                    found.add(int(entry.name))
    return frozenset(found)
