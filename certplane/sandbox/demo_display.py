"""What the demo shows: headings, remarks, and commands with their own output.

A command is shown as a user would type it in the demo's folder with the programs on PATH, and exactly that is run. On a
terminal it inherits the terminal, so that its live display is what the user sees. Piped, it writes into our pipe;
those that print a table to a terminal and JSON into a pipe (`table=True`) get a terminal of their own then, since the
demo is for reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import shlex
import subprocess
import sys
import termios
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from certplane.sandbox.errors import SandboxError

_BOLD, _DIM, _CYAN, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[36m", "\x1b[0m"
_WIDTH = 100
_TABLE_WIDTH = 120


class CommandFailedError(SandboxError):
    """A command of the demo ended with a status that the demo doesn't show on purpose."""

    def __init__(self, command: str, status: int) -> None:
        super().__init__(f"`{command}` ended with status {status}")
        self.command = command
        self.status = status


class Display:
    """Writes to standard output, and runs commands that write there too.

    Args:
        folder: where commands run.
        programs: put first on PATH.
        stream: standard output, or what a test puts in its place; it must have a descriptor.
        environment: added to the commands' environment.
    """

    def __init__(
        self,
        folder: Path,
        programs: Path,
        *,
        stream: TextIO | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._colours = self._terminal and not os.environ.get("NO_COLOR")
        self._after_heading = False
        path = os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])
        self._environment = {**os.environ, "PATH": path, **(environment or {})}

    def heading(self, text: str) -> None:
        """Begin a part of the demo."""
        self._write(f"\n{self._styled(_BOLD, text)}\n")
        self._after_heading = True

    def say(self, text: str) -> None:
        """A remark, filled to the width of a page."""
        filled = textwrap.fill(" ".join(text.split()), _WIDTH, break_long_words=False, break_on_hyphens=False)
        self._write(f"\n{filled}")

    def lines(self, text: str) -> None:
        """Text as it stands."""
        self._write(text)

    async def run(self, *command: str, status: int = 0, table: bool = False) -> None:
        """Show a command, run it, and show what it writes to standard output and standard error.

        Args:
            command: program and arguments.
            status: how it must end.
            table: it prints a table only to a terminal.

        Raises:
            CommandFailedError: it ended otherwise, or it can't be started (status 127, as a shell says it).
        """
        line = shlex.join(command)
        gap = "" if self._after_heading else "\n"
        self._after_heading = False
        self._write(f"{gap}{self._styled(_CYAN, '$ ' + line)}")
        try:
            ended = await (self._run_on_terminal(command) if table and not self._terminal else self._run(command))
        except FileNotFoundError as error:
            raise CommandFailedError(line, 127) from error
        if status:
            self._write(self._styled(_DIM, f"[exit status {ended}]"))
        if ended != status:
            raise CommandFailedError(line, ended)

    async def _run(self, command: tuple[str, ...]) -> int:
        descriptor = self._stream.fileno()
        process = await self._start(command, stdout=descriptor)
        return await _ended(process)

    async def _run_on_terminal(self, command: tuple[str, ...]) -> int:
        """With standard output on a terminal of its own, whose text goes on to our stream."""
        reading, writing = pty.openpty()
        termios.tcsetwinsize(writing, (50, _TABLE_WIDTH))
        try:
            # A width in the environment would count for more than the terminal's.
            environment = {"NO_COLOR": "1", "COLUMNS": str(_TABLE_WIDTH)}
            process = await self._start(command, stdout=writing, environment=environment)
        finally:
            os.close(writing)
        loop = asyncio.get_running_loop()
        closed = loop.create_future()
        received = bytearray()

        def readable() -> None:
            try:
                data = os.read(reading, 65536)
            except OSError:  # EIO: nobody has the other end any more
                data = b""
            received.extend(data)
            if not data:
                loop.remove_reader(reading)
                closed.set_result(None)

        loop.add_reader(reading, readable)
        try:
            status = await _ended(process)
            await closed
        finally:
            loop.remove_reader(reading)
            os.close(reading)
        self._stream.write(received.decode(errors="replace").replace("\r\n", "\n"))
        self._stream.flush()
        return status

    async def _start(
        self, command: tuple[str, ...], *, stdout: int, environment: Mapping[str, str] | None = None
    ) -> asyncio.subprocess.Process:
        self._stream.flush()
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=self._folder,
            env={**self._environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=self._stream.fileno(),
        )

    def _write(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _styled(self, style: str, text: str) -> str:
        return f"{style}{text}{_PLAIN}" if self._colours else text


async def _ended(process: asyncio.subprocess.Process) -> int:
    """Its exit status; a cancelled wait ends the process first."""
    try:
        return await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        raise
