"""Rows of the fleet's tables to domain values and back. Pure.

A certificate's status is one JSON object that is only read back whole: empty fields are left out, times are
microseconds.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any, Final, get_type_hints

from certplane.broker.fleet.model import (
    CertificateState,
    CertificateStatus,
    HeldCertificate,
    HostStream,
    RenewalStep,
)
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.statements import Row

__all__ = ["STREAM_COLUMNS", "decode_status", "encode_status", "stream_from_row", "stream_row"]

STREAM_COLUMNS: Final = tuple(HostStream.__dataclass_fields__)
"""What `stream_from_row` reads and `stream_row` gives, in this order."""

_MICROSECOND: Final = timedelta(microseconds=1)
_FIELDS: Final = tuple(CertificateStatus.__dataclass_fields__)
_HELD_FIELDS: Final = tuple(HeldCertificate.__dataclass_fields__)
_TIMES: Final = frozenset(
    name
    for model in (CertificateStatus, HeldCertificate)
    for name, kind in get_type_hints(model).items()
    if kind == datetime | None
)
_HELD: Final = ("issued", "installed", "served")
# ASCII only: whatever a host says is then text that every database takes.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


def encode_status(status: CertificateStatus) -> str:
    """The status as JSON."""
    return _encode(_values(status, _FIELDS))


def _values(source: CertificateStatus | HeldCertificate, names: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in names:
        value = getattr(source, name)
        if isinstance(value, datetime):
            values[name] = to_micros(value)
        elif isinstance(value, HeldCertificate):
            values[name] = _values(value, _HELD_FIELDS)
        elif value:
            values[name] = value
    return values


def decode_status(text: str) -> CertificateStatus:
    """The status of `encode_status`."""
    values = _read(json.loads(text))
    for name in _HELD:
        if name in values:
            values[name] = HeldCertificate(**_read(values[name]))
    values["state"] = CertificateState(values["state"])
    values["failed_step"] = RenewalStep(values.get("failed_step", ""))
    values["dns_names"] = tuple(values.get("dns_names", ()))
    return CertificateStatus(**values)


def _read(values: dict[str, Any]) -> dict[str, Any]:
    return {name: from_micros(value) if name in _TIMES else value for name, value in values.items()}


def stream_row(stream: HostStream) -> tuple[object, ...]:
    """The columns of a stream's row."""
    values = []
    for name in STREAM_COLUMNS:
        value = getattr(stream, name)
        if isinstance(value, datetime):
            value = to_micros(value)
        elif isinstance(value, timedelta):
            value //= _MICROSECOND
        values.append(value)
    return tuple(values)


def stream_from_row(row: Row) -> HostStream:
    """The stream of a row of `STREAM_COLUMNS`."""
    host, agent_version, serial_number, not_after, source_ip, connect_time, last_seen_time, end_time, skew = row
    return HostStream(
        host,
        agent_version,
        serial_number,
        from_micros(not_after),
        source_ip,
        from_micros(connect_time),
        from_micros(last_seen_time),
        None if end_time is None else from_micros(end_time),
        None if skew is None else timedelta(microseconds=skew),
    )
