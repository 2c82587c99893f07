"""Sections decode by their annotations, and every mistake of a file is told at once."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.config.decoding import Check, KeyProblem, decode
from certplane.config.document import Document, Source
from certplane.errors import ConfigurationError


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Pair:
    left: str
    right: str

    @classmethod
    def parse(cls, text: str) -> Self:
        left, comma, right = text.partition(",")
        if not comma:
            raise ValueError("must be two words with a comma")
        return cls(left, right)


def _even(number: int) -> str | None:
    return None if number % 2 == 0 else "must be even"


@dataclass(frozen=True)
class Inner:
    wanted: str
    number: Annotated[int, Check(_even)] = 4


@dataclass(frozen=True)
class Window:
    start: timedelta = timedelta()
    end: timedelta = timedelta(hours=1)

    def problems(self) -> Iterator[KeyProblem]:
        if self.end < self.start:
            yield KeyProblem("end", "must not be before `start`", "swap them")


@dataclass(frozen=True)
class Whole:
    name: str
    source: Source = field(kw_only=True)


@dataclass(frozen=True)
class Section:
    inner: Inner
    text: str = "t"
    flag: bool = False
    count: int | None = None
    span: timedelta = timedelta(seconds=1)
    path: Path | None = None
    colour: Colour = Colour.RED
    pair: Pair = Pair("a", "b")
    pairs: tuple[Pair, ...] = ()
    named: Mapping[str, Inner] = field(default_factory=dict)
    window: Window = Window()
    evens: tuple[Annotated[int, Check(_even)], ...] = ()


def _decode(text: str) -> Section:
    return decode(Document.parse(text.encode(), "x.yml"), Section)


def _problems(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        _decode(text)
    return [str(problem).removeprefix("x.yml:") for problem in caught.value.problems]


def test_every_kind_of_value() -> None:
    """Each annotation gets its own kind of value."""
    section = _decode(
        """\
inner: {wanted: 1.20, number: 6}
text: "yes"
flag: yes
count: 7
span: 1h30m
path: /a/b
colour: blue
pair: x,y
pairs: ["1,2", "3,4"]
named: {one: {wanted: a}, two: {wanted: b}}
window: {start: 1s, end: 2s}
evens: [2, 4]
"""
    )
    assert section == Section(
        inner=Inner("1.20", 6),
        text="yes",
        flag=True,
        count=7,
        span=timedelta(minutes=90),
        path=Path("/a/b"),
        colour=Colour.BLUE,
        pair=Pair("x", "y"),
        pairs=(Pair("1", "2"), Pair("3", "4")),
        named={"one": Inner("a"), "two": Inner("b")},
        window=Window(timedelta(seconds=1), timedelta(seconds=2)),
        evens=(2, 4),
    )


def test_a_whole_file_knows_where_its_keys_stand() -> None:
    """A field for the file's lines is filled in, and is no key that the file may have."""
    document = Document.parse(b"name: a\n", "file.yml")
    assert decode(document, Whole) == Whole("a", source=document.source)
    with pytest.raises(ConfigurationError) as caught:
        decode(Document.parse(b"name: a\nsource: b\n", "file.yml"), Whole)
    assert [str(problem) for problem in caught.value.problems] == [
        "file.yml:2: source: is not a known key; known here: name"
    ]


def test_defaults() -> None:
    """What isn't written, or written without a value, is the default."""
    expected = Section(inner=Inner("x"))
    assert _decode("inner: {wanted: x}") == expected
    keys = ["text", "flag", "count", "span", "path", "colour", "pair", "pairs", "named", "window", "evens"]
    assert _decode("inner:\n  wanted: x\n  number:\n" + "".join(f"{key}:\n" for key in keys)) == expected


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *((text, True) for text in ("true", "True", "TRUE", "yes", "on")),
        *((text, False) for text in ("false", "no", "Off")),
    ],
)
def test_booleans_of_yaml_1_1(written: str, value: bool) -> None:
    """All spellings that the format's files may have."""
    assert _decode(f"inner: {{wanted: x}}\nflag: {written}").flag is value


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        pytest.param("flag: 'true'", "flag: must be true or false, without quotes", id="quoted-boolean"),
        pytest.param("flag: 1", "flag: must be true or false, without quotes", id="number-as-boolean"),
        pytest.param("flag: y", "flag: must be true or false, without quotes", id="y"),
        pytest.param("count: '7'", "count: must be a whole number, without quotes", id="quoted-number"),
        pytest.param("count: 7.0", "count: must be a whole number, without quotes", id="fraction"),
        pytest.param("count: 0x10", "count: must be a whole number, without quotes", id="hexadecimal"),
        pytest.param("count: 010", "count: must be a whole number, without quotes", id="leading-zero"),
        pytest.param("count: [1]", "count: must be a whole number, not a list", id="list-as-number"),
        pytest.param("span: 30", "span: needs a unit; write 30s, 30m or 30h", id="duration-without-unit"),
        pytest.param("span: 2d", "span: has no unit for days; write 48h", id="days"),
        pytest.param("span: soon", "span: is not a duration; write it like 720h, 1h30m, 30s or 500ms", id="no-duration"),
        pytest.param("path: ''", "path: must be the path of a file", id="empty-path"),
        pytest.param("colour: green", "colour: is 'green', must be one of red, blue", id="enum"),
        pytest.param("colour: Red", "colour: is 'Red', must be one of red, blue", id="enum-case"),
        pytest.param("pair: x", "pair: must be two words with a comma", id="parse"),
        pytest.param("text: {a: b}", "text: must be a text, not keys with values", id="mapping-as-text"),
        pytest.param("pairs: a,b", "pairs: must be a list; write each item in a line of its own after `- `", id="text-as-list"),
        pytest.param("pairs: [a]", "pairs[0]: must be two words with a comma", id="bad-item"),
        pytest.param("named: [a]", "named: must be names with values; indent its names below it", id="list-as-names"),
        pytest.param("named: {a: 1}", "named.a: must be keys with values; indent its keys below it", id="text-as-section"),
        pytest.param("named: {a: {}}", "named.a.wanted: is required; add `wanted: ...`", id="missing-in-names"),
        pytest.param("window: {start: 2h}", "window.end: must not be before `start`; swap them", id="across-keys"),
        pytest.param("evens: [2, 3]", "evens[1]: must be even", id="check-on-an-item"),
        pytest.param("coulour: red", "coulour: is not a known key; did you mean `colour`?", id="nearest"),
        pytest.param(
            "zzz: red",
            "zzz: is not a known key; known here: inner, text, flag, count, span, path, colour, pair, pairs, named, window, evens",
            id="none-near",
        ),
    ],
)  # fmt: skip
def test_one_mistake_is_one_line(line: str, problem: str) -> None:
    """Line, key, what is wrong, what to do."""
    assert _problems(f"inner: {{wanted: x}}\n{line}") == [f"2: {problem}"]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        pytest.param("text: a", [" inner.wanted: is required; add `wanted: ...`"], id="section-missing"),
        pytest.param("inner:", ["1: inner.wanted: is required; add `wanted: ...`"], id="section-empty"),
        pytest.param("inner: {wanted: ''}", ["1: inner.wanted: must not be empty"], id="required-but-empty"),
        pytest.param("inner: {wanted: x, number: 3}", ["1: inner.number: must be even"], id="check"),
        pytest.param("inner: 5", ["1: inner: must be keys with values; indent its keys below it"], id="no-section"),
    ],
)
def test_required(text: str, problems: list[str]) -> None:
    """What must be there is missed by its full name, at the line of its section if that is there."""
    assert _problems(text) == problems


def test_all_mistakes_at_once_in_order() -> None:
    """One run shows everything there is to mend, from top to bottom."""
    text = "colour: green\nwindow:\n  end: 2\n  strat: 1s\ninner:\n  number: 3\nflag: 7\n"
    assert _problems(text) == [
        "1: colour: is 'green', must be one of red, blue",
        "3: window.end: needs a unit; write 2s, 2m or 2h",
        "4: window.strat: is not a known key; did you mean `start`?",
        "5: inner.wanted: is required; add `wanted: ...`",
        "6: inner.number: must be even",
        "7: flag: must be true or false, without quotes",
    ]


SCALARS: st.SearchStrategy[Any] = st.sampled_from(["1", "x", "''", "yes", "5s", "~", "a,b", "red", "[", "{"])
NODES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.sampled_from(["wanted", "number", "start", "k"]), inner, max_size=3).map(
            lambda entries: "{" + ", ".join(f"{key}: {value}" for key, value in entries.items()) + "}"
        )
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["inner", "text", "flag", "count", "span", "path", "colour", "pair", "pairs", "named", "window", "evens", "x"]
)


@given(st.dictionaries(KEYS, NODES))
def test_never_raises_anything_else(entries: dict[str, str]) -> None:
    """Any shape of file ends in a section or a ConfigurationError, never in another exception."""
    text = "".join(f"{key}: {value}\n" for key, value in entries.items())
    try:
        assert isinstance(_decode(text), Section)
    except ConfigurationError as error:
        assert error.problems  # noqa: PT017 - both ends are right; an error without a problem is not


def test_a_sections_form_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolving annotations costs more than reading an entry, and a policy has a hundred thousand of one section."""

    @dataclass(frozen=True, slots=True)
    class Entry:
        name: str
        spans: tuple[timedelta, ...] = ()

    @dataclass(frozen=True, slots=True)
    class File:
        entries: Mapping[str, Entry]

    asked: list[object] = []
    resolve = typing.get_type_hints

    def counted(section: type[object], **how: bool) -> dict[str, object]:
        asked.append(section)
        names = {"Entry": Entry, "Mapping": Mapping, "timedelta": timedelta}
        return resolve(section, localns=names, **how)

    monkeypatch.setattr(typing, "get_type_hints", counted)
    text = "entries:\n" + "".join(f"  n{number}: {{name: x, spans: [1h]}}\n" for number in range(100))
    file = decode(Document.parse(text.encode(), "x.yml"), File)
    assert len(file.entries) == 100
    assert asked == [File, Entry]
