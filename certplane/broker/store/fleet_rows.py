"""Rows of the fleet's tables to domain values and back. Pure.

A certificate's status is one JSON array that is only read back whole; times are microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.fleet.model import HeldUp, HostStream
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.statements import Row
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate, RenewalStep

STREAM_COLUMNS: Final = tuple(HostStream.__dataclass_fields__)
"""What `stream_from_row` reads and `stream_row` gives, in this order."""

_MICROSECOND: Final = timedelta(microseconds=1)
# ASCII only: whatever a host says is then text that every database takes.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode

_Held = tuple[str, int | None, int | None, str, int, int | None]


def encode_status(status: CertificateStatus) -> str:
    """The status as a JSON array of its fields in their order; a new field is added at the end.

    Written out, and not an object with names: of what a report costs, this was more than half.
    """
    return _encode(
        (
            status.name,
            status.state.value,
            status.profile,
            status.dns_names,
            status.failed_step or "",
            _held(status.issued),
            _held(status.installed),
            _held(status.served),
            _micros(status.renew_time),
            status.renew_reason,
            status.last_error,
            status.request_failures,
            status.activation_failures,
            _micros(status.next_attempt_time),
            _micros(status.activate_time),
            _micros(status.update_time),
        )
    )


def _held(held: HeldCertificate | None) -> _Held | None:
    if held is None:
        return None
    return (
        held.serial_number,
        _micros(held.not_before),
        _micros(held.not_after),
        held.certificate_id,
        held.version,
        _micros(held.observe_time),
    )


def _micros(time: datetime | None) -> int | None:
    return None if time is None else to_micros(time)


def decode_status(text: str) -> CertificateStatus:
    """The status of `encode_status`."""
    (
        name,
        state,
        profile,
        dns_names,
        failed_step,
        issued,
        installed,
        served,
        renew_time,
        renew_reason,
        last_error,
        request_failures,
        activation_failures,
        *times,
    ) = json.loads(text)
    return CertificateStatus(
        name,
        CertificateState(state),
        profile,
        tuple(dns_names),
        RenewalStep(failed_step) if failed_step else None,
        _held_from(issued),
        _held_from(installed),
        _held_from(served),
        _time(renew_time),
        renew_reason,
        last_error,
        request_failures,
        activation_failures,
        *map(_time, times),
    )


def _held_from(values: _Held | None) -> HeldCertificate | None:
    if values is None:
        return None
    serial_number, not_before, not_after, certificate_id, version, observe_time = values
    times = (_time(not_before), _time(not_after))
    return HeldCertificate(serial_number, *times, certificate_id, version, _time(observe_time))


def _time(micros: int | None) -> datetime | None:
    return None if micros is None else from_micros(micros)


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


def encode_held_up(held: Sequence[HeldUp]) -> str | None:
    """What holds up certificates of a request, as a column; None for nothing."""
    if not held:
        return None
    return _encode(
        [
            [
                one.host,
                one.certificate_id,
                one.reason,
                one.name,
                one.next_attempt_time and to_micros(one.next_attempt_time),
            ]
            for one in held
        ]
    )


def decode_held_up(text: str | None) -> tuple[HeldUp, ...]:
    """What `encode_held_up` made a column of."""
    return tuple(
        HeldUp(host, certificate_id, reason, name, None if time is None else from_micros(time))
        for host, certificate_id, reason, name, time in json.loads(text or "[]")
    )
