"""Durations as the configuration writes them: `720h`, `30s`, `1h30m`, `1.5h`, `500ms`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_MICROSECONDS = {"h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000, "us": 1, "\u00b5s": 1}
_PART = r"(?:\d{1,12}(?:\.\d{1,9})?|\.\d{1,9})(?:ms|us|\u00b5s|h|m|s)"
_DURATION = re.compile(rf"(?:{_PART})+", re.ASCII)
_PARTS = re.compile(r"(\d*)(?:\.(\d{1,9}))?(ms|us|\u00b5s|h|m|s)", re.ASCII)
_DECIMALS = 9
_DAYS = re.compile(r"(?:(\d{1,5})w)?(?:(\d{1,6})d)?(.*)", re.ASCII | re.DOTALL)
HOW_TO_TYPE_A_MOMENT = "write it like 7d, 2026-01-02 or 2026-01-02T03:04:05Z"
"""As `parse_moment` takes it."""


class DurationError(ValueError):
    """A text is not a duration; the message is for whoever wrote it."""


def parse_duration(text: str) -> timedelta:
    """The span of time that `text` writes, in the notation of Go's time.ParseDuration without a sign; `0` is allowed.

    Parts of a microsecond are dropped.

    Raises:
        DurationError: another notation, or longer than a timedelta holds.
    """
    if text == "0":
        return timedelta()
    if _DURATION.fullmatch(text) is None:
        raise DurationError("is not a duration; write it like 720h, 1h30m, 30s or 500ms")
    # In billionths of a microsecond, so that nothing is rounded before the end.
    billionths = sum(
        int(whole + decimals.ljust(_DECIMALS, "0")) * _MICROSECONDS[unit]
        for whole, decimals, unit in _PARTS.findall(text)
    )
    try:
        return timedelta(microseconds=billionths // 10**_DECIMALS)
    except OverflowError as error:
        raise DurationError("is longer than any clock runs") from error


def parse_span(text: str) -> timedelta:
    """A span of time as people type it: as in the files (`1h30m`), and with weeks and days before that (`2w`, `7d12h`).

    Raises:
        DurationError: it is none.
    """
    found = _DAYS.fullmatch(text)
    assert found is not None, "anything matches"
    weeks, days, rest = found.groups()
    if not (weeks or days):
        return parse_duration(text)
    return timedelta(weeks=int(weeks or 0), days=int(days or 0)) + (parse_duration(rest) if rest else timedelta())


def format_duration(span: timedelta) -> str:
    """The shortest way to write a span that isn't negative: `1h30m`, `0s`."""
    rest = span // timedelta(microseconds=1)
    parts = []
    for unit in ("h", "m", "s", "ms", "us"):
        count, rest = divmod(rest, _MICROSECONDS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_time(text: str) -> datetime:
    """The time that `text` writes: a day, or a time (ISO 8601); UTC unless it says otherwise.

    Raises:
        ValueError: another notation.
        OverflowError: beyond the calendar in UTC.
    """
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)


def parse_moment(text: str, now: datetime) -> datetime:
    """A time that is typed: a span before `now` (`7d`), a day, or a time (ISO 8601); UTC unless it says otherwise.

    Raises:
        ValueError: it is none of these, or beyond the calendar; with what it isn't, for whoever typed it.
    """
    try:
        return now - parse_span(text)
    except (DurationError, OverflowError):
        pass
    try:
        return parse_time(text)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text[:64]!a} is neither a span nor a time") from error
