"""One child as the broker sees it: started, asked, and known to have ended.

It is a fresh interpreter (a process in which gRPC has threads can't fork), and inherits its end of the socket pair and
standard error, and no other descriptor. It has a process group of its own, so that Ctrl-C in a terminal is the
broker's alone to answer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

from certplane import __version__
from certplane.broker.issuing import messages as m
from certplane.broker.issuing.accounts import AccountAnswers
from certplane.broker.issuing.connection import Connection, connect
from certplane.broker.issuing.log_lines import write_line
from certplane.broker.renewal.model import RenewalInfoError, RenewalInfoUnsupportedError
from certplane.errors import ConfigurationError, OperationError, RefusalError
from certplane.runtime import tracing
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.logging import request_id
from certplane.runtime.parent import FOR_THE_PROGRAM

R = TypeVar("R")

_MODULE: Final = "certplane.broker.issuing"
_BROKERS_OWN: Final = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
"""Variables by which a service manager talks with the broker, and with nobody else."""

_ENDING: Final = timedelta(seconds=3)
"""For a process whose connection has ended: it takes two at most by itself."""

_REAP_LOOK: Final = timedelta(milliseconds=10)

_MOST_WAITING: Final = 8 * 1024 * 1024
"""Octets that the child hasn't read: calls are refused then, until it reads or is killed for giving no sign of life."""


class ChildEndedError(Exception):
    """The child ended before it had answered; the text says how, for the log."""


@dataclass(slots=True)
class _Waiting:
    call: m.Call[Any]
    result: asyncio.Future[Any]
    tell: Callable[[str], object] | None


class Child:
    """One child. For the event loop's thread."""

    def __init__(
        self, secret_changed: Callable[[str], None], accounts: AccountAnswers | None = None, clock: Clock | None = None
    ) -> None:
        """Nothing is started yet.

        Args:
            secret_changed: Hears the names of secrets that are others now.
            accounts: Answers what the child asks of accounts.
            clock: For its end.
        """
        self._secret_changed = secret_changed
        self._accounts = accounts or AccountAnswers()
        self._answers: set[asyncio.Task[None]] = set()
        self._clock = clock or SystemClock()
        self._waiting: dict[int, _Waiting] = {}
        self._last = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._ready: asyncio.Future[m.Ready] = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(lambda done: done.cancelled() or done.exception())  # who waited may have gone
        self._why = ""
        self.how = ""
        """How it ended, when `start` has failed."""
        self.ended = asyncio.Event()
        self.on_end: Callable[[Child], None] = lambda _: None
        """Hears of its end before any of its calls does."""
        self.resident = 0
        """Octets of memory, as it last said."""
        self.unanswered = 0
        """Beats that it has not answered."""
        self._changed = asyncio.Event()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid if self._process is not None else 0

    @property
    def calls(self) -> int:
        """Calls under way."""
        return len(self._waiting)

    async def start(self, begin: m.Begin, environment: Mapping[str, str], within: timedelta) -> m.Ready:
        """Start it and wait until it is ready.

        Raises:
            ConfigurationError: its adapters can't be made of these settings.
            ChildEndedError: it ended, or was not ready in time; it is gone then.
        """
        try:
            async with asyncio.timeout(within.total_seconds()):
                await self._spawn(environment)
                self._send(begin)
                ready = await self._ready
        except BaseException as error:
            if isinstance(error, TimeoutError):
                self.kill(f"it was not ready after {within.total_seconds():g} s")
            elif not self.ended.is_set():
                self.kill("its start was given up")
            self.how = await self.reap()
            if isinstance(error, TimeoutError):
                raise ChildEndedError(self.how) from error
            raise
        return ready

    async def _spawn(self, environment: Mapping[str, str]) -> None:
        try:
            own, its = socket.socketpair()
            with its:
                try:
                    self._process = _start(its, environment)
                    self._connection = await connect(own, self._take, self._lost)
                except BaseException:
                    own.close()
                    raise
        except OSError as error:  # no descriptor, no process, no memory: for now
            self._why = f"it can't be started: {error.strerror or error}"
            raise ChildEndedError(self._why) from error

    async def ask(self, call: m.Call[R], tell: Callable[[str], object] | None = None) -> R:
        """Make a call; `tell` hears what it is waiting for. A cancellation is passed on and not waited for.

        Raises:
            ChildEndedError: the child ended, the answer was none, or it doesn't read what is sent.
            RefusalError, RenewalInfoError: what the adapter raised.
            RuntimeError: it raised something else, which is in the log.
        """
        if self.ended.is_set():
            raise ChildEndedError(self._why)
        if self._connection is not None and self._connection.waiting > _MOST_WAITING:
            raise ChildEndedError("it doesn't read what is sent")
        self._last = number = self._last + 1
        waiting = _Waiting(call, asyncio.get_running_loop().create_future(), tell)
        self._waiting[number] = waiting
        try:
            self._send(m.Request(number, request_id.get(), call, tracing.context()))  # type: ignore[arg-type]  # each `Call` is one of them
            result: R = await waiting.result
        except asyncio.CancelledError:
            self._send(m.Cancel(number))
            raise
        finally:
            del self._waiting[number]
            self._changed.set()
        return result

    def beat(self, *, in_trouble: bool) -> None:
        """Ask for a sign of life."""
        self.unanswered += 1
        self._send(m.Beat(in_trouble))

    def set_level(self, level: str) -> None:
        """Log at this level from now on."""
        self._send(m.SetLevel(level))

    @property
    def writes(self) -> bool:
        """Whether a call is under way that writes DNS records."""
        return any(waiting.call.writes_dns for waiting in self._waiting.values())

    async def quiet(self, *, writes_alone: bool = False) -> None:
        """Return when no call is under way; `writes_alone`: none that writes DNS records."""
        while self.writes or (self._waiting and not writes_alone):
            self._changed.clear()
            await self._changed.wait()

    def kill(self, why: str) -> None:
        """End it at once; its calls end with `ChildEndedError`."""
        self._why = self._why or why
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    async def close(self, within: timedelta) -> str:
        """Let it end by itself, as it does when its connection ends, but no longer than `within`; as `reap`."""
        self._why = self._why or "it was closed"
        if self._connection is not None:
            self._connection.close()
        return await self.reap(within)

    async def reap(self, patience: timedelta = _ENDING) -> str:
        """Wait until the process is gone, killed after `patience`; returns how it ended."""
        process = self._process
        if process is None:
            return self._why
        until = self._clock.monotonic() + patience.total_seconds()
        while (status := process.poll()) is None:
            if self._clock.monotonic() >= until:
                process.send_signal(signal.SIGKILL)
            await self._clock.sleep(_REAP_LOOK)
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return f"{self._why} ({how})" if self._why else how

    def _send(self, message: m.ToChild) -> None:
        if self._connection is not None:
            self._connection.send(m.encode(message))

    def _take(self, octets: bytes) -> None:
        message = m.decode_to_broker(octets)
        match message:
            case m.LogLine():
                write_line(message)
            case m.Alive():
                self.unanswered, self.resident = 0, message.resident
            case m.Ready():
                self._accounts.take_keys(message.accounts)
                if not self._ready.done():
                    self._ready.set_result(message)
            case m.AccountKey() | m.FindAccount() | m.ChangeAccount():
                self._about_accounts(message)
            case m.Unfit():
                if not self._ready.done():
                    self._ready.set_exception(ConfigurationError(message.problems))
            case m.SecretChanged():
                self._secret_changed(message.name)
            case _:
                self._answered(message)

    def _about_accounts(self, message: m.AccountKey | m.FindAccount | m.ChangeAccount) -> None:
        if isinstance(message, m.AccountKey):
            self._accounts.take_keys({message.issuer: message.sha256})
            return
        task = asyncio.create_task(self._answer(message), name="account of the issuing process")
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, question: m.FindAccount | m.ChangeAccount) -> None:
        self._send(await self._accounts.answer(question))

    def _answered(self, message: m.Returned | m.Refused | m.NoRenewalInfo | m.Broke | m.Told) -> None:
        waiting = self._waiting.get(message.number)
        if waiting is None or waiting.result.done():  # nobody waits any more
            return
        match message:
            case m.Told():
                if waiting.tell is not None:
                    waiting.tell(message.text)
            case m.Returned():
                waiting.result.set_result(m.decode_result(waiting.call, message.value))
            case m.Refused():
                waiting.result.set_exception(RefusalError.of(message.refusal))
            case m.NoRenewalInfo():
                waiting.result.set_exception(_no_renewal_info(message))
            case m.Broke():
                what = f"{type(waiting.call).__name__} failed in the issuing process: {message.error}"
                waiting.result.set_exception(RuntimeError(what))

    def _lost(self, why: str) -> None:
        """The connection has ended: so has the process, or it does now (`reap`)."""
        self._why = self._why or why
        self.ended.set()
        self.on_end(self)
        error = ChildEndedError(self._why or "it ended")
        if not self._ready.done():
            self._ready.set_exception(error)
        for waiting in self._waiting.values():
            if not waiting.result.done():
                waiting.result.set_exception(error)


def _start(its: socket.socket, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the program with its end of the pair. Takes a millisecond: the interpreter starts beside."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PROGRAM)
    try:
        return subprocess.Popen(
            [sys.executable, *_flags(), "-m", _MODULE, str(its.fileno()), str(os.getpid()), __version__],
            stdin=subprocess.DEVNULL,
            stdout=2,
            env={name: value for name, value in environment.items() if name not in _BROKERS_OWN},
            pass_fds=(its.fileno(),),
            process_group=0,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _flags() -> list[str]:
    """What keeps this interpreter from importing elsewhere keeps the child's; the working directory is no place."""
    flags = sys.flags
    own = (("-I", flags.isolated), ("-E", flags.ignore_environment), ("-s", flags.no_user_site))
    return ["-P", *(flag for flag, on in own if on)]


def _no_renewal_info(message: m.NoRenewalInfo) -> RenewalInfoError:
    if message.unsupported:
        return RenewalInfoUnsupportedError(message.message)
    return RenewalInfoError(message.message, temporary=message.temporary, retry_after=message.retry_after)


def not_started(why: str) -> OperationError:
    """What a start of the broker says of a child that doesn't."""
    remedy = "its lines of the log say more; see docs/operations.md, `The issuing process`"
    return OperationError(f"the process for CAs and DNS can't be started: {why}", remedy=remedy)
