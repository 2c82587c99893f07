"""Tables that fit, and what a terminal may be shown."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest

from certplane.runtime.columns import Column, column_lines
from certplane.runtime.terminal import Style, Terminal, text_width

COLUMNS: list[Column[tuple[str, ...]]] = [
    Column("HOST", lambda row: row[0], 0, least=6),
    Column("HEALTH", lambda row: row[1], 0, style=lambda row: Style.BAD),
    Column("CAUSE", lambda row: row[2], 2, least=8),
    Column("STATE", lambda row: row[3], 3),
    Column("ID", lambda row: row[4], None),
]
ROWS = [
    ("web1.example.net", "EXPIRED", "DNS_UNAVAILABLE ns2.example.org", "failed", "id-1"),
    ("db", "OK", "", "serving", "id-2"),
]


def test_without_a_limit_all_is_shown_but_what_is_for_wide_tables() -> None:
    """Columns stand under each other; an empty cell is a dash."""
    assert column_lines(COLUMNS, ROWS, Terminal()) == [
        "HOST              HEALTH   CAUSE                            STATE",
        "web1.example.net  EXPIRED  DNS_UNAVAILABLE ns2.example.org  failed",
        "db                OK       -                                serving",
    ]
    assert column_lines(COLUMNS, ROWS, Terminal(20), wide=True)[1].endswith("failed   id-1")


@pytest.mark.parametrize("width", range(20, 90))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Whatever the width, each row is one line, the first columns stay, and nothing breaks in the middle of a row."""
    lines = column_lines(COLUMNS, ROWS, Terminal(width))
    assert len(lines) == len(ROWS) + 1
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("HOST")
    assert "EXPIRED" in lines[1]


def test_texts_are_cut_before_columns_go() -> None:
    """A cause is cut first; then the least important column goes, and the cause has its room."""
    assert column_lines(COLUMNS, ROWS, Terminal(60))[1] == "web1.example.net  EXPIRED  DNS_UNAVAILABLE ns2.e...  failed"
    assert column_lines(COLUMNS, ROWS, Terminal(30))[0].split() == ["HOST", "HEALTH", "CAUSE"]
    assert column_lines(COLUMNS, ROWS, Terminal(20))[1] == "web1.exa...  EXPIRED"
    narrow = [replace(COLUMNS[0], least=16), *COLUMNS[1:]]
    assert column_lines(narrow, ROWS, Terminal(20))[1] == "web1.exa...  EXPIRED"


def test_wide_characters_take_two_columns() -> None:
    """What a host or a CA says may be in any script; columns stand under each other all the same."""
    rows = [("名前", "OK", "e\u0301t\u00e9", "x", ""), ("abcd", "OK", "", "y", "")]
    lines = column_lines(COLUMNS, rows, Terminal())
    assert {text_width(line.partition("OK")[0]) for line in lines[1:]} == {6}
    assert Terminal(ellipsis="…").cut("名前名前", 5) == "名前…"
    assert text_width(Terminal(ellipsis="…").cut("名前名前", 4)) <= 4


def test_a_cell_can_harm_nobody() -> None:
    """Escapes and line breaks of a peer are spaces; ours are the only colours."""
    lines = column_lines(COLUMNS, [("a\x1b[31m\nb", "OK", "\u202ex", "y", "")], Terminal(colour=True))
    assert len(lines) == 2
    assert re.findall(r"\x1b\[[0-9;]*m", lines[1]) == ["\x1b[1;31m", "\x1b[0m"]
    assert "\u202e" not in lines[1]


class Tty(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def stream(encoding: str = "utf-8", *, tty: bool = True) -> io.TextIOWrapper:
    return (Tty if tty else io.TextIOWrapper)(io.BytesIO(), encoding)


@pytest.mark.parametrize(
    ("variables", "tty", "colour"),
    [
        pytest.param({"TERM": "xterm"}, True, True, id="terminal"),
        pytest.param({"TERM": "xterm", "NO_COLOR": "1"}, True, False, id="NO_COLOR"),
        pytest.param({"TERM": "xterm", "NO_COLOR": ""}, True, True, id="NO_COLOR empty"),
        pytest.param({"TERM": "dumb"}, True, False, id="dumb"),
        pytest.param({}, True, False, id="no TERM"),
        pytest.param({"TERM": "xterm"}, False, False, id="piped"),
    ],
)
def test_who_gets_colours(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], tty: bool, colour: bool) -> None:
    """A terminal that can, and whose user hasn't said no."""
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal.of(stream(tty=tty))
    assert terminal.colour is colour
    assert (terminal.paint("x", Style.BAD) == "x") is not colour


@pytest.mark.parametrize(
    ("columns", "tty", "width"),
    [
        pytest.param("100", True, 100, id="told"),
        pytest.param("7", True, 20, id="narrower than any table"),
        pytest.param("100", False, 100, id="told, piped"),
        pytest.param("", False, None, id="piped"),
        pytest.param("many", False, None, id="no number"),
    ],
)
def test_how_wide(monkeypatch: pytest.MonkeyPatch, columns: str, tty: bool, width: int | None) -> None:
    """As wide as it says, and at least 20 columns; a file has no end."""
    monkeypatch.setenv("COLUMNS", columns)
    assert Terminal.of(stream(tty=tty)).width == width


def test_an_encoding_without_an_ellipsis() -> None:
    """What stands for what was cut can be written."""
    assert Terminal.of(stream("ascii")).ellipsis == "..."
    assert Terminal.of(stream("utf-8")).ellipsis == "…"
