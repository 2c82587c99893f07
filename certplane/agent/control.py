"""How `renew`, `activate` and `reload` reach an agent that runs: a socket in the state directory.

Each line is a JSON object. The client sends `{"command": "renew", "name": NAME}`, the same of `activate`, `{"command":
"reload"}` or `{"command": "ping"}`; the agent answers with the steps as they happen (`subject`, `event`, `text`) and
ends with `{"event": "result", "ok": BOOL, "text": TEXT}`. The socket lies in a directory of mode 0700, so that only the
agent's user and root can connect. Only the holder of the state lock listens: a socket that a crash left behind is
replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from typing_extensions import override

from certplane.errors import OperationError
from certplane.runtime.disk_errors import disk_error
from certplane.runtime.progress import Progress, SilentProgress

_DIRECTORY, _SOCKET = "control", "agent.sock"
_MOST_BYTES = 64 * 1024
"""Of one line; a request has some tens."""
_PATIENCE_SECONDS = 5.0
"""For a client to send its line, and for an agent to take a connection."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended, in words for a person."""

    ok: bool
    text: str


class FanOut(SilentProgress):
    """A `Progress` that tells whoever listens to a subject."""

    def __init__(self) -> None:
        self._listeners: list[tuple[str, Callable[[dict[str, Any]], None]]] = []

    @contextlib.contextmanager
    def listening(self, subject: str, listener: Callable[[dict[str, Any]], None]) -> Iterator[None]:
        """Tell `listener` of every event of `subject` meanwhile."""
        entry = (subject, listener)
        self._listeners.append(entry)
        try:
            yield
        finally:
            self._listeners.remove(entry)

    @override
    def step(self, subject: str, text: str) -> None:
        self._tell("step", subject, text)

    @override
    def done(self, subject: str, text: str) -> None:
        self._tell("done", subject, text)

    @override
    def failed(self, subject: str, text: str) -> None:
        self._tell("failed", subject, text)

    def _tell(self, event: str, subject: str, text: str) -> None:
        for wanted, listener in tuple(self._listeners):
            if wanted == subject:
                listener({"subject": subject, "event": event, "text": text})


class ControlServer:
    """The agent's end. An async context manager: it listens while entered.

    Args:
        state_dir: the state directory, whose lock the caller holds.
        act: carries out `renew NAME` and such; None: it doesn't know the command.
        events: where the steps are told.
        reload: carries out `reload`, which may end this server: its answer goes out all the same.
    """

    def __init__(
        self,
        state_dir: Path,
        act: Callable[[str, str], Awaitable[Outcome | None]],
        events: FanOut,
        reload: Callable[[], Awaitable[Outcome]] | None = None,
    ) -> None:
        self._directory = state_dir / _DIRECTORY
        self._act = act
        self._reload = reload
        self._events = events
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            OperationError: the socket can't be made.
        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._directory.chmod(0o700)
            (self._directory / _SOCKET).unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            with _short_path(self._directory) as path:
                listener.bind(path)
        except OSError as error:
            raise disk_error(OperationError, "no socket can be made for commands", error, self._directory) from error
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=_MOST_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening; commands under way lose their connection, not their effect."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(OSError):
            (self._directory / _SOCKET).unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def tell(event: dict[str, Any]) -> None:
            if not writer.is_closing():
                writer.write(json.dumps(event).encode() + b"\n")

        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                line = await reader.readline()
            outcome = await self._carry_out(line, tell)
            tell({"event": "result", "ok": outcome.ok, "text": outcome.text})
            await writer.drain()
        except (OSError, TimeoutError, ValueError, RecursionError) as error:
            logger.debug("a control connection ended: %s", error)
        finally:
            writer.close()

    async def _carry_out(self, line: bytes, tell: Callable[[dict[str, Any]], None]) -> Outcome:
        request = json.loads(line or b"null")
        match request:
            case {"command": "ping"}:
                return Outcome(ok=True, text=f"process {os.getpid()}")
            case {"command": "reload"} if self._reload is not None:
                return await self._reload()
            case {"command": str(command), "name": str(name)}:
                with self._events.listening(name, tell):
                    outcome = await self._act(command, name)
            case _:
                outcome = None
        return outcome or Outcome(ok=False, text="this agent doesn't know that command; is it another release?")


async def ask(state_dir: Path, request: dict[str, str], progress: Progress) -> Outcome | None:
    """Send a command to the agent that runs; None when none listens.

    Raises:
        OperationError: the socket isn't ours to use, or the agent ended in the middle.
    """
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            with _short_path(state_dir / _DIRECTORY) as path:
                reader, writer = await asyncio.open_unix_connection(path, limit=_MOST_BYTES)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except (OSError, TimeoutError) as error:
        raise OperationError(
            f"the running agent can't be asked: {error}", remedy="run the command as the agent's user, or as root"
        ) from error
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        async for event in _events(reader):
            match event:
                case {"event": "result", "ok": bool(ok), "text": str(text)}:
                    return Outcome(ok, text)
                case {"event": "step" | "done" | "failed" as kind, "subject": str(subject), "text": str(text)}:
                    getattr(progress, kind)(subject, text)
    except (OSError, ValueError, RecursionError) as error:
        raise OperationError(f"the connection to the running agent broke: {error}") from error
    finally:
        writer.close()
    raise OperationError("the running agent ended meanwhile", remedy="check its log, then try again")


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[Any]:
    while line := await reader.readline():
        yield json.loads(line)


@contextlib.contextmanager
def _short_path(directory: Path) -> Iterator[str]:
    """The socket's path by a descriptor of its directory: an address has 108 bytes, a state directory may have more."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{_SOCKET}"
    finally:
        os.close(descriptor)
