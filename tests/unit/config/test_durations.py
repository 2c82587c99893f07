"""Durations are written as Go writes them, with a unit, and never negative."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.config.durations import DurationError, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "span"),
    [
        pytest.param("720h", timedelta(days=30), id="hours"),
        pytest.param("30s", timedelta(seconds=30), id="seconds"),
        pytest.param("1h30m", timedelta(minutes=90), id="two-parts"),
        pytest.param("1h30m5s250ms", timedelta(hours=1, minutes=30, seconds=5, milliseconds=250), id="four-parts"),
        pytest.param("500ms", timedelta(milliseconds=500), id="milliseconds"),
        pytest.param("10us", timedelta(microseconds=10), id="microseconds"),
        pytest.param("10\u00b5s", timedelta(microseconds=10), id="micro-sign"),
        pytest.param("1.5h", timedelta(minutes=90), id="fraction"),
        pytest.param(".5s", timedelta(milliseconds=500), id="fraction-alone"),
        pytest.param("0.1s", timedelta(milliseconds=100), id="exact-tenth"),
        pytest.param("0", timedelta(), id="zero"),
        pytest.param("0s", timedelta(), id="zero-seconds"),
        pytest.param("90m", timedelta(minutes=90), id="more-than-a-unit"),
    ],
)
def test_parse(text: str, span: timedelta) -> None:
    """Each form that the format's files have."""
    assert parse_duration(text) == span


@pytest.mark.parametrize(
    "text",
    ["", "30", "-1s", "+1s", "1d", "1 h", " 1h", "1h ", "h", "1", "1,5h", "1hh", "1.h", "\u0661h", "1e3s", "inf"],
)
def test_refuses(text: str) -> None:
    """Anything else is an error that shows how to write it."""
    with pytest.raises(DurationError, match="720h"):
        parse_duration(text)


def test_refuses_the_absurd() -> None:
    """A span that no clock holds is an error, not an overflow."""
    with pytest.raises(DurationError, match="longer"):
        parse_duration("999999999999h")


@given(st.timedeltas(timedelta(), timedelta(days=10**6)))
def test_round_trip(span: timedelta) -> None:
    """What is formatted parses to the same span."""
    assert parse_duration(format_duration(span)) == span


@given(st.text())
def test_never_raises_anything_else(text: str) -> None:
    """Any text ends in a span or a DurationError."""
    with contextlib.suppress(DurationError):
        assert parse_duration(text) >= timedelta()
