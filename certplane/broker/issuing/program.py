"""The child: adapters made of the broker's settings, which answer calls until the connection ends.

It takes no notice of SIGTERM, SIGINT and SIGHUP, which a service manager may send to all of a service at once: it is
needed until the broker has drained, and ends with the connection, or is killed with the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Final

from certplane import __version__
from certplane.broker import adapters
from certplane.broker.accounts.ports import AccountRows
from certplane.broker.configured import secret_source
from certplane.broker.issuing import messages as m
from certplane.broker.issuing.accounts import AskedAccounts
from certplane.broker.issuing.answering import Adapters, Answering
from certplane.broker.issuing.connection import Connection, TooLargeError, connect
from certplane.broker.issuing.log_lines import LineSender
from certplane.broker.secrets.watch import WatchedSecrets, watched
from certplane.broker.settings import BrokerSettings, parse_settings
from certplane.errors import ConfigurationError
from certplane.rpc.otlp import traced
from certplane.runtime import failpoints, garbage
from certplane.runtime.clock import SystemClock
from certplane.runtime.logging import setup
from certplane.runtime.lookups import service_loop
from certplane.runtime.parent import FOR_THE_PROGRAM, end_with_parent
from certplane.runtime.pool import BlockingPool
from certplane.runtime.secrecy import keep_memory_private

_logger = logging.getLogger(__name__)

_MOST_WAITING: Final = 4 * 1024 * 1024
"""Octets that the broker hasn't read: lines of the log go elsewhere then, so that they don't fill the memory."""

_ENDING: Final = timedelta(seconds=2)
"""For calls to end what can't be left half-done, such as a program of a DNS provider's."""

_STATM: Final = Path("/proc/self/statm")


def main() -> None:
    """All of the process."""
    keep_memory_private()
    garbage.seldom()
    for number in FOR_THE_PROGRAM:
        signal.signal(number, _unheard)  # not SIG_IGN, which programs that this one starts would inherit
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_PROGRAM)
    descriptor, parent, version = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if version != __version__:
        sys.exit(f"version {__version__} was installed while a broker of version {version} runs: restart the broker")
    if not end_with_parent(parent):
        return
    failpoints.belong_to(parent)
    own = socket.socket(fileno=descriptor)
    own.set_inheritable(False)
    with asyncio.Runner(loop_factory=service_loop()) as runner:
        runner.run(_Program(own).run())
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it was closed, here or by who read it
            sys.stderr.flush()
        os._exit(0)  # whatever still waits for a resolver or a disk is nobody's any more


def _unheard(_number: int, _frame: object) -> None:
    """The broker has it too, and says what is to be done."""


class _Program:
    """The child from its connection's begin to its end."""

    def __init__(self, own: socket.socket) -> None:
        """`own` is its end of the socket pair."""
        self._own = own
        self._connection: Connection | None = None
        self._first: asyncio.Future[m.Begin | None] | None = None
        self._answering: Answering | None = None
        self._accounts = AskedAccounts(self._send)
        self._ended = asyncio.Event()
        self._in_trouble = False

    async def run(self) -> None:
        """Return when the connection has ended."""
        self._first = asyncio.get_running_loop().create_future()
        self._connection = await connect(self._own, self._take, self._lost)
        begin = await self._first
        if begin is not None:
            await self._serve(begin)

    async def _serve(self, begin: m.Begin) -> None:
        settings = parse_settings(begin.text, begin.file)
        self._log_by(begin.level, settings.logging.format)
        async with AsyncExitStack() as stack:
            stack.enter_context(traced(settings.tracing.collector, "certplane-broker-issuing"))
            try:
                made, accounts, secrets = await _adapters(
                    settings, stack, self._accounts, self._secret_changed, self._key_changed
                )
            except ConfigurationError as error:
                self._send(m.Unfit(error.problems))
                assert self._connection is not None
                self._connection.close()
                await self._ended.wait()
                return
            self._answering = Answering(made, self._send_octets)
            self._send(m.Ready(accounts))
            garbage.settled()
            watching = asyncio.create_task(
                secrets.watch(SystemClock(), lambda: self._in_trouble), name="secrets of the issuing process"
            )
            await self._ended.wait()
            watching.cancel()
            await self._answering.end(_ENDING)

    def _log_by(self, level: str, format: str) -> None:  # noqa: A002 - the configuration's name of it
        setup(level, format, "stderr")
        root = logging.getLogger()
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        root.addHandler(LineSender(self._send_line, format, asyncio.get_running_loop().call_soon_threadsafe))

    def _take(self, octets: bytes) -> None:
        match m.decode_to_child(octets):
            case m.Begin() as begin:
                if self._first is not None and not self._first.done():
                    self._first.set_result(begin)
            case m.Beat(in_trouble):
                self._in_trouble = in_trouble
                self._send(m.Alive(_resident()))
            case m.AccountAnswer() as answer:
                self._accounts.take(answer)
            case m.SetLevel(level):
                logging.getLogger().setLevel(level.upper())
            case m.Request() as request:
                if self._answering is not None:
                    self._answering.begin(request)
            case m.Cancel(number):
                if self._answering is not None:
                    self._answering.cancel(number)

    def _lost(self, why: str) -> None:
        self._connection = None
        if why:
            _logger.error("the issuing process ends: what came from the broker was no message: %s", why)
        self._ended.set()
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    def _secret_changed(self, name: str) -> None:
        self._send(m.SecretChanged(name))

    def _key_changed(self, issuer: str, sha256: str) -> None:
        self._send(m.AccountKey(issuer, sha256))

    def _send_line(self, line: m.LogLine) -> bool:
        if self._connection is None or self._connection.waiting > _MOST_WAITING:
            return False
        try:
            return self._connection.send(m.encode(line))
        except (*m.NOT_A_MESSAGE, TypeError, TooLargeError):
            return False

    def _send(self, message: m.ToBroker) -> None:
        self._send_octets(m.encode(message))

    def _send_octets(self, octets: bytes) -> None:
        if self._connection is not None:
            self._connection.send(octets)


async def _adapters(
    settings: BrokerSettings,
    stack: AsyncExitStack,
    rows: AccountRows,
    secret_changed: Callable[[str], None],
    key_changed: Callable[[str, str], None],
) -> tuple[Adapters, dict[str, str], WatchedSecrets]:
    """All that is called, and the SHA-256 of each account's public key.

    Raises:
        ConfigurationError: something can't be made of the settings.
    """
    clock, rng = SystemClock(), random.SystemRandom()
    files = BlockingPool("issuing-files", 2)
    stack.callback(files.close)
    secrets = watched(secret_source(settings, files, clock), secret_changed)
    keepers = {
        name: adapters.account_keeper(settings, name, secrets=secrets, files=files, rows=rows) for name in settings.cas
    }
    keys = await adapters.account_keys(settings, keepers)
    cas = await stack.enter_async_context(adapters.cas(settings, clock))
    issuers = {
        name: adapters.issuer(settings, name, ca, keys[name], keeper=keepers[name], secrets=secrets, rng=rng)
        for name, ca in cas.items()
    }
    for name, issuer in issuers.items():
        issuer.tell_of_keys(functools.partial(key_changed, name))
    solver = adapters.solver(settings, secrets, clock, rng)
    stack.push_async_callback(solver.close)
    made = Adapters(
        issuers,
        solver,
        adapters.preflight(solver, cas, issuers, clock),
        adapters.renewal_infos(settings, cas),
    )
    return made, {name: key.public_key_sha256 for name, key in keys.items()}, secrets


def _resident() -> int:
    """Octets of memory (proc(5)); 0 where that can't be told."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
