"""How an audit event is written, for readers of today's and of earlier brokers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.store.audit_records import record_row
from certplane.config.values import IdentityName
from tests.fakes.clock import ManualClock

# Times of whole seconds are what certificates have, and what an encoder may shorten.
TIMES = st.datetimes(min_value=datetime(1950, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone
TIMES |= TIMES.map(lambda time: time.replace(microsecond=0))
# What a client sent may look like the record itself, and a file's name need not be text.
TEXTS = st.text(max_size=20) | st.sampled_from(
    ['"timestamp":"2026-11-23T12:00:00Z"', "\udcff", "\ud83d", "é\u2028\x00"]
)

BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXTS,
    int: st.integers(min_value=0, max_value=10**9),
    datetime: TIMES,
    datetime | None: st.none() | TIMES,
    tuple[str, ...]: st.lists(TEXTS, max_size=3).map(tuple),
    AuditEventType: st.sampled_from(AuditEventType),
    AuditSeverity: st.sampled_from(AuditSeverity),
    AuditDecision: st.sampled_from(AuditDecision),
}
EVENTS = st.builds(AuditEvent, **{name: BY_TYPE[kind] for name, kind in get_type_hints(AuditEvent).items()})

WRITTEN_BY_452D001 = (
    '{"timestamp":"2026-11-23T12:00:00.000000Z","request_id":"req-1","identity":"h\\u00f6st","csr_dns_names":'
    '["*.shop.test"],"event_id":"e-1","event_type":"certificate_issued","severity":"info","decision":"issue",'
    '"cert_not_before":"2026-11-23T00:00:00.000000Z","cert_not_after":"2027-02-21T23:59:59.000000Z","count":2}'
)


def contract(event: AuditEvent) -> dict[str, Any]:
    """The record as the public format describes it."""
    record: dict[str, Any] = {}
    for name in AuditEvent.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, datetime):
            record[name] = value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        elif value or name in {"event_id", "event_type"}:
            record[name] = list(value) if isinstance(value, tuple) else value
    return record


@given(EVENTS)
def test_a_record_is_the_public_format_whatever_its_texts_are(event: AuditEvent) -> None:
    """Microseconds and `Z`, empty fields left out, ASCII on one line: nothing in a text is refused or changes it."""
    text = event.encode()
    assert json.loads(text) == event.record() == contract(event)
    assert text.isascii()
    assert "\n" not in text


def test_a_record_of_an_earlier_broker_is_the_same_event() -> None:
    """Another order of keys is the same object; what was spilled then is imported now."""
    event = msgspec.json.decode(WRITTEN_BY_452D001, type=AuditEvent)
    assert event.record() == json.loads(WRITTEN_BY_452D001)
    assert record_row(WRITTEN_BY_452D001)[:2] == ("e-1", 1_795_435_200_000_000)


@pytest.mark.parametrize("text", ["\udcff", "zwölf"], ids=["lone surrogate", "beyond ASCII"])
def test_odd_texts_are_kept_as_they_are(text: str) -> None:
    """A file's name that is no text is audited all the same, and read back as it was."""
    event = AuditTrail(ManualClock(), lambda: "e-1").event(AuditEventType.POLICY_LOADED, reason=text)
    assert json.loads(event.encode())["reason"] == text
    assert record_row(event.encode())[0] == "e-1"


def test_names_of_the_configuration_are_texts() -> None:
    """Policy's identities are a kind of text of their own, which the encoder doesn't know by itself."""
    trail = AuditTrail(ManualClock(), lambda: "e-1").carrying(identity=IdentityName.parse("web1.test"))
    for reason in ("plain", "zwölf"):
        assert json.loads(trail.event(AuditEventType.RPC_DENIED, reason=reason).encode())["identity"] == "web1.test"


def test_a_trail_carries_its_facts_and_an_event_may_differ() -> None:
    """What is given for one event goes before what all of them carry."""
    trail = AuditTrail(ManualClock(), lambda: "e-1").carrying(identity="web1.test", reason="all")
    assert trail.event(AuditEventType.RPC_DENIED).reason == "all"
    event = trail.event(AuditEventType.RPC_DENIED, reason="this")
    assert (event.identity, event.reason, event.timestamp) == ("web1.test", "this", ManualClock().now())
