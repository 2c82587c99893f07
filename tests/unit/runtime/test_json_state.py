"""Values that a program keeps as JSON: back as they were, or one kind of error, whatever stands in the file."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.runtime.json_state import MOST_BYTES, StateError, decode, encode, members_of


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    name: str
    when: datetime | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    colour: Colour
    count: int = 0
    flag: bool = False
    span: timedelta | None = None
    when: datetime | None = None
    numbers: tuple[int, ...] = ()
    times: tuple[datetime, ...] = ()
    inner: Inner | None = None


NOW = datetime(2026, 11, 28, 3, tzinfo=UTC)
FULL = Outer(
    "wéb", Colour.RED, 7, True, timedelta(seconds=1.5), NOW, (1, 2), (NOW,), Inner("x", datetime.max.replace(tzinfo=UTC))
)  # fmt: skip


def read(data: bytes) -> Outer:
    return decode(Outer, data)


def file(**members: Any) -> bytes:
    return json.dumps({"format": 1, "name": "a", "colour": "red", **members}).encode()


@pytest.mark.parametrize("value", [FULL, Outer("", Colour.RED)], ids=["full", "empty"])
def test_a_value_comes_back(value: Outer) -> None:
    """What was written is read as it was."""
    assert read(json.dumps({"format": 1, **members_of(value)}).encode()) == value


def test_other_releases_files_load() -> None:
    """Unknown members are passed over, missing ones have their defaults."""
    assert read(file(news=[1])) == Outer("a", Colour.RED)


JUNK = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "half an object": b'{"format": 1, "na',
    "octets that are no UTF-8": b"\xff\xfe\x00",
    "NULs": b"\0" * 4096,
    "nested 200,000 deep": b'{"format": 1, "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "objects nested 200,000 deep": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "too large": b'{"format": 1, "name": "' + b"a" * MOST_BYTES + b'"}',
    "a number of 5,000 digits": file().replace(b'"a"', b"9" * 5000),
    "another format": b'{"format": 2, "name": "a", "colour": "red"}',
    "a format that is no number": b'{"format": [1], "name": "a", "colour": "red"}',
    "a required member missing": b'{"format": 1, "name": "a"}',
    "null where text belongs": file(name=None),
    "a list where text belongs": file(name=["a"]),
    "text where a number belongs": file(count="7"),
    "true where a number belongs": file(count=True),
    "a fraction where a number belongs": file(count=1.5),
    "a huge number": file(count=10**300),
    "NaN": file(count=float("nan")),
    "a span of NaN": file(span=float("nan")),
    "an infinite span": file(span=float("inf")),
    "a span of ages": file(span=1e300),
    "a span as text": file(span="1h"),
    "a lone surrogate": file(name="\ud800"),
    "an unknown name": file(colour="mauve"),
    "a time without a zone": file(when="2026-11-28T03:00:00"),
    "a time that is none": file(when="yesterday"),
    "a time before all": file(when="0001-01-01T00:00:00+00:00"),
    "a time before the first": file(when="0001-01-01T00:00:00+23:59"),
    "a time after the last": file(when="9999-12-31T23:59:59-23:59"),
    "a time as a number": file(when=1790000000),
    "a number where a list belongs": file(numbers=7),
    "text among numbers": file(numbers=["7"]),
    "a list where an object belongs": file(inner=[]),
    "an object with junk in it": file(inner={"name": 7}),
}


@pytest.mark.parametrize("data", JUNK.values(), ids=JUNK)
def test_junk_is_one_kind_of_error(data: bytes) -> None:
    """Nothing else is raised, whatever is in the file, and the message can be printed."""
    with pytest.raises(StateError) as caught:
        read(data)
    str(caught.value).encode()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
_MEMBERS = st.fixed_dictionaries({}, optional=dict.fromkeys(Outer.__dataclass_fields__, _JSON))


@given(_MEMBERS)
def test_any_json_is_read_or_refused(members: dict[str, Any]) -> None:
    """A value of the right types, or the one error."""
    try:
        value = read(json.dumps({"format": 1, **members}).encode())
    except StateError:
        return
    assert isinstance(value.name, str)
    assert value.when is None or value.when.tzinfo is not None


def test_a_lone_surrogate_is_written_as_a_question_mark() -> None:
    """It comes of a file's name that is no UTF-8; as it is, it would make the whole file unreadable."""
    assert decode(Inner, encode(Inner("caf\udce9 é"))) == Inner("caf? é")


def test_a_file_is_for_people_to_read() -> None:
    """A member a line, and spans in seconds."""
    assert encode(FULL).decode().splitlines()[:7] == [
        "{", ' "format": 1,', ' "name": "wéb",', ' "colour": "red",', ' "count": 7,', ' "flag": true,', ' "span": 1.5,'
    ]  # fmt: skip
