"""Time as a port: what needs the time or a sleep takes a `Clock`; tests pass one that they advance by hand."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from typing_extensions import override

_LOCALTIME = Path("/etc/localtime")


class Clock(Protocol):
    """Where a program takes its time from. Safe to call from any thread, `sleep` from the event loop only."""

    def now(self) -> datetime:
        """The wall clock, aware, UTC. It may jump either way."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...

    def thread_time(self) -> float:
        """Seconds of processor time that the calling thread has used since some fixed moment."""
        ...

    async def sleep(self, span: timedelta) -> None:
        """Return after `span` of monotonic time; at once if it isn't positive."""
        ...


class SystemClock(Clock):
    """The machine's clock."""

    @override
    def now(self) -> datetime:
        return datetime.now(UTC)  # noqa: TID251 - the one place that reads the wall clock

    # The functions themselves: both are asked several times in each call.
    monotonic = staticmethod(time.monotonic)
    thread_time = staticmethod(time.thread_time)

    @override
    async def sleep(self, span: timedelta) -> None:
        await asyncio.sleep(max(0.0, span.total_seconds()))


def local_zone() -> tzinfo:
    """This host's time zone with its rules: TZ, else /etc/localtime, else UTC. Reads files; for the start."""
    name = os.environ.get("TZ", "").removeprefix(":")
    try:
        if name.startswith("/"):
            return _zone_of(Path(name))
        return ZoneInfo(name) if name else _zone_of(_LOCALTIME)
    except (OSError, ValueError, ZoneInfoNotFoundError):
        return UTC


def _zone_of(path: Path) -> tzinfo:
    with path.open("rb") as file:
        return ZoneInfo.from_file(file, key=str(path))
