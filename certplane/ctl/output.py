"""Where results go, in the format that was asked for.

`json` and `yaml` are the broker's messages in the proto3 JSON mapping, what grpcurl prints for them: a JSON object a
line, a YAML document each. `name` is one name a line, for the next command. `table` fits the terminal, `wide` has all.
Without a word it is a table on a terminal, and JSON where a program reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TextIO, TypeVar

from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.message import Message

from certplane.ctl.formats import Format
from certplane.errors import OperationError
from certplane.runtime.columns import Column, column_lines
from certplane.runtime.terminal import Style, Terminal, text_width
from certplane.runtime.text import printable, printable_values

T = TypeVar("T")

_MOST_TEXT: Final = 8000
_LEAST_TEXT: Final = 10
"""Columns of a text that is folded; a narrower terminal folds it by itself."""


class Output:
    """Results of one command, to one stream."""

    def __init__(self, stream: TextIO, wanted: Format | None, terminal: Terminal | None = None) -> None:
        self.stream = stream
        self.format = wanted or (Format.TABLE if stream.isatty() else Format.JSON)
        self.terminal = terminal or Terminal.of(stream)

    @property
    def for_people(self) -> bool:
        """Whether lines and tables are wanted, and not messages."""
        return self.format in (Format.TABLE, Format.WIDE)

    @property
    def wide(self) -> bool:
        """Whether nothing is left out."""
        return self.format is Format.WIDE

    def message(self, message: Message, name: str = "") -> None:
        """One result, for programs; `name` is what it is called."""
        match self.format:
            case Format.NAME:
                self.lines([name])
            case Format.YAML:
                self._write(yaml_text(message))
            case _:
                self.lines([json_line(message)])

    def object(self, members: Mapping[str, Any]) -> None:
        """One result that no broker sent, for programs, in the same dialect."""
        if self.format is Format.YAML:
            self._write(_yaml(members))
        else:
            self._write(f"{json.dumps(members, ensure_ascii=False, separators=(',', ':'))}\n")

    def lines(self, lines: Iterable[str], style: Style = Style.PLAIN) -> None:
        """Lines for people, written at once; what can't be printed is a space, and nothing is folded or cut."""
        self._write("".join(f"{self.terminal.paint(printable(line, _MOST_TEXT), style)}\n" for line in lines))

    def line(self, text: str, style: Style = Style.PLAIN, *, folded: bool = False) -> None:
        """A line for people that fits the terminal: cut there, or gone on with below, indented a little more."""
        text = printable(text, _MOST_TEXT)
        width = None if self.wide else self.terminal.width
        if width is None:
            lines = [text]
        elif folded:
            body = text.lstrip()
            begin = " " * (len(text) - len(body))
            lines = _wrapped(body, max(width, len(begin) + _LEAST_TEXT), begin, f"{begin}  ")
        else:
            lines = [self.terminal.cut(text, width)]
        self._write("".join(f"{self.terminal.paint(line, style)}\n" for line in lines))

    def parts(self, first: str, parts: Iterable[tuple[str, Style]]) -> None:
        """`first: part, part`, each part in its colour; a part is never broken."""
        width = None if self.wide else self.terminal.width
        first = printable(first, _MOST_TEXT)
        lines = [first] if width is None else _wrapped(first, width - 1, indent="  ")
        written = "\n".join(lines)
        column, mark = text_width(lines[-1]), ": "
        for text, style in parts:
            if width is not None and column + len(mark) + text_width(text) > width:
                written, column, mark = f"{written}{mark.rstrip()}\n", 0, "  "
            written += mark + self.terminal.paint(text, style)
            column, mark = column + len(mark) + text_width(text), ", "
        self._write(f"{written}\n")

    def table(self, columns: Sequence[Column[T]], rows: Iterable[T]) -> None:
        """A table for people."""
        self._write("".join(f"{line}\n" for line in column_lines(columns, rows, self.terminal, wide=self.wide)))

    def facts(self, facts: Iterable[tuple[str, str]], styles: Mapping[str, Style] | None = None) -> None:
        """Names with values, a line each; an empty value is left out, a long one goes on below itself."""
        facts = [(name, printable(value, _MOST_TEXT)) for name, value in facts if value]
        indent = max((len(name) for name, _ in facts), default=0) + 2
        width = None if self.wide else self.terminal.width
        for name, value in facts:
            first, *others = [value] if width is None else _wrapped(value, max(width - indent, _LEAST_TEXT))
            style = (styles or {}).get(name.strip(), Style.PLAIN)
            self._write(f"{name.ljust(indent)}{self.terminal.paint(first, style)}\n")
            self._write("".join(f"{' ' * indent}{self.terminal.paint(other, style)}\n" for other in others))

    def raw(self, text: str) -> None:
        """Text as it is: what the broker keeps, and nobody's words in a table."""
        self._write(text)

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def _wrapped(text: str, width: int, begin: str = "", indent: str = "") -> list[str]:
    """A text in lines; a word that is too long for one has one to itself."""
    if len(begin) + text_width(text) <= width:
        return [begin + text]
    import textwrap  # noqa: PLC0415 - only what doesn't fit needs it

    return textwrap.wrap(
        text, width, initial_indent=begin, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [text]


def members_of(message: Message) -> dict[str, Any]:
    """A message in the proto3 JSON mapping; no text in it can harm a terminal.

    Raises:
        OperationError: the broker sent a time that is none.
    """
    try:
        members: dict[str, Any] = printable_values(MessageToDict(message), _MOST_TEXT)
    except (ValueError, SerializeToJsonError) as error:
        raise OperationError(
            "the broker sent an invalid message", remedy="see its log, and check its release"
        ) from error
    return members


def json_line(message: Message) -> str:
    """A message as one line of JSON."""
    return json.dumps(members_of(message), ensure_ascii=False, separators=(",", ":"))


def yaml_text(message: Message) -> str:
    """A message as a YAML document."""
    return _yaml(members_of(message))


def _yaml(members: Mapping[str, Any]) -> str:
    import yaml  # noqa: PLC0415 - only those who ask for it wait for it

    text: str = yaml.safe_dump(dict(members), sort_keys=False, allow_unicode=True, explicit_start=True)
    return text
