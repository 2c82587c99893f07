"""Text for terminals that both programs' commands share: aligned columns, and times as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from certplane.runtime.text import printable

_MOST_CELL = 4000
"""Octets; a list of names, or an error with the CA's words, may be long."""


def table_lines(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of equal length as lines with aligned columns; what can't be printed in a cell is a space."""
    rows = [tuple(printable(cell, _MOST_CELL) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def moment_text(time: datetime, now: datetime) -> str:
    """A time in UTC, and how far off it is: `2026-01-02 03:04Z (in 3d 4h)`."""
    span = time - now
    when = f"in {span_text(span)}" if span > timedelta() else f"{span_text(-span)} ago"
    return f"{time:%Y-%m-%d %H:%M}Z ({when})"


def span_text(span: timedelta) -> str:
    """The two largest units: 3d 4h, 5h 6m, 7m, 8s. A negative span is none: 0s."""
    seconds = max(int(span.total_seconds()), 0)
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m" if minutes else f"{seconds}s"
