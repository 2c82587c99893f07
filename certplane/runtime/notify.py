"""Tells systemd how a service is: sd_notify(3), the protocol of `Type=notify` and `WatchdogSec=`.

Datagrams of `NAME=value` lines to the socket that NOTIFY_SOCKET names, a path or an abstract name (`@`). Without the
variable nothing is sent. Nothing is raised and nothing blocks: a service doesn't fail because nobody listens to it.

The watchdog's beat comes from a task on the event loop: a loop that hangs doesn't beat, and is restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Self

from certplane.runtime.clock import Clock
from certplane.runtime.text import printable

_MOST_STATUS = 1000

logger = logging.getLogger(__name__)


class ServiceNotifier:
    """One service's messages. An async context manager: it beats while entered, and says STOPPING at the end.

    Args:
        clock: for the beat, and for the time that a reload begins.
        environment: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; the process's own unless given.
    """

    def __init__(self, clock: Clock, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._clock = clock
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
        self._send(b"STOPPING=1")
        if self._beating is not None:
            self._beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self._beating])

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


def _watchdog(environment: Mapping[str, str]) -> timedelta | None:
    """How often a beat is expected; None if nobody watches this process (sd_watchdog_enabled(3))."""
    try:
        if int(environment.get("WATCHDOG_PID") or os.getpid()) != os.getpid():
            return None
        span = timedelta(microseconds=int(environment.get("WATCHDOG_USEC") or 0))
    except (ValueError, OverflowError):
        return None
    return span if span > timedelta() else None
