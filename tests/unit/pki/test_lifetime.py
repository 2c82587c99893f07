"""One rule says when a certificate is due; no setting can make a fresh one due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.pki.lifetime import renew_time

START = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("lifetime", "renew_before", "left"),
    [
        pytest.param(90 * DAY, 30 * DAY, 30 * DAY, id="set"),
        pytest.param(90 * DAY, timedelta(hours=720), timedelta(hours=720), id="720h-of-90-days"),
        pytest.param(6 * DAY, timedelta(hours=720), 3 * DAY, id="720h-of-6-days"),
        pytest.param(DAY, timedelta(hours=720), DAY / 2, id="720h-of-a-day"),
        pytest.param(90 * DAY, 46 * DAY, 45 * DAY, id="more-than-half"),
        pytest.param(90 * DAY, timedelta(seconds=1), timedelta(seconds=1), id="the-last-second"),
    ],
)
def test_set(lifetime: timedelta, renew_before: timedelta, left: timedelta) -> None:
    """A configured span holds as it is, up to half of the real lifetime, without a phase."""
    end = START + lifetime
    assert renew_time(START, end, renew_before, "web1") == end - left
    assert renew_time(START, end, renew_before, "web2") == end - left


@pytest.mark.parametrize(
    ("lifetime", "share"),
    [
        pytest.param(90 * DAY, 1 / 3, id="90-days"),
        pytest.param(10 * DAY, 1 / 3, id="10-days"),
        pytest.param(10 * DAY - timedelta(seconds=1), 1 / 2, id="just-under-10-days"),
        pytest.param(timedelta(hours=160), 1 / 2, id="shortlived"),
        pytest.param(timedelta(hours=24), 1 / 2, id="identity"),
        pytest.param(timedelta(minutes=5), 1 / 2, id="5-minutes"),
    ],
)
def test_unset(lifetime: timedelta, share: float) -> None:
    """A third is left, or half of a short one, and a twentieth more at most."""
    end = START + lifetime
    for number in range(50):
        left = end - renew_time(START, end, None, f"web{number}")
        assert lifetime * share <= left < lifetime * (share + 1 / 20) + timedelta(microseconds=1)


def test_phase_is_fixed_and_spreads() -> None:
    """A host keeps its place, also in the next release; many hosts fill the window evenly."""
    end = START + 90 * DAY
    assert renew_time(START, end, None, "web1.example/www") == renew_time(START, end, None, "web1.example/www")
    assert renew_time(START, end, None, "web1.example/www").isoformat() == "2027-01-19T09:07:13.381316+00:00"
    counts = [0] * 10
    for number in range(2000):
        early = end - 30 * DAY - renew_time(START, end, None, f"web{number}.example")
        counts[int(early / (90 * DAY / 20) * 10)] += 1
    assert min(counts) > 140
    assert max(counts) < 260


@given(
    st.timedeltas(timedelta(seconds=1), timedelta(days=4000)),
    st.none() | st.timedeltas(timedelta(microseconds=1), timedelta(days=9999)),
    st.text(),
)
def test_never_loops(lifetime: timedelta, renew_before: timedelta | None, key: str) -> None:
    """Whatever is configured, nearly half of the life passes before a renewal, and it comes before the end."""
    due = renew_time(START, START + lifetime, renew_before, key)
    assert START + lifetime * 0.449 <= due < START + lifetime


@pytest.mark.parametrize(
    ("end", "renew_before"),
    [
        pytest.param(START, None, id="no-lifetime"),
        pytest.param(START - DAY, None, id="negative-lifetime"),
        pytest.param(START + DAY, timedelta(), id="zero-span"),
        pytest.param(START + DAY, -DAY, id="negative-span"),
    ],
)
def test_misuse(end: datetime, renew_before: timedelta | None) -> None:
    """Values that no certificate and no checked setting has are a caller's mistake."""
    with pytest.raises(ValueError, match="must"):
        renew_time(START, end, renew_before, "x")
