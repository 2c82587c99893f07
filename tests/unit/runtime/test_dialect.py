"""What no broker sent is written as messages are."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from enum import StrEnum
from pathlib import Path

import pytest

from certplane.runtime.dialect import json_line, member_name


class Word(StrEnum):
    ONE = "one"


@pytest.mark.parametrize(
    ("name", "member"), [("not_after_time", "notAfterTime"), ("key_sha256", "keySha256"), ("ok", "ok"), ("a__b", "aB")]
)
def test_names(name: str, member: str) -> None:
    """As protoc names a field in JSON."""
    assert member_name(name) == member


def test_values() -> None:
    """Times and spans as the mapping has them, what says nothing left out; false and 0 say something."""
    values = {
        "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1))),
        "span_left": timedelta(seconds=90.5),
        "word": Word.ONE,
        "path": Path("/etc"),
        "none": None,
        "empty": "",
        "no_items": [],
        "false": False,
        "zero": 0,
        "rows": ({"a_b": 1, "c": None}, "ä"),
        "nothing_in_it": {"a": ""},
    }
    assert json.loads(json_line(values)) == {
        "time": "2026-01-02T02:04:05Z",
        "spanLeft": "90.5s",
        "word": "one",
        "path": "/etc",
        "false": False,
        "zero": 0,
        "rows": [{"aB": 1}, "ä"],
    }
    assert "\\u" not in json_line(values)
