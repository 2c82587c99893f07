# ruff: noqa: PLC0415 - as in `cli`
"""`certplane-broker backup`: a copy of the database, while the broker runs."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from certplane.broker.command_line import print_rows, settings_of
from certplane.errors import OperationError


def add_backup_command(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """The command `backup`."""
    text = "copy the SQLite database into a new file, 0600, while the broker runs; the copy is read from end to end"
    backing_up = command(commands, "backup", _back_up, text)
    backing_up.add_argument("file", type=Path, metavar="FILE", help="the new file; its folder must be there")


def _back_up(options: argparse.Namespace) -> int:
    from certplane.broker.settings import StoreDriver
    from certplane.broker.store.backup import back_up

    settings = settings_of(options)
    if settings.store.driver is not StoreDriver.SQLITE:
        raise OperationError(
            "the database is PostgreSQL's, which copies it by its own means",
            remedy=f"pg_dump --format=custom --file={options.file} --dbname={settings.store.url.split('?')[0]}",
        )
    # SQLite copies in one piece, in which Python hears no signal; what is left of it then has a name of its own.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    size = back_up(settings.store.path, options.file)
    rows = [{"file": str(options.file), "size_bytes": size, "database": str(settings.store.path)}]
    return print_rows(options, rows, ("file", "size_bytes", "database"))
