"""What a program may do at the terminal that it writes to: how wide it is, whether it has colours.

A colour only ever repeats what a word says. There is none where NO_COLOR is set (https://no-color.org), where TERM is
`dumb` or unset, or where no terminal reads.
"""

from __future__ import annotations

import os
import shutil
import unicodedata
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self, TextIO

_LEAST_WIDTH: Final = 20
"""Columns; a terminal that says that it has fewer is written to as if it had these."""
_END: Final = "\x1b[0m"


class Style(Enum):
    """How a word is painted, by its SGR parameters (ECMA-48 8.3.117)."""

    PLAIN = ""
    BAD = "1;31"
    WARNING = "33"
    GOOD = "32"
    DIM = "2"
    STRONG = "1"


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where text goes. `width` is in columns, None where nothing limits it; `ellipsis` stands for what was cut."""

    width: int | None = None
    colour: bool = False
    ellipsis: str = "..."

    @classmethod
    def of(cls, stream: TextIO) -> Self:
        """What is known of a stream; one that isn't a terminal is as wide as $COLUMNS says, or without an end."""
        tty = stream.isatty()
        told = os.environ.get("COLUMNS", "")
        width = shutil.get_terminal_size().columns if tty or (told.isdecimal() and int(told)) else None
        colour = tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        encoding = (stream.encoding or "").lower().replace("-", "")
        return cls(None if width is None else max(width, _LEAST_WIDTH), colour, "…" if encoding == "utf8" else "...")

    def paint(self, text: str, style: Style) -> str:
        """The text in a colour, where there are colours."""
        return f"\x1b[{style.value}m{text}{_END}" if self.colour and style is not Style.PLAIN and text else text

    def cut(self, text: str, width: int) -> str:
        """At most so many columns of a text."""
        if text_width(text) <= width:
            return text
        mark = self.ellipsis if width > len(self.ellipsis) else self.ellipsis[:width]
        room = width - len(mark)
        if text.isascii():
            return text[:room] + mark
        kept = 0
        for number, character in enumerate(text):
            kept += text_width(character)
            if kept > room:
                return text[:number] + mark
        return text


def text_width(text: str) -> int:
    """Columns that a text takes: two of a wide character (UAX 11), none of one that combines with another."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) != 0 for character in text)
