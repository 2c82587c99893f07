"""Windows for reloads: on each of their days, never for no time, whatever clocks do in spring and autumn."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.agent.renewal.window import ActivationWindow

BERLIN = ZoneInfo("Europe/Berlin")  # 29 March 2026 02:00 -> 03:00, 25 October 2026 03:00 -> 02:00
NEW_YORK = ZoneInfo("America/New_York")
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def at(text: str, zone: tzinfo = UTC, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).astimezone(UTC)


@pytest.mark.parametrize(
    ("window", "now", "opens"),
    [
        pytest.param("02:00-04:00", "2026-11-23 01:59", "2026-11-23 02:00", id="before"),
        pytest.param("02:00-04:00", "2026-11-23 02:00", "2026-11-23 02:00", id="at its begin"),
        pytest.param("02:00-04:00", "2026-11-23 03:59", "2026-11-23 03:59", id="within"),
        pytest.param("02:00-04:00", "2026-11-23 04:00", "2026-11-24 02:00", id="at its end"),
        pytest.param("22:30-05:00", "2026-11-23 04:59", "2026-11-23 04:59", id="over midnight, after it"),
        pytest.param("22:30-05:00", "2026-11-23 05:00", "2026-11-23 22:30", id="over midnight, its end"),
        pytest.param("22:30-05:00", "2026-11-23 23:00", "2026-11-23 23:00", id="over midnight, before it"),
        pytest.param("sun 22:00-05:00", "2026-11-23 04:00", "2026-11-23 04:00", id="the night of Sunday is Monday's too"),
        pytest.param("mon 22:00-05:00", "2026-11-23 04:00", "2026-11-23 22:00", id="the night of Monday hasn't come"),
        pytest.param("sat,sun 02:00-04:00", "2026-11-23 02:30", "2026-11-28 02:00", id="the next week-end"),
        pytest.param("fri-mon 02:00-04:00", "2026-11-24 02:30", "2026-11-27 02:00", id="days over the week's end"),
        pytest.param("mon 02:00-04:00", "2026-11-23 04:00", "2026-11-30 02:00", id="in a week"),
        pytest.param("00:00-24:00", "2026-11-23 23:59", "2026-11-23 23:59", id="whole days"),
        pytest.param("tue 00:00-24:00", "2026-11-23 23:59", "2026-11-24 00:00", id="a whole day"),
    ],
)  # fmt: skip
def test_opens(window: str, now: str, opens: str) -> None:
    """Now while it is open, else at its next begin."""
    parsed = ActivationWindow.parse(window)
    assert parsed.opens(at(now)) == at(opens)
    assert parsed.is_open(at(now)) == (now == opens)


@pytest.mark.parametrize(
    ("window", "day", "begin", "length"),
    [
        pytest.param("02:00-04:00", "2026-03-29", "2026-03-29 01:00", HOUR, id="spring: its first hour is swallowed"),
        pytest.param("01:30-02:30", "2026-03-29", "2026-03-29 00:30", HOUR, id="spring: its end is swallowed"),
        pytest.param("02:15-02:45", "2026-03-29", "2026-03-29 01:15", HOUR / 2, id="spring: swallowed whole"),
        pytest.param("02:45-03:15", "2026-03-29", "2026-03-29 01:45", HOUR / 2, id="spring: its end comes before its begin"),
        pytest.param("02:00-04:00", "2026-10-25", "2026-10-25 00:00", 3 * HOUR, id="autumn: an hour comes twice"),
        pytest.param("02:15-02:45", "2026-10-25", "2026-10-25 00:15", HOUR / 2, id="autumn: the first of the two"),
        pytest.param("22:00-06:00", "2026-10-24", "2026-10-24 20:00", 9 * HOUR, id="autumn: over that night"),
        pytest.param("22:00-06:00", "2026-03-28", "2026-03-28 21:00", 7 * HOUR, id="spring: over that night"),
    ],
)  # fmt: skip
def test_daylight_saving_time(window: str, day: str, begin: str, length: timedelta) -> None:
    """A window opens on the day of the change too, by the clock on the wall, and never for no time."""
    parsed = ActivationWindow.parse(window)
    start = parsed.opens(at(f"{day} 00:00", BERLIN), BERLIN)
    if start == at(f"{day} 00:00", BERLIN):  # the window of the night before
        start = parsed.opens(at(f"{day} 12:00", BERLIN), BERLIN)
    assert start == at(begin)
    assert parsed.is_open(start + length - timedelta(seconds=1), BERLIN)
    assert not parsed.is_open(start + length, BERLIN)


def test_zone_of_its_own_counts() -> None:
    """A window in a named zone is the same everywhere; one without is the host's."""
    named = ActivationWindow.parse("02:00-04:00 Europe/Berlin")
    assert named.opens(MONDAY, NEW_YORK) == named.opens(MONDAY, UTC) == at("2026-11-23 01:00")
    local = ActivationWindow.parse("02:00-04:00")
    assert local.opens(MONDAY, NEW_YORK) == at("2026-11-23 07:00")
    assert ActivationWindow.parse("02:00-04:00 UTC").opens(MONDAY, NEW_YORK) == at("2026-11-23 02:00")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "must be like", id="empty"),
        pytest.param("2:00-4:00", "must be like", id="one digit"),
        pytest.param("02:00", "must be like", id="no end"),
        pytest.param("24:00-02:00", "hours are 00 to 23", id="begins at 24"),
        pytest.param("02:00-02:60", "minutes 00 to 59", id="sixty minutes"),
        pytest.param("02:00-02:00", "is empty", id="no length"),
        pytest.param("mon-fry 02:00-04:00", "days are mon, tue", id="no such day"),
        pytest.param("mon-wed-fri 02:00-04:00", "days are mon, tue", id="two dashes"),
        pytest.param("02:00-04:00 Mars/Olympus", "which this host doesn't know", id="no such zone"),
        pytest.param("02:00-04:00 ../../etc/passwd", "must be like", id="a path"),
        pytest.param("02:00-04:00 Europe/../passwd", "must be like", id="a path in a zone"),
    ],
)
def test_refuses(text: str, problem: str) -> None:
    """What is no window is told, with what one looks like."""
    with pytest.raises(ValueError, match=problem):
        ActivationWindow.parse(text)


@given(
    window=st.builds(
        ActivationWindow,
        begin=st.times(),
        end=st.times(),
        weekdays=st.frozensets(st.integers(0, 6), min_size=1),
        zone=st.sampled_from([None, BERLIN, NEW_YORK, ZoneInfo("Australia/Lord_Howe"), ZoneInfo("Pacific/Apia")]),
    ),
    now=st.timedeltas(-365 * DAY, 365 * DAY).map(lambda span: MONDAY + span),
)
def test_every_window_opens_within_eight_days(window: ActivationWindow, now: datetime) -> None:
    """Whenever and wherever: there is a next opening, it is open then, and in between it is closed."""
    opens = window.opens(now)
    assert now <= opens < now + 8 * DAY + HOUR
    assert window.is_open(opens)
    if opens > now:
        middle = now + (opens - now) / 2
        assert window.opens(middle) == opens
