"""Audit events as they are stored: compact, and the same event byte for byte when it is read.

The public format of an event is JSON with a name for each field, and 64 letters for each hash: 1.2 KB for one step of a
certificate. What is stored is a MessagePack map from the fields' numbers to their values, without those that are empty,
hashes and ids as their octets, times as microseconds: half of it. `event_id` and `timestamp` have columns of their own.

A value that would not come back as it was (an id in capitals, a hash of odd length) is stored as the text that it is.
An event that MessagePack doesn't take, for a lone surrogate in a file's name, is stored as JSON; so is one that was
made elsewhere, by an older or newer release perhaps: a spilled one, or one that a killed broker was counting.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from certplane.broker.events import CHANGE_EVENTS, AuditDecision, AuditEvent, AuditEventType, AuditSeverity
from certplane.broker.store.rows import from_micros, to_micros
from certplane.runtime.json_state import plain_text

_Pack = Callable[[Any], Any]
_Form = tuple[_Pack | None, _Pack]
"""From a field's value to what is stored of it and back; None stores it as it is."""


def _id(text: str) -> bytes | str:
    """A UUID's 16 octets."""
    plain = text.replace("-", "")
    octets = _hash(plain)
    if octets is plain or f"{plain[:8]}-{plain[8:12]}-{plain[12:16]}-{plain[16:20]}-{plain[20:]}" != text:
        return text
    return octets


def _id_text(octets: bytes | str) -> str:
    if isinstance(octets, str):
        return octets
    text = octets.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _hash(text: str) -> bytes | str:
    try:
        octets = bytes.fromhex(text)
    except ValueError:
        return text
    return octets if octets.hex() == text else text


def _hash_text(octets: bytes | str) -> str:
    return octets if isinstance(octets, str) else octets.hex()


def _words(words: tuple[str, ...]) -> _Form:
    """Words by their place in the list: it only grows at its end. A word that isn't there yet is stored itself."""
    numbers = {word: number for number, word in enumerate(words)}
    return (lambda word: numbers.get(word, str(word))), lambda cell: words[cell] if isinstance(cell, int) else cell


_TEXT: Final[_Form] = (None, str)
_ID: Final[_Form] = (_id, _id_text)
_HASH: Final[_Form] = (_hash, _hash_text)
_NAMES: Final[_Form] = (None, tuple)
_TIME: Final[_Form] = (to_micros, from_micros)
_COUNT: Final[_Form] = (None, int)
_TYPES: Final = _words(
    (
        "broker_started", "policy_loaded", "policy_rejected", "certificate_request_received", "certificate_authorized",
        "certificate_denied", "certificate_cache_hit", "certificate_issued", "certificate_issue_failed",
        "account_key_changed", "broker_stopped", "certificate_delivered", "certificate_revoked",
        "certificate_revocation_authorized", "denials_coalesced", "enrollment_reported", "events_coalesced",
        "identity_activated", "identity_allowed", "identity_contested", "identity_denied", "issuer_failed_over",
        "order_abandoned", "renewal_reported", "renewal_requested", "renewal_window_moved", "rpc_denied",
        "store_copied", "store_damaged", "trust_reloaded", "trust_rejected",
    )
)  # fmt: skip
_SEVERITIES: Final = _words(("info", "warning", "error"))
_DECISIONS: Final = _words(("allow", "deny", "issue", "cache_hit", "error"))

FIELDS: Final[tuple[tuple[str, _Form], ...]] = (
    ("event_type", _TYPES),
    ("request_id", _ID),
    ("severity", _SEVERITIES),
    ("decision", _DECISIONS),
    ("identity", _TEXT),
    ("profile_name", _TEXT),
    ("profile_hash", _HASH),
    ("policy_hash", _HASH),
    ("reason_code", _TEXT),
    ("reason", _TEXT),
    ("source_ip", _TEXT),
    ("user_agent", _TEXT),
    ("csr_sha256", _HASH),
    ("csr_public_key_sha256", _HASH),
    ("csr_dns_names", _NAMES),
    ("expected_dns_names", _NAMES),
    ("issuer_name", _TEXT),
    ("issuer_directory", _TEXT),
    ("acme_order_url", _TEXT),
    ("order_id", _ID),
    ("certificate_id", _ID),
    ("cert_serial_number", _HASH),
    ("cert_not_before", _TIME),
    ("cert_not_after", _TIME),
    ("cache_result", _TEXT),
    ("cause", _TEXT),
    ("replaces_certificate_id", _ID),
    ("count", _COUNT),
    ("renewal_request_id", _ID),
    ("selection", _TEXT),
    ("rollout_id", _ID),
)
"""The fields by their numbers, which stand in databases: the list only grows at its end."""

_SAME_NAMES: Final = True
"""Instead of `expected_dns_names` that are those of the CSR, as they are unless something is refused."""

_PLACES: Final = {name: place for place, name in enumerate(AuditEvent.__struct_fields__)}
_PACKS: Final = tuple((number, _PLACES[name], pack) for number, (name, (pack, _)) in enumerate(FIELDS))
_READS: Final = tuple((name, read) for name, (_, read) in FIELDS)
_CSR, _EXPECTED = (next(n for n, (field, _) in enumerate(FIELDS) if field == name) for name in ("csr_dns_names", "expected_dns_names"))  # fmt: skip  # noqa: E501
_ENUMS: Final[dict[str, Callable[[str], Any]]] = {
    "event_type": AuditEventType, "severity": AuditSeverity, "decision": AuditDecision
}  # fmt: skip

_encode: Final = msgspec.msgpack.Encoder(enc_hook=plain_text).encode
_decode: Final = msgspec.msgpack.Decoder(dict[int, Any]).decode

NO_RECORD: Final = "{}"
"""In the column `record` beside a `body`: an older release finds an object there, of an event that it can't read."""


class EventRow(NamedTuple):
    """An event to be written."""

    event_id: str
    create_time: int
    record: str
    body: bytes | None
    kind: str | None
    event: AuditEvent | None

    @property
    def text(self) -> str:
        """The event in the public format."""
        return self.record if self.event is None else self.event.encode()

    @property
    def size(self) -> int:
        """About how many octets are written."""
        return len(self.body or self.record)


def pack(event: AuditEvent) -> bytes | None:
    """What is stored of an event beside its id and time; None if it can only be stored as JSON."""
    values = msgspec.structs.astuple(event)
    cells = {}
    for number, place, pack in _PACKS:
        value = values[place]
        if value:
            cells[number] = value if pack is None else pack(value)
    if cells.get(_EXPECTED) == cells.get(_CSR, ()):
        cells[_EXPECTED] = _SAME_NAMES
    try:
        return _encode(cells)
    except UnicodeError:
        return None


def unpack(event_id: str, create_time: int, body: bytes) -> AuditEvent:
    """The event of a row.

    Raises:
        ValueError: it is none that this release can read.
    """
    try:
        cells = _decode(body)
        if cells.get(_EXPECTED) is _SAME_NAMES:
            cells[_EXPECTED] = cells[_CSR]
        # Numbers that aren't known are fields of a newer release.
        facts = {_READS[number][0]: _READS[number][1](cell) for number, cell in cells.items() if number < len(_READS)}
        for name, enum in _ENUMS.items():
            if name in facts:
                facts[name] = enum(facts[name])
        return AuditEvent(event_id, from_micros(create_time), **facts)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the audit event {event_id} can't be read: {error}") from error


def event_row(event: AuditEvent) -> EventRow:
    """An event of this program as it is written."""
    body = pack(event)
    kind = event.event_type.value if event.event_type in CHANGE_EVENTS else None
    record = NO_RECORD if body is not None else event.encode()
    return EventRow(event.event_id, to_micros(event.timestamp), record, body, kind, event)


def record_row(record: str) -> EventRow:
    """An event that was made elsewhere, in the public format, as it is written.

    Raises:
        ValueError: it isn't the JSON object of an event.
    """
    try:
        value = json.loads(record)
        time = datetime.fromisoformat(value["timestamp"])
        kind = value.get("event_type")
        return EventRow(
            str(value["event_id"]), to_micros(time), record, None, kind if kind in CHANGE_EVENTS else None, None
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("not the record of an audit event") from error


def record_of(event_id: str, create_time: int, record: str, body: bytes | None) -> str:
    """The public format of a stored row.

    Raises:
        ValueError: it can't be read.
    """
    return record if body is None else unpack(event_id, create_time, body).encode()
