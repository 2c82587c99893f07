"""Runs an operator's program: in a process group of its own, with a time limit, and never waited for in vain.

The program gets an argument vector, the environment that is given and nothing else, and what it is told on standard
input: a secret stands neither in arguments nor in an environment that others can read. Its exit is awaited, not the end
of its output: what it leaves running may keep the pipe for good. At the limit, and when the caller is cancelled, the
whole group is ended; one that runs as another user (`sudo`) can't be, and is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from certplane.runtime.clock import Clock
from certplane.runtime.processes import OutputTail, signal_group

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_log = logging.getLogger(__name__)

_KEPT = 16 * 1024
_POLL = timedelta(milliseconds=50)


class NotStartedError(Exception):
    """The program can't be started; the text says why."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended.

    Attributes:
        status: its exit status, 128 and the signal's number after one; None when it was ended at the limit.
        output: the end of its standard output.
        errors: the end of its standard error; empty where both are one.
    """

    status: int | None
    output: bytes
    errors: bytes


async def run_program(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    timeout: timedelta,
    clock: Clock,
    told: bytes | None = None,
    one_output: bool = False,
    keep: int = _KEPT,
    grace: timedelta = timedelta(),
) -> Ended:
    """Run a program to its end.

    Args:
        command: absolute path of the program, and its arguments.
        environment: all that it gets.
        timeout: then its group is ended.
        clock: for the time limit.
        told: on standard input, at most what a pipe takes at once (64 KiB), which a program needn't read; None for
            /dev/null.
        one_output: standard error goes where standard output goes, in the order in which it is written.
        keep: how many octets of an output are kept.
        grace: between SIGTERM and SIGKILL; without any there is no SIGTERM.

    Raises:
        NotStartedError: it isn't there, or isn't a program.
    """
    with contextlib.ExitStack() as stack:
        output = OutputTail(keep)
        stack.callback(output.close)
        errors = output
        if not one_output:
            errors = OutputTail(keep)
            stack.callback(errors.close)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL if told is None else asyncio.subprocess.PIPE,
                stdout=output.writer,
                stderr=errors.writer,
                cwd="/",
                env=dict(environment),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise NotStartedError(os.strerror(error.errno or 0) if isinstance(error, OSError) else "a NUL") from error
        finally:
            output.started()
            errors.started()
        try:
            if process.stdin is not None:
                process.stdin.write(told or b"")
                process.stdin.close()
            status = await _exit_status(process, timeout, clock)
        finally:
            if process.returncode is None:
                await asyncio.shield(_end(process, clock, grace))
        return Ended(status, output.end(), b"" if one_output else errors.end())


async def _exit_status(process: asyncio.subprocess.Process, timeout: timedelta, clock: Clock) -> int | None:
    """As a shell gives it; None at the limit."""
    exited = asyncio.ensure_future(process.wait())
    limit = asyncio.ensure_future(clock.sleep(timeout))
    try:
        await asyncio.wait({exited, limit}, return_when=asyncio.FIRST_COMPLETED)
        if not exited.done():
            return None
        status = exited.result()
        return 128 - status if status < 0 else status
    finally:
        limit.cancel()
        exited.cancel()


async def _end(process: asyncio.subprocess.Process, clock: Clock, grace: timedelta) -> None:
    """End the group, whose id is the program's, and wait for the program."""
    group = process.pid
    try:
        if grace:
            signal_group(group, signal.SIGTERM)
            until = clock.monotonic() + grace.total_seconds()
            while clock.monotonic() < until and signal_group(group, 0):
                await clock.sleep(_POLL)
        signal_group(group, signal.SIGKILL)
    except PermissionError:
        _log.warning("a program past its time runs as another user and can't be ended: process group %d", group)
        return
    await process.wait()
