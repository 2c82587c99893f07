"""Tables that fit a terminal: a row is one line, whatever the width.

What doesn't fit is left out, never folded: first texts are cut as far as their column allows, then whole columns go,
the least important first. A column that says nothing in any row isn't shown at all. A wide table has all, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from certplane.runtime.terminal import Style, Terminal, text_width
from certplane.runtime.text import printable

T = TypeVar("T")

_GAP: Final = "  "
_MOST_CELL: Final = 4000
"""Octets; a list of names, or an error with the CA's words, may be long."""
_NOTHING: Final = "-"
_LEAST_CELL: Final = 4
"""Columns of a cell that still says something."""


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """One column.

    Attributes:
        title: In capitals.
        text: What a row shows there; empty is shown as `-`.
        weight: 0 is never left out; of the others the highest goes first. None: in wide tables alone.
        least: Columns to which its cells may be cut to make room; None: they are shown whole.
        style: How a row's cell is painted.
        wide_text: What a wide table shows instead.
    """

    title: str
    text: Callable[[T], str]
    weight: int | None = 1
    least: int | None = None
    style: Callable[[T], Style] | None = None
    wide_text: Callable[[T], str] | None = None


def column_lines(
    columns: Sequence[Column[T]], rows: Iterable[T], terminal: Terminal, *, wide: bool = False
) -> list[str]:
    """The table's lines, its header first."""
    rows = list(rows)
    shown = [each for each in columns if wide or each.weight is not None]
    cells = [[printable(_text(each, row, wide=wide), _MOST_CELL) or _NOTHING for each in shown] for row in rows]
    widths = [
        max([text_width(each.title), *(text_width(line[number]) for line in cells)])
        for number, each in enumerate(shown)
    ]
    limit = None if wide else terminal.width
    said = [
        number
        for number, each in enumerate(shown)
        if wide or each.weight == 0 or any(line[number].strip() not in {"", _NOTHING} for line in cells)
    ]
    kept = {number: widths[number] for number in said} if limit is None else _fitted(shown, said, widths, limit)
    lines = [_line([(shown[number].title, width, Style.STRONG) for number, width in kept.items()], terminal, limit)]
    for row, line in zip(rows, cells, strict=True):
        styles = {number: shown[number].style for number in kept}
        lines.append(
            _line(
                [
                    (line[number], width, Style.PLAIN if (style := styles[number]) is None else style(row))
                    for number, width in kept.items()
                ],
                terminal,
                limit,
            )
        )
    return lines


def _text(column: Column[T], row: T, *, wide: bool) -> str:
    return (column.wide_text if wide and column.wide_text is not None else column.text)(row)


def _fitted(columns: Sequence[Column[T]], said: Sequence[int], widths: Sequence[int], limit: int) -> dict[int, int]:
    """Which columns are left, by number, of those that say something, and how wide each is."""
    numbers = list(said)
    least = [
        width if column.least is None else min(width, max(column.least, text_width(column.title)))
        for column, width in zip(columns, widths, strict=True)
    ]
    while len(numbers) > 1 and sum(least[number] for number in numbers) + len(_GAP) * (len(numbers) - 1) > limit:
        weight, drop = max((columns[number].weight or 0, number) for number in numbers)
        if not weight:
            break
        numbers.remove(drop)
    spare = limit - sum(least[number] for number in numbers) - len(_GAP) * (len(numbers) - 1)
    for number in numbers:  # what can't go is cut further than it should be, if nothing else helps
        if spare < 0 and columns[number].least is not None:
            less = min(-spare, max(least[number] - _LEAST_CELL, 0))
            least[number] -= less
            spare += less
    kept = {}
    for number in numbers:  # the first texts have the room first
        more = min(max(spare, 0), widths[number] - least[number])
        kept[number] = least[number] + more
        spare -= more
    return kept


def _line(cells: Sequence[tuple[str, int, Style]], terminal: Terminal, limit: int | None) -> str:
    """One line; where even the columns that always stay are too wide, what is behind the limit is cut."""
    parts, left = [], limit
    for number, (text, width, style) in enumerate(cells):
        if left is not None:
            if number:
                left -= len(_GAP)
            if left <= 0:
                break
            width = min(width, left)  # noqa: PLW2901 - what is left of the line
            left -= width
        text = terminal.cut(text, width)  # noqa: PLW2901 - as above
        last = number == len(cells) - 1
        parts.append(terminal.paint(text, style) + ("" if last else " " * (width - text_width(text))))
    return _GAP.join(parts).rstrip()
