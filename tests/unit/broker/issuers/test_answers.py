"""Times and text that outsiders send."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.issuers.answers import LONGEST_RETRY_AFTER, one_line, parse_retry_after

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        pytest.param("0", timedelta(), id="zero"),
        pytest.param(" 36 ", timedelta(seconds=36), id="seconds"),
        pytest.param("0000000000000000000000060", timedelta(seconds=60), id="leading-zeros"),
        pytest.param("99999999999", LONGEST_RETRY_AFTER, id="capped"),
        pytest.param("9" * 10_000, LONGEST_RETRY_AFTER, id="too-long-for-int"),
        pytest.param("Mon, 23 Nov 2026 12:01:00 GMT", timedelta(minutes=1), id="date"),
        pytest.param("Mon, 23 Nov 2026 12:01:00", timedelta(minutes=1), id="date-without-zone"),
        pytest.param("Mon, 23 Nov 2026 12:01:00 -0000", timedelta(minutes=1), id="date-of-unknown-zone"),
        pytest.param("Mon, 23 Nov 2026 13:01:00 +0100", timedelta(minutes=1), id="date-elsewhere"),
        pytest.param("Sunday, 22-Nov-26 12:00:00 GMT", timedelta(), id="past-in-the-old-form"),
        pytest.param("Mon, 23 Nov 9999 12:00:00 GMT", LONGEST_RETRY_AFTER, id="far-date"),
        pytest.param("", None, id="empty"),
        pytest.param(None, None, id="absent"),
        pytest.param("-5", None, id="negative"),
        pytest.param("1.5", None, id="fraction"),
        pytest.param("\u0661\u0662", None, id="other-digits"),
        pytest.param("Mon, 99 Nov 2026 12:00:00 GMT", None, id="no-such-day"),
        pytest.param("Mon, 23 Nov 2026 12:00:00 +9999999", None, id="no-such-zone"),
    ],
)
def test_retry_after(header: str | None, wait: timedelta | None) -> None:
    """Seconds and HTTP dates become a bounded wait; anything else is no wait at all."""
    assert parse_retry_after(header, NOW) == wait


def test_retry_after_does_not_depend_on_the_zone_of_now() -> None:
    """The same moment in another zone gives the same wait."""
    there = NOW.astimezone(timezone(timedelta(hours=9)))
    assert parse_retry_after("Mon, 23 Nov 2026 12:01:00 GMT", there) == timedelta(minutes=1)


@given(st.text())
def test_retry_after_never_fails(header: str) -> None:
    """No header is a failure, and no wait is negative or endless."""
    wait = parse_retry_after(header, NOW)
    assert wait is None or timedelta() <= wait <= LONGEST_RETRY_AFTER


@given(st.one_of(st.text(), st.none(), st.integers(), st.lists(st.text())), st.integers(1, 50))
def test_printable_is_one_bounded_printable_line(text: object, limit: int) -> None:
    """Whatever comes in, the result fits and moves no cursor."""
    result = one_line(text, limit)
    assert len(result) <= limit
    assert result.isprintable()


@pytest.mark.parametrize(
    ("text", "result"),
    [
        pytest.param("caf\u00e9 \u8a3c\u660e", "caf\u00e9 \u8a3c\u660e", id="letters-stay"),
        pytest.param("a\r\nb\tc", "a b c", id="white-space-is-a-space"),
        pytest.param("\x1b[31mred\x07", "[31mred", id="controls-go"),
        pytest.param("ab\u202edc\u2066", "abdc", id="bidi-controls-go"),
        pytest.param("x\ud800y", "xy", id="surrogates-go"),
        pytest.param("1234567890", "1234567\u2026", id="cut"),
    ],
)
def test_printable(text: str, result: str) -> None:
    """Only what could deceive goes."""
    assert one_line(text, 8 if result.startswith("123") else 80) == result
