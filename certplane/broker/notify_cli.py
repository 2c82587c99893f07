# ruff: noqa: PLC0415 - each command imports what it needs, so that --help answers at once
"""`certplane-broker notify ...`: whether notifications arrive."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from typing import Any

from certplane.broker.command_line import print_rows, settings_of


def add_notify_commands(group: Callable[[str, str], Any], command: Callable[..., argparse.ArgumentParser]) -> None:
    """The group `notify`."""
    notify = group("notify", "try whether notifications arrive")
    text = "send a test message to each of `notifications`, as the broker would; status 1 if one has not arrived"
    test = command(notify, "test", _test, text)
    test.add_argument(
        "--notifier", action="append", default=[], metavar="NAME", help="only this one; may be given several times"
    )


def _test(options: argparse.Namespace) -> int:
    from certplane.broker import notify_commands

    rows = asyncio.run(notify_commands.try_notifiers(settings_of(options), options.notifier))
    print_rows(options, rows, notify_commands.COLUMNS)
    return 1 if notify_commands.failed(rows) else 0
