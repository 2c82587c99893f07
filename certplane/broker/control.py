"""How `certplane-broker reload` reaches the broker that runs, and hears what came of it.

A signal has no answer, so that `systemctl reload` would say yes whatever happens. A socket in a directory of mode 0700
beside the broker's state has one: the client sends `{"command": "reload"}`, a line, and gets
`{"ok": BOOL, "lines": [TEXT, ...]}`, a line; `"confirm": true` beside the command confirms what was refused for want of
that. Only the broker's user and root can connect. A broker that can't make its socket serves all the same: SIGHUP still
reloads, without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import pwd
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from certplane.config.files import denied_remedy
from certplane.errors import OperationError
from certplane.runtime.files import give_to_service

if TYPE_CHECKING:  # the command that asks needs no policy
    from certplane.broker.policy.changes import PolicyChanges

_DIRECTORY: Final = "broker-control"
_MOST_BYTES: Final = 1024 * 1024
_PATIENCE: Final = 5.0
"""Seconds for a client to send its line, and for a broker to take a connection."""
_RELOAD_PATIENCE: Final = 60.0
"""Seconds for a reload: the largest policy takes some."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReloadRequest:
    """Who wants what to be read again.

    Attributes:
        by: Who or what asks, for people.
        confirmed: Whether it is meant that a file takes much away.
        policy_only: Whether the policy alone is read.
        identity: The identity of an operator who asks; empty for all else.
        request_id: Of an operator's call.
    """

    by: str
    confirmed: bool = False
    policy_only: bool = False
    identity: str = ""
    request_id: str = ""

    @property
    def text(self) -> str:
        """Who asks, and whether it was confirmed."""
        return f"{self.by}, confirmed" if self.confirmed else self.by

    @property
    def facts(self) -> Mapping[str, str]:
        """What audit events say of it."""
        return {"identity": self.identity, "request_id": self.request_id}


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What a reload did.

    Attributes:
        ok: Whether nothing was refused.
        lines: What was taken and refused, for a person, refusals first.
        unconfirmed: Whether something was refused that could have been confirmed.
        changes: What the policy that was loaded changes; None if none was.
    """

    ok: bool
    lines: tuple[str, ...]
    unconfirmed: bool = False
    changes: PolicyChanges | None = None


def control_socket(state: Path, configuration: Path) -> Path:
    """Where the broker of a configuration file listens; several may share a state directory.

    Args:
        state: The directory of the broker's own files.
        configuration: Its broker.yml.
    """
    name = hashlib.sha256(os.fsencode(os.path.realpath(configuration))).hexdigest()[:16]
    return state / _DIRECTORY / f"{name}.sock"


class ControlServer:
    """The broker's end. An async context manager: it listens while entered."""

    def __init__(self, path: Path, reload: Callable[[ReloadRequest], Awaitable[ReloadResult]]) -> None:
        """`path` is `control_socket`'s; `reload` carries a reload out and waits for its end."""
        self._path = path
        self._reload = reload
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            with contextlib.suppress(FileExistsError):
                self._path.parent.mkdir(mode=0o700)
                give_to_service(self._path.parent, self._path.parent.parent)
            self._path.parent.chmod(0o700)
            if _answers(self._path):
                _logger.warning(
                    "`certplane-broker reload` won't reach this broker: another one with the same configuration file "
                    "listens at %s; give each its own file",
                    self._path,
                )
                return self
            self._path.unlink(missing_ok=True)
            listener = _bound(self._path)
        except OSError as error:
            _logger.warning(
                "`certplane-broker reload` won't reach this broker: no socket in %s: %s", self._path.parent, error
            )
            return self
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=_MOST_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is None:
            return
        self._server.close()
        with contextlib.suppress(OSError):
            self._path.unlink()
        for conversation in self._conversations:
            conversation.cancel()
        if self._conversations:
            await asyncio.wait(self._conversations)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversation = asyncio.current_task()
        assert conversation is not None
        self._conversations.add(conversation)
        conversation.add_done_callback(self._conversations.discard)
        try:
            async with asyncio.timeout(_PATIENCE):
                line = await reader.readline()
            asked = json.loads(line or b"null")
            if asked in ({"command": "reload"}, {"command": "reload", "confirm": True}):
                by = f"`certplane-broker reload` of {_user(writer)}"
                result = await self._reload(ReloadRequest(by, confirmed="confirm" in asked))
            else:
                result = ReloadResult(
                    ok=False, lines=("this broker doesn't know that command; is it another release?",)
                )
            writer.write(json.dumps({"ok": result.ok, "lines": result.lines}).encode() + b"\n")
            await writer.drain()
        except (OSError, TimeoutError, ValueError) as error:
            _logger.debug("a control connection ended: %s", error)
        finally:
            await _close(writer)


def _user(writer: asyncio.StreamWriter) -> str:
    """Who is at the other end, as the kernel has it."""
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    number = int.from_bytes(credentials[4:8], sys.byteorder)
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid {number}"


def _bound(path: Path) -> socket.socket:
    """A socket that has the path.

    Raises:
        OSError: it can't be had.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        with _short(path) as address:
            listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


async def _close(writer: asyncio.StreamWriter) -> None:
    """End the connection, and return when its descriptor is closed."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _answers(path: Path) -> bool:
    """Whether a broker listens there, which is not to lose its socket to another one."""
    with contextlib.suppress(OSError), _short(path) as address, socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        probe.connect(address)
        return True
    return False


async def request_reload(path: Path, *, confirm: bool = False) -> ReloadResult:
    """Have the broker that listens at `path` read everything again, and wait for the result.

    `confirm`: take what removes much, too.

    Raises:
        OperationError: no broker listens there, it isn't ours to ask, or it ended meanwhile.
    """
    try:
        async with asyncio.timeout(_PATIENCE):
            with _short(path) as address:
                reader, writer = await asyncio.open_unix_connection(address, limit=_MOST_BYTES)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        remedy = "start it, or give the same -c FILE as it has"
        raise OperationError(f"no broker with this configuration listens at {path}", remedy=remedy) from error
    except (OSError, TimeoutError) as error:
        remedy = denied_remedy(path, "check its log")
        raise OperationError(f"the broker at {path} can't be asked: {error}", remedy=remedy) from error
    try:
        command = {"command": "reload", "confirm": True} if confirm else {"command": "reload"}
        writer.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(_RELOAD_PATIENCE):
            answer = json.loads(await reader.readline() or b"null")
    except (OSError, TimeoutError, ValueError) as error:
        raise OperationError(f"the broker gave no answer: {error}", remedy="check its log") from error
    finally:
        await _close(writer)
    return _result(answer)


def _result(answer: Any) -> ReloadResult:
    match answer:
        case {"ok": bool(ok), "lines": list(lines)}:
            return ReloadResult(ok, tuple(str(line) for line in lines))
    raise OperationError("the broker ended meanwhile", remedy="check its log")


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """The socket's path by a descriptor of its directory: an address has 108 bytes, a path may have more."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
