"""The end of a program's output, and signals to its group."""

from __future__ import annotations

import asyncio
import os
import signal

from certplane.runtime.processes import OutputTail, signal_group


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
