"""Values to rows and back."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.model import CertificateRecord, Order
from certplane.broker.store import rows
from certplane.errors import ProblemDocument, Reason, Refusal, Violation

TIMES = st.datetimes(min_value=datetime(1950, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone
TEXTS = st.text(max_size=20)

REFUSALS = st.builds(
    Refusal,
    st.sampled_from(Reason),
    TEXTS,
    st.none() | st.timedeltas(min_value=timedelta(), max_value=timedelta(days=1000)),
    st.lists(st.builds(Violation, TEXTS, TEXTS), max_size=2).map(tuple),
    st.lists(st.builds(ProblemDocument, TEXTS, TEXTS, st.none() | st.integers(100, 599), TEXTS), max_size=2).map(tuple),
)


@given(REFUSALS)
def test_a_refusal_comes_back_whole(refusal: Refusal) -> None:
    """An order's error reads the same after a restart."""
    assert rows.decode_refusal(rows.encode_refusal(refusal)) == refusal


@given(TIMES)
def test_times_are_exact_to_the_microsecond(time: datetime) -> None:
    """No float is on the way."""
    assert rows.from_micros(rows.to_micros(time)) == time


def test_a_time_of_another_zone_is_stored_as_utc() -> None:
    """Two names of one moment are one moment."""
    berlin = datetime(2026, 7, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    assert rows.from_micros(rows.to_micros(berlin)) == datetime(2026, 7, 1, 12, tzinfo=UTC)


def test_name_sets_are_told_apart() -> None:
    """The hash that stands for names in the index differs with any of them."""
    sets = [("a.example", "b.example"), ("a.example",), ("b.example", "c.example"), ("*.a.example",)]
    assert len({rows.names_sha256(names) for names in sets}) == len(sets)


@pytest.mark.parametrize(
    ("columns", "value"),
    [
        pytest.param(rows.ORDER_COLUMNS, Order, id="orders"),
        pytest.param(rows.CERTIFICATE_COLUMNS, CertificateRecord, id="certificates"),
    ],
)
def test_every_field_of_a_value_is_stored(columns: tuple[str, ...], value: type[Any]) -> None:
    """A field added to the model and forgotten here is found; one that isn't stored says so."""
    assert columns == tuple(field.name for field in fields(value) if field.metadata.get("stored", True))


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
        rows.record_row(record)
