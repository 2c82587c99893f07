"""certplanectl on a terminal of its own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.waiting import no_hang, until

_SEQUENCES = re.compile(r"\x1b\[[0-9;?<>=]*[a-zA-Z]")


class InTerminal:
    """A program on a terminal of 80 columns and 24 lines; `text` is all that it has written."""

    def __init__(self, master: int, slave: int, process: asyncio.subprocess.Process, before: list[object]) -> None:
        self.process = process
        self.text = ""
        self._master = master
        self._slave: int | None = slave
        self._at_end = False
        self._before = before

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    async def writes(self, text: str) -> None:
        """It is among what was written, whatever colours it has."""
        try:
            await until(lambda: text in self.text or text in _SEQUENCES.sub("", self.text), what=repr(text))
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.text[-4000:]!r}") from error

    async def ends(self, status: int) -> None:
        """With this status, and the terminal as it was."""
        async with no_hang():
            assert await self.process.wait() == status, self.text[-20_000:]
        assert termios.tcgetattr(self._master)[3] == self._before[3]
        self.close_slave()  # the kernel hands over what was written last some time after that; then there is an end
        await until(lambda: self._at_end, what="the end of what it wrote")

    def close_slave(self) -> None:
        """Keep the terminal open no longer than programs on it do."""
        if self._slave is not None:
            os.close(self._slave)
            self._slave = None

    def read(self) -> None:
        try:
            self.text += os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # EIO: nobody has the terminal open any more
            self._at_end = True
            asyncio.get_running_loop().remove_reader(self._master)


@asynccontextmanager
async def in_terminal(config: Path, *arguments: str, **environment: str) -> AsyncIterator[InTerminal]:
    """Runs `certplanectl -c config ...`."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(slave)
    kept: Mapping[str, str] = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "certplane.ctl",
        *arguments,
        "-c",
        str(config),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**kept, "LANG": "C.UTF-8", "TERM": "xterm", **environment},
    )
    shown = InTerminal(master, slave, process, before)
    asyncio.get_running_loop().add_reader(master, shown.read)
    try:
        yield shown
    finally:
        asyncio.get_running_loop().remove_reader(master)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)
        shown.close_slave()
