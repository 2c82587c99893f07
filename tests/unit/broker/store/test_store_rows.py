"""Values to rows and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.store import audit_records, rows

TIMES = st.datetimes(min_value=datetime(1950, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone
TEXTS = st.text(max_size=20)


@given(TIMES)
def test_times_are_exact_to_the_microsecond(time: datetime) -> None:
    """No float is on the way."""
    assert rows.from_micros(rows.to_micros(time)) == time


def test_a_time_of_another_zone_is_stored_as_utc() -> None:
    """Two names of one moment are one moment."""
    berlin = datetime(2026, 7, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    assert rows.from_micros(rows.to_micros(berlin)) == datetime(2026, 7, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param("", id="empty"),
        pytest.param("[]", id="no object"),
        pytest.param('{"event_id": "1"}', id="no time"),
        pytest.param('{"event_id": "1", "timestamp": "yesterday"}', id="no such time"),
        pytest.param('{"event_id": "1", "timestamp": "2026-11-23T00:00:00.0Z", "reason": "to', id="torn"),
    ],
)
def test_what_is_no_record_is_refused(record: str) -> None:
    """Only an event with an id and a time is imported."""
    with pytest.raises(ValueError, match="not the record"):
        audit_records.record_row(record)
