"""A watch without a full screen: a JSON object a line when piped, else the table and then a line for each change."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TextIO

from typing_extensions import override

from certplane.ctl.output import json_line
from certplane.ctl.show.words import health_word
from certplane.ctl.watch.feed import WatchDisplay
from certplane.ctl.watch.fleet import CertificateRow, Fleet, HostRow, Order, certificate_row, counts, host_row, listed
from certplane.ctl.watch.table import host_lines, link
from certplane.runtime.health import HealthWord
from certplane.runtime.terminal import Terminal
from certplane.runtime.text import counted, printable
from certplane.v1 import renewal_pb2

_MOST_TEXT = 8000


class JsonLines(WatchDisplay):
    """A message a line, for programs."""

    def __init__(self, stream: TextIO, log: Callable[[str], None]) -> None:
        """`log` takes what is about the watch itself, a line each."""
        self._stream = stream
        self._log = log

    @override
    def show(self, message: renewal_pb2.WatchRenewalsResponse) -> None:
        print(json_line(message), file=self._stream, flush=True)

    @override
    def interrupted(self, text: str, again: timedelta) -> None:
        self._log(interruption(text, again))


class PlainLines(WatchDisplay):
    """The table once, the worst host first, then a line for each change."""

    def __init__(
        self, stream: TextIO, log: Callable[[str], None], now: Callable[[], datetime], terminal: Terminal
    ) -> None:
        """`log` as above."""
        self._stream = stream
        self._log = log
        self._now = now
        self._terminal = terminal
        self._fleet = Fleet()
        self._whole = False
        """Whether the table has been shown since the watch began, or began again."""

    @override
    def show(self, message: renewal_pb2.WatchRenewalsResponse) -> None:
        self._fleet.apply(message)
        if self._whole:
            self._print(change_line(message, self._now()))
        elif message.HasField("snapshot_end"):
            self._whole = True
            self._table()

    @override
    def interrupted(self, text: str, again: timedelta) -> None:
        self._whole = False
        self._fleet.begin_again()
        self._log(interruption(text, again))

    def _table(self) -> None:
        hosts = listed(self._fleet.hosts.values(), Order.WORST, "")
        lines = host_lines(hosts, self._now, self._terminal.width or 200)
        for shown in (lines.header, *map(lines.line, range(len(lines)))):
            if shown is not None:
                self._print("".join(self._terminal.paint(text, style) for text, style in shown.spans).rstrip())
        healths = ", ".join(f"{number} {health_word(health)}" for health, number in counts(hosts))
        self._print(f"{counted(len(hosts), 'host')}; certificates: {healths or 'none'}")

    def _print(self, line: str) -> None:
        if line:
            print(line, file=self._stream, flush=True)


def change_line(message: renewal_pb2.WatchRenewalsResponse, now: datetime) -> str:
    """What a message after the snapshot says, in a line; empty if it is nothing for a person."""
    match message.WhichOneof("event"):
        case "host":
            return printable(_host_text(host_row(message.host), now), _MOST_TEXT)
        case "certificate_change":
            change = message.certificate_change
            row = certificate_row(change.certificate)
            return printable(f"{change.host}: {row.name}: {'removed' if change.removed else _text(row)}", _MOST_TEXT)
        case "host_removed":
            return printable(f"{message.host_removed}: forgotten", _MOST_TEXT)
        case _:
            return ""


def interruption(text: str, again: timedelta) -> str:
    """What is said of a watch that has ended for now."""
    return f"{text}; watching again in {again.total_seconds():.0f} s"


def _host_text(host: HostRow, now: datetime) -> str:
    at = f" at {host.broker}" if host.broker else ""
    ill = [f"{each.name} {each.health}" for each in host.certificates if each.rank < HealthWord.OK.rank]
    silent = [host.health] if host.health == HealthWord.UNHEARD else []
    return ", ".join([f"{host.shown}: {link(host, now)}{at}", *silent, *ill])


def _text(row: CertificateRow) -> str:
    health = f"{row.health}, " if row.rank < HealthWord.OK.rank and row.health != "-" else ""
    return f"{health}{row.state}{f': {row.reason}' if row.reason else ''}"
