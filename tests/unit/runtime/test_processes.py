"""The end of a program's output, and signals to its group."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from certplane.runtime.processes import OutputTail, reap, reap_as_init, signal_group
from tests.fakes.clock import ManualClock
from tests.support.waiting import HANG, blocking_until


async def test_the_end_of_output_is_kept() -> None:
    """However much is written nobody blocks, and the last octets are there."""
    tail = OutputTail(10)
    try:
        for number in range(1000):
            os.write(tail.writer, f"{number:04} ".encode() * 100)
            await asyncio.sleep(0)
        tail.started()
        assert tail.end() == b"0999 0999 "
        assert tail.end() == b"0999 0999 "
    finally:
        tail.close()


async def test_a_writer_that_stays_is_not_waited_for() -> None:
    """What was left behind may keep the pipe: its end is told at once, and closing works."""
    tail = OutputTail(10)
    kept = os.dup(tail.writer)
    tail.started()
    os.write(kept, b"said")
    assert tail.end() == b"said"
    tail.close()
    os.close(kept)


def test_a_group_that_is_gone() -> None:
    """No group is no error."""
    assert not signal_group(2**22 + 1, signal.SIGKILL)


def test_what_was_left_behind_is_waited_for() -> None:
    """A zombie that nobody waits for is reaped at the second look; one that has just ended is left to its owner."""
    left = subprocess.Popen(["true"])
    blocking_until(lambda: left.pid in reap(frozenset()))
    fresh = subprocess.Popen(["true"])
    blocking_until(lambda: fresh.pid in reap(frozenset()))
    assert fresh.wait() == 0
    assert left.pid in reap(frozenset())
    assert left.pid not in reap(frozenset({left.pid}))
    assert left.pid not in reap(frozenset())
    with pytest.raises(ChildProcessError):
        os.waitpid(left.pid, 0)
    left.wait()


async def test_only_a_first_process_reaps() -> None:
    """Where there is an init, that is its work."""
    await reap_as_init(ManualClock())


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_the_first_process_of_a_container_leaves_no_zombies(tmp_path: Path) -> None:
    """A command's own children, which it left behind, are gone after two looks."""
    script = tmp_path / "first.py"
    script.write_text(_FIRST)
    command = ["unshare", "--fork", "--pid", "--mount-proc", sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    if "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("this machine lets nobody make a namespace")
    assert done.stdout.splitlines() == ["1", "2", "0"], done.stderr


_FIRST = """
import asyncio, os, subprocess
from certplane.runtime import processes
from certplane.runtime.clock import SystemClock
from datetime import timedelta

async def main():
    print(os.getpid())
    subprocess.run(["sh", "-c", "sleep 0.1 & sleep 0.1 &"], check=True)
    while len(processes._zombies()) < 2:
        await asyncio.sleep(0.02)
    print(len(processes._zombies()))
    processes._REAPING = timedelta(milliseconds=50)
    task = asyncio.create_task(processes.reap_as_init(SystemClock()))
    while processes._zombies():
        await asyncio.sleep(0.02)
    print(len(processes._zombies()))
    task.cancel()

asyncio.run(main())
"""
