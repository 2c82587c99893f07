"""Runs a program for a DNS provider: no shell, its own process group, a time limit, bounded output, nothing inherited.

The program gets an argument vector, a small environment and what it is told on standard input, so that a secret stands
neither in arguments nor in an environment that others can read. Its exit is awaited, not the end of its output: what it
leaves running must not hold anybody. At the limit, and when the caller is cancelled, the whole group is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

__all__ = ["SEARCH_PATH", "Ended", "NotStartedError", "run_program"]

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = 16 * 1024
_CHUNK = 64 * 1024
_LAST_READS = 4


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
        output, errors = _Pipe(), _Pipe()
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
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended, or runs as another user
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())


class _Pipe:
    """A pipe of which the end is kept; read by the loop, so that a program never blocks on it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._kept = bytearray()
        self._writing = True
        self._loop.add_reader(self._reader, self._read)

    def started(self) -> None:
        """Close our own writing end: the program has it."""
        if self._writing:
            os.close(self.writer)
            self._writing = False

    def end(self) -> bytes:
        for _ in range(_LAST_READS):  # bounded: what was left behind may go on writing
            if not self._read():
                break
        return bytes(self._kept[-_KEPT:])

    def close(self) -> None:
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
        del self._kept[:-_KEPT]
        return True
