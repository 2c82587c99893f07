"""Runs a program for a DNS provider: no shell, its own process group, a time limit, bounded output, nothing inherited.

The program gets an argument vector, a small environment and what it is told on standard input, so that a secret stands
neither in arguments nor in an environment that others can read. Its exit is awaited, not the end of its output: what it
leaves running must not hold anybody. At the limit, and when the caller is cancelled, the whole group is killed; one
that runs as another user (`sudo`) can't be, and is left.
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

from certplane.runtime.processes import OutputTail, signal_group

_log = logging.getLogger(__name__)

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = 16 * 1024


class NotStartedError(Exception):
    """The program can't be started; the text says why."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended.

    Attributes:
        status: its exit status, 128 and the signal's number after one; None when it was killed at the limit.
        output: the end of its standard output.
        errors: the end of its standard error.
    """

    status: int | None
    output: bytes
    errors: bytes


async def run_program(
    command: Sequence[str], *, environment: Mapping[str, str], told: bytes, timeout: timedelta
) -> Ended:
    """Run a program to its end.

    Args:
        command: absolute path of the program, and its arguments.
        environment: all that it gets.
        told: on standard input, at most what a pipe takes at once (64 KiB); a program needn't read it.
        timeout: then it is killed.

    Raises:
        NotStartedError: it isn't there, or isn't a program.
    """
    with contextlib.ExitStack() as stack:
        output, errors = OutputTail(_KEPT), OutputTail(_KEPT)
        stack.callback(output.close)
        stack.callback(errors.close)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
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
        status = await _until_exit(process, told, timeout)
        return Ended(status, output.end(), errors.end())


async def _until_exit(process: asyncio.subprocess.Process, told: bytes, timeout: timedelta) -> int | None:
    assert process.stdin is not None
    try:
        process.stdin.write(told)
        process.stdin.close()
        async with asyncio.timeout(timeout.total_seconds()):
            status = await process.wait()
    except TimeoutError:
        return None
    else:
        return 128 - status if status < 0 else status
    finally:
        if process.returncode is None:
            try:
                signal_group(process.pid, signal.SIGKILL)
            except PermissionError:
                _log.warning("a program past its time runs as another user and can't be ended: group %d", process.pid)
            else:
                await asyncio.shield(process.wait())
