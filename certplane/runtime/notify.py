"""Tells systemd how a service is: sd_notify(3), the protocol of `Type=notify` and `WatchdogSec=`.

Datagrams of `NAME=value` lines to the socket that NOTIFY_SOCKET names, a path or an abstract name (`@`). Without the
variable nothing is sent. Nothing is raised and nothing blocks: a service doesn't fail because nobody listens to it.

The watchdog's beat comes from a task on the event loop: a loop that hangs doesn't beat, and is restarted. A start may
hold the loop (a large policy is read before anything is served), so the asking for more time comes from a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, Self

from certplane.runtime.clock import Clock
from certplane.runtime.text import printable

_MOST_STATUS = 1000
_MORE: Final = timedelta(seconds=60)
_BETWEEN: Final = timedelta(seconds=10)
"""A start that goes on asks for a minute more every ten seconds: one that has died is noticed a minute later."""

logger = logging.getLogger(__name__)


class ServiceNotifier:
    """One service's messages. An async context manager: it beats while entered, and says STOPPING at the end.

    Args:
        clock: for the beat, and for the time that a reload begins.
        environment: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; the process's own unless given.
        stop_time: how long the stop may take after the end of the block, where that is known.
    """

    def __init__(
        self, clock: Clock, environment: Mapping[str, str] | None = None, *, stop_time: timedelta | None = None
    ) -> None:
        environment = os.environ if environment is None else environment
        self._clock = clock
        self._stop_time = stop_time
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # unix(7): an abstract name begins with a zero byte
            self._address = f"\0{self._address[1:]}"
        self._interval = _watchdog(environment)
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._address and self._interval is not None:
            self._beating = asyncio.create_task(self._beat(self._interval / 2), name="watchdog")
        return self

    async def __aexit__(self, *_: object) -> None:
        more = b"" if self._stop_time is None else b"\n" + _extension(self._stop_time)
        self._send(b"STOPPING=1" + more)
        if self._beating is not None:
            self._beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._beating])

    @contextmanager
    def extending(self, most: timedelta) -> Iterator[None]:
        """Ask for more time to start in, again and again while the block runs: `TimeoutStartSec=` doesn't end it.

        For `most` in all: a start that never ends is ended by the service manager after that.
        """
        if not self._address:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._extend, args=(ended, most), name="notify", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _extend(self, ended: threading.Event, most: timedelta) -> None:
        for _ in range(most // _BETWEEN):
            self._send(_extension(_MORE))
            if ended.wait(_BETWEEN.total_seconds()):
                return
        logger.error("the start has taken %s: the service manager isn't asked for more time any more", most)

    def ready(self, status: str) -> None:
        """The service serves, or does so again after a reload; `status` is one line for `systemctl status`."""
        self._send(f"READY=1\nSTATUS={printable(status, _MOST_STATUS)}".encode())

    def status(self, status: str) -> None:
        """What `systemctl status` shows."""
        self._send(f"STATUS={printable(status, _MOST_STATUS)}".encode())

    def reloading(self) -> None:
        """A reload begins, and ends with `ready`. `Type=notify-reload` (systemd 253) wants the monotonic time."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(self._clock.monotonic() * 1_000_000)}".encode())

    async def _beat(self, interval: timedelta) -> None:
        while True:
            self._send(b"WATCHDOG=1")
            await self._clock.sleep(interval)

    def _send(self, message: bytes) -> None:
        if not self._address:
            return
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sender:
                sender.sendto(message, socket.MSG_NOSIGNAL, self._address)
        except (OSError, ValueError) as error:
            logger.debug("the service manager can't be told %s: %s", message, error)


def _extension(span: timedelta) -> bytes:
    return f"EXTEND_TIMEOUT_USEC={span // timedelta(microseconds=1)}".encode()


def _watchdog(environment: Mapping[str, str]) -> timedelta | None:
    """How often a beat is expected; None if nobody watches this process (sd_watchdog_enabled(3))."""
    try:
        if int(environment.get("WATCHDOG_PID") or os.getpid()) != os.getpid():
            return None
        span = timedelta(microseconds=int(environment.get("WATCHDOG_USEC") or 0))
    except (ValueError, OverflowError):
        return None
    return span if span > timedelta() else None
