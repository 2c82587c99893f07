"""Where a watch is shown: a table that keeps itself up to date on a terminal, a JSON object a line when piped.

The live table needs the package `rich` (extra `terminal`); on a terminal without it the table is printed once, and then
a line for each change.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.live import Live
from rich.table import Table

from certplane.ctl.output import json_line
from certplane.ctl.show.fleet import urgency
from certplane.ctl.view import FleetView, change_line, fleet_rows
from certplane.runtime.tables import table_lines
from certplane.v1 import renewal_pb2


class WatchDisplay(Protocol):
    """Shows a watch. A context manager: the display ends with it."""

    def show(self, message: renewal_pb2.WatchRenewalsResponse) -> None:
        """Take in one message."""
        ...

    def interrupted(self, text: str) -> None:
        """The watch has ended for now; a new one begins with the whole fleet."""
        ...

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the display, whatever happened."""
        ...


def open_display(
    stream: TextIO, log: Callable[[str], None], now: Callable[[], datetime], *, as_json: bool
) -> WatchDisplay:
    """The display that fits `stream`; `log` takes what is about the watch itself, a line each."""
    if as_json or not stream.isatty():
        return _JsonLines(stream, log)
    with contextlib.suppress(ImportError):
        return _LiveTable(stream, now)
    return _PlainTable(stream, log, now)


class _JsonLines:
    """A message a line, for programs."""

    def __init__(self, stream: TextIO, log: Callable[[str], None]) -> None:
        self._stream = stream
        self._log = log

    def show(self, message: renewal_pb2.WatchRenewalsResponse) -> None:
        print(json_line(message), file=self._stream, flush=True)

    def interrupted(self, text: str) -> None:
        self._log(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""


class _PlainTable:
    """The table once, then a line for each change."""

    def __init__(self, stream: TextIO, log: Callable[[str], None], now: Callable[[], datetime]) -> None:
        self._stream = stream
        self._log = log
        self._now = now
        self._view = FleetView()

    def show(self, message: renewal_pb2.WatchRenewalsResponse) -> None:
        shown = self._view.complete
        self._view.apply(message)
        if shown:
            lines = [line] if (line := change_line(message, self._now())) else []
        else:
            lines = table_lines(fleet_rows(self._view.hosts, self._now())) if self._view.complete else []
        for line in lines:
            print(line, file=self._stream, flush=True)

    def interrupted(self, text: str) -> None:
        self._view.begin_again()
        self._log(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""


class _LiveTable:
    """A table that is drawn anew as the fleet changes, and as its times pass."""

    def __init__(self, stream: TextIO, now: Callable[[], datetime]) -> None:
        from rich.console import Console  # noqa: PLC0415 - optional, and only for a terminal
        from rich.live import Live  # noqa: PLC0415

        self._now = now
        self._view = FleetView()
        self._title = "waiting for the broker"
        self._lock = threading.Lock()
        """The display draws itself on a thread of its own."""
        self._live: Live = Live(
            console=Console(file=stream), screen=True, refresh_per_second=4, get_renderable=self._table
        )

    def show(self, message: renewal_pb2.WatchRenewalsResponse) -> None:
        with self._lock:
            self._view.apply(message)
        if self._view.complete:
            connected = sum(host.connected for host in self._view.hosts)
            self._title = f"{len(self._view.hosts)} hosts, {connected} connected"
        if message.HasField("snapshot_end"):
            self._live.refresh()

    def interrupted(self, text: str) -> None:
        self._title = text  # what was last known stays on the screen until it is told anew
        with self._lock:
            self._view.begin_again()
        self._live.refresh()

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def _table(self) -> Table:
        from rich.table import Table  # noqa: PLC0415 - as above
        from rich.text import Text  # noqa: PLC0415

        with self._lock:  # what needs a person comes first: a large fleet is higher than the screen
            hosts = sorted(self._view.hosts, key=urgency)
            header, *rows = fleet_rows(hosts, self._now())
        table = Table(*header, title=Text(self._title), expand=True)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))  # Text: nothing that a host says is markup
        return table
