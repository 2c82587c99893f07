"""Audit events as they are stored: nothing of the public format is lost or changed by it."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.events import CHANGE_EVENTS, AuditEvent, AuditEventType
from certplane.broker.store import audit_records
from certplane.broker.store.audit_records import NO_RECORD, EventRow, event_row, record_of, record_row, unpack
from certplane.config.values import IdentityName
from tests.unit.broker.audit.test_audit_events import EVENTS

HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
ID = "01a207ff-6a12-7c3e-9d1f-3f1c5f1f6a10"
TIME = datetime(2026, 11, 23, 1, 2, 3, 4, tzinfo=UTC)
# What fields of ids and hashes may hold that is none of ours.
ODD = st.sampled_from([HASH, HASH.upper(), HASH[:-1], ID, ID.upper(), ID.replace("-", ""), "ab", "ab cd", "-", "00-00"])


def read(row: EventRow) -> str:
    return record_of(row.event_id, row.create_time, row.record, row.body)


@given(EVENTS)
def test_an_event_is_read_back_byte_for_byte(event: AuditEvent) -> None:
    """Whatever its texts are; also through the row's own text, which is what is spilled and mirrored."""
    row = event_row(event)
    assert read(row) == row.text == event.encode()


@given(ODD, ODD, ODD)
def test_ids_and_hashes_that_are_none_are_read_back_too(request_id: str, key: str, serial: str) -> None:
    """A client names its request as it likes."""
    event = AuditEvent("e", TIME, AuditEventType.RPC_DENIED, request_id, csr_sha256=key, cert_serial_number=serial)
    assert read(event_row(event)) == event.encode()


def test_a_stored_event_is_half_of_its_text() -> None:
    """Hashes and ids are octets, and no name is stored."""
    event = AuditEvent(
        ID, TIME, AuditEventType.CERTIFICATE_DELIVERED, ID, identity=IdentityName.parse("web1.test"),
        profile_hash=HASH, policy_hash=HASH, csr_sha256=HASH, csr_public_key_sha256=HASH, order_id=ID,
        certificate_id=ID, csr_dns_names=("a.test", "*.b.test"), expected_dns_names=("a.test", "*.b.test"),
    )  # fmt: skip
    row = event_row(event)
    assert row.record == NO_RECORD
    assert row.body is not None
    assert len(row.body) == row.size < len(event.encode()) / 3


def test_what_is_not_in_the_form_is_stored_as_its_text() -> None:
    """A lone surrogate is no text that MessagePack takes."""
    row = event_row(AuditEvent("e", TIME, AuditEventType.POLICY_LOADED, reason="\udcff"))
    assert row.body is None
    assert json.loads(read(row))["reason"] == "\udcff"
    made_elsewhere = '{"event_id":"e","timestamp":"2026-11-23T12:00:00.000000Z","field_of_tomorrow":[1]}'
    assert read(record_row(made_elsewhere)) == made_elsewhere


@pytest.mark.parametrize("event_type", AuditEventType)
def test_changes_are_marked(event_type: AuditEventType) -> None:
    """So that they are found among all events, those that were spilled too."""
    event = AuditEvent("e", TIME, event_type)
    expected = event_type.value if event_type in CHANGE_EVENTS else None
    assert event_row(event).kind == record_row(event.encode()).kind == expected


def test_every_field_has_a_number() -> None:
    """A field that is added to the event is added at the end of the list."""
    assert {name for name, _ in audit_records.FIELDS} == {*AuditEvent.__struct_fields__} - {"event_id", "timestamp"}


def test_numbers_are_those_of_released_databases() -> None:
    """Of fields and of words: a list that changes in its middle makes another event of each one that is stored."""
    body = bytes.fromhex(
        "8e 0003 01c41001a207ff6a127c3e9d1f3f1c5f1f6a10 0201 0300 04a168 05a170 06c40111 07c40122 0e91a161 0fc3 11a164"
        "15c40144 1601 1b02"
    )
    assert {name: value for name, value in msgspec.structs.asdict(unpack("e", 0, body)).items() if value} == {
        "event_type": "certificate_request_received", "request_id": ID, "severity": "warning", "decision": "allow",
        "identity": "h", "profile_name": "p", "profile_hash": "11", "policy_hash": "22", "csr_dns_names": ("a",),
        "expected_dns_names": ("a",), "issuer_directory": "d", "cert_serial_number": "44", "count": 2,
        "cert_not_before": datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC), "event_id": "e",
        "timestamp": datetime(1970, 1, 1, tzinfo=UTC),
    }  # fmt: skip


def test_a_field_of_a_newer_release_is_passed_over() -> None:
    """Brokers of two releases read one database."""
    body = msgspec.msgpack.encode({0: 0, 99: "of tomorrow"})
    assert unpack("e", 0, body).event_type is AuditEventType.BROKER_STARTED


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="no MessagePack"),
        pytest.param(msgspec.msgpack.encode([1]), id="no map"),
        pytest.param(msgspec.msgpack.encode({}), id="no type"),
        pytest.param(msgspec.msgpack.encode({0: "of tomorrow"}), id="unknown type"),
        pytest.param(msgspec.msgpack.encode({0: 9999}), id="unknown number"),
        pytest.param(msgspec.msgpack.encode({0: 0, 1: 7}), id="no text"),
    ],
)
def test_what_is_no_event_is_told(body: bytes) -> None:
    """With the event's id."""
    with pytest.raises(ValueError, match="the audit event e-17 can't be read"):
        unpack("e-17", 0, body)


def test_ids_of_the_broker_are_short() -> None:
    """16 octets, whatever the version."""
    for value in (uuid.uuid4(), uuid.UUID(int=0), uuid.UUID(int=(1 << 128) - 1)):
        event = AuditEvent("e", TIME, AuditEventType.RPC_DENIED, str(value))
        row: Any = event_row(event)
        assert value.bytes in row.body
