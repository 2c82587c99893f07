"""Starting programs and stopping them again.

Rules kept here:

- A child never outlives us. `setpriv --pdeathsig` (util-linux, always there on Debian) asks the kernel to signal the
  child when the *thread* that started it ends, so this also holds after `kill -9`. Hence servers are started from the
  thread of the event loop, never from a worker thread. `setpriv` is used instead of a `preexec_fn`, which may
  deadlock in a process with threads (gRPC has some), and it also drops root where a program refuses to run as root.
  Without it (not Linux) only the ordinary stop remains.
- A child has its own session: Ctrl-C at the terminal reaches us alone, and we stop the children in order.
- Output goes to a log file, never to a pipe that somebody would have to drain.
- Nothing here belongs to an event loop: a server started by one loop can be stopped, or asked, from another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from certplane.sandbox.errors import PortTakenError, SandboxError, ServerStartError
from certplane.sandbox.loopback import LOOPBACK, free_port

_POLL = timedelta(milliseconds=20)
_LOG_TAIL_BYTES = 4000
_PORT_TAKEN = ("address already in use", "address in use", "could not bind")

_T = TypeVar("_T")


@dataclass(slots=True)
class ServerProcess:
    """One server program, from start to stop.

    Attributes:
        name: what messages call it.
        argv: program and arguments.
        log: receives standard output and standard error; appended to, so that a restart keeps the first run's lines.
        cwd: working directory; default: the log's folder.
        environment: added to a minimal environment (PATH, HOME, TMPDIR, LANG=C).
        user: run as this user; only root can ask for it.
        stop_signal: asks it to end; also sent by the kernel when we die.
        ready_within: how long the start may take. Generous: CI machines stall.
        stop_within: after that it is killed.
    """

    name: str
    argv: Sequence[str | Path]
    log: Path
    cwd: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    ready_within: timedelta = timedelta(minutes=2)
    stop_within: timedelta = timedelta(seconds=30)
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _log_start: int = field(default=0, init=False, repr=False)

    @property
    def running(self) -> bool:
        """Whether the program runs at this moment."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            RuntimeError: it was never started.
        """
        if self._child is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._child.pid

    async def start(self, ready: Callable[[], Awaitable[bool]]) -> None:
        """Start the program and wait until `ready()` is true.

        Raises:
            PortTakenError: it ended and its log says that the address is in use.
            ServerStartError: it ended for another reason, can't be started, or wasn't ready in time.
        """
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            try:
                # Blocks for a fork, about a millisecond; asyncio's own subprocesses belong to one loop, these must not.
                self._child = subprocess.Popen(  # noqa: ASYNC220
                    [*self._wrapper(), *map(str, self.argv)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.cwd or self.log.parent,
                    env={**_minimal_environment(), **self.environment},
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerStartError(self.name, f"can't be started: {error}") from error
        try:
            await self._until_ready(ready)
        except BaseException:
            await self.stop()
            raise

    async def run_to_end(self) -> None:
        """Run a program that ends by itself, such as one that prepares a server's files.

        Raises:
            ServerStartError: it can't be started, failed, or didn't end within `ready_within`.
        """

        async def never() -> bool:
            return False

        try:
            await self.start(never)
        except ServerStartError:
            if self._child is None or self._child.returncode != 0:
                raise

    async def _until_ready(self, ready: Callable[[], Awaitable[bool]]) -> None:
        deadline = asyncio.get_running_loop().time() + self.ready_within.total_seconds()
        while True:
            # Look at the child first: a stranger on a stolen port may answer the probe.
            if not self.running:
                tail = self.log_tail()
                taken = any(text in tail.lower() for text in _PORT_TAKEN)
                raise (PortTakenError if taken else ServerStartError)(self.name, "ended while starting", tail)
            with contextlib.suppress(OSError, EOFError, SandboxError, TimeoutError):
                if await ready():
                    return
            if asyncio.get_running_loop().time() > deadline:
                raise ServerStartError(self.name, f"isn't ready after {self.ready_within}", self.log_tail())
            await asyncio.sleep(_POLL.total_seconds())

    async def stop(self) -> None:
        """Ask it to end, wait, and kill its process group if it doesn't. Does nothing when it isn't running."""
        if self._child is None:
            return
        if self.running:
            self._child.send_signal(self.stop_signal)
            deadline = asyncio.get_running_loop().time() + self.stop_within.total_seconds()
            # ASYNC110: the end of a process sets no Event that isn't some loop's own.
            while asyncio.get_running_loop().time() < deadline and self._child.poll() is None:  # noqa: ASYNC110
                await asyncio.sleep(_POLL.total_seconds())
        self.kill()

    def kill(self) -> None:
        """SIGKILL for its whole process group, now. Safe to call twice."""
        if self._child is None:
            return
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def log_text(self) -> str:
        """What it has written since its last start."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def log_tail(self) -> str:
        """The last lines of `log_text`."""
        return self.log_text()[-_LOG_TAIL_BYTES:]

    def _wrapper(self) -> list[str]:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            if self.user is not None:
                raise ServerStartError(self.name, f"can't be run as {self.user}: there is no setpriv")
            return []
        become = [f"--reuid={self.user}", f"--regid={self.user}", "--init-groups"] if self.user else []
        return [setpriv, *become, "--pdeathsig", self.stop_signal.name.removeprefix("SIG"), "--"]


def _minimal_environment() -> dict[str, str]:
    """Enough for a server; none of the caller's proxies, tokens or PEBBLE_* settings."""
    kept = {name: value for name in ("PATH", "HOME", "TMPDIR") if (value := os.environ.get(name))}
    return {**kept, "LANG": "C", "TZ": "UTC"}


async def start_on_free_port(
    start: Callable[[int], Awaitable[_T]],
    *,
    addresses: tuple[str, ...] = (LOOPBACK,),
    udp: bool = False,
    tries: int = 5,
) -> _T:
    """Call `start(port)` with a free port, and again with another one while it raises `PortTakenError`."""
    for attempt in range(1, tries + 1):
        try:
            return await start(free_port(addresses, udp=udp))
        except PortTakenError:
            if attempt == tries:
                raise
    raise AssertionError("unreachable")


async def accepts_tcp(address: str, port: int) -> bool:
    """Whether somebody accepts a TCP connection there."""
    try:
        _, writer = await asyncio.open_connection(address, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
