"""What the commands of `certplane-broker` share: the configuration that they are given, and how they print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from certplane.runtime.columns import Column, column_lines
from certplane.runtime.command import wants_json
from certplane.runtime.dialect import json_line
from certplane.runtime.logging import escape, setup
from certplane.runtime.tables import table_lines
from certplane.runtime.terminal import Terminal

if TYPE_CHECKING:  # a command loads no more than it needs
    from certplane.broker.settings import BrokerSettings

DEFAULT_CONFIG: Final = Path("/etc/certplane/broker.yml")

Rows = Iterable[Mapping[str, Any]]
_LEAST_COLUMN: Final = 12
"""Columns to which a text is cut at most."""
_FIELDS: Final = {
    "not_before": "not_before_time",
    "not_after": "not_after_time",
    "renew": "renew_time",
    "created": "create_time",
    "delivered": "deliver_time",
    "revoked": "revoke_time",
}
"""Columns whose field in messages (certificate.proto) has another name."""


def settings_of(options: argparse.Namespace) -> BrokerSettings:
    """The configuration that a command was given.

    Raises:
        ConfigurationError: everything that is wrong with it.
    """
    from certplane.broker.settings import load_settings  # noqa: PLC0415 - `--help` answers at once

    setup("warning", "text", "stderr")  # until the configuration says otherwise, and for the other commands
    return load_settings(options.config)


def print_rows(
    options: argparse.Namespace,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    cut: Collection[str] | None = None,
) -> int:
    """A list, for people or for tools; the exit status of a command that has done its work.

    Args:
        options: The command's.
        rows: What there is.
        columns: What people see of it, the most important first.
        cut: A long list, whose rows fit the terminal: columns that may be cut. None: each row is shown whole.
    """
    if wants_json(options):
        print_json(rows)
    elif cut is None:
        print_table(rows, columns)
    else:
        _print_fitting(rows, columns, cut)
    return 0


def print_record(options: argparse.Namespace, row: Mapping[str, Any]) -> int:
    """One thing, a line for each of its facts."""
    if wants_json(options):
        print_json([row])
        return 0
    for key, value in row.items():
        for line in value if isinstance(value, list) and value else [_cell(value)]:
            print(f"{key:24} {escape(str(line))}")
    return 0


def print_json(rows: Rows) -> None:
    """Rows as JSON, an object a line, in the dialect of all programs."""
    for row in rows:
        print(json_line({_FIELDS.get(name, name): value for name, value in row.items()}))
    sys.stdout.flush()


def print_documents(
    options: argparse.Namespace,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    cut: Collection[str] | None = None,
) -> int:
    """Rows in a public format of their own: a table for people, and for tools as they are."""
    if not wants_json(options):
        return print_rows(options, rows, columns, cut)
    for row in rows:
        print(json.dumps(row, default=str))
    sys.stdout.flush()
    return 0


def print_table(rows: Rows, columns: Sequence[str]) -> None:
    """Rows as a table with these columns."""
    header = tuple(column.replace("_", " ").upper() for column in columns)
    lines = [header, *(tuple(_cell(row.get(column, "")) for column in columns) for row in rows)]
    print("\n".join(table_lines(lines)), flush=True)


def _print_fitting(rows: Rows, columns: Sequence[str], cut: Collection[str]) -> None:
    """Rows as a table that fits the terminal (`runtime.columns`)."""

    def column(number: int, name: str) -> Column[Mapping[str, Any]]:
        least = _LEAST_COLUMN if name in cut else None
        return Column(name.replace("_", " ").upper(), lambda row: _cell(row.get(name, "")), number, least)

    shown = [column(number, name) for number, name in enumerate(columns)]
    print("\n".join(column_lines(shown, rows, Terminal.of(sys.stdout))), flush=True)


def _cell(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return escape(text) or "-"
