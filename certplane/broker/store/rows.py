"""Rows to domain values and back: times, JSON columns, orders, certificates, audit events.

Pure. Column order is the dataclass's field order wherever a whole value is read, so that a row becomes a value without
look-ups by name.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from certplane.broker.events import AuditEvent
from certplane.broker.model import (
    CertificateRecord,
    DenyEntry,
    IdentityUse,
    KnownIdentity,
    Order,
    OrderCause,
    OrderDraft,
    OrderState,
    RevocationReason,
    TxtRecord,
)
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.store.statements import Row
from certplane.errors import ProblemDocument, Reason, Refusal, Violation
from certplane.fleet_report.model import RenewalCause

EventRow = tuple[str, int, str]
"""event_id, create_time, record: the columns of an audit insert in their order."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# ASCII only: nothing that a client put into a header can then be text that a database or a log refuses.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


def to_micros(time: datetime) -> int:
    """`time` (aware) as whole microseconds since 1970 UTC."""
    span = time - _EPOCH
    return (span.days * 86_400 + span.seconds) * 1_000_000 + span.microseconds


def from_micros(micros: int) -> datetime:
    """The aware UTC time of a column."""
    return _EPOCH + timedelta(microseconds=micros)


def to_micros_or_none(time: datetime | None) -> int | None:
    """The same of a column that may be null."""
    return None if time is None else to_micros(time)


def _from_micros_or_none(micros: int | None) -> datetime | None:
    return None if micros is None else from_micros(micros)


def names_sha256(names: Sequence[str]) -> str:
    """What stands for a name set (canonical, sorted) in the index of open orders."""
    return hashlib.sha256(",".join(names).encode()).hexdigest()


# Audit events


def event_row(event: AuditEvent) -> EventRow:
    """The event as it is stored."""
    return (event.event_id, to_micros(event.timestamp), event.encode())


def record_row(record: str) -> EventRow:
    """A record that was spilled, as it is stored.

    Raises:
        ValueError: it isn't the JSON object of an event.
    """
    try:
        value = json.loads(record)
        time = datetime.fromisoformat(value["timestamp"])
        return (str(value["event_id"]), to_micros(time), record)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("not the record of an audit event") from error


# Orders


def encode_refusal(refusal: Refusal) -> str:
    """`refusal` as JSON; empty fields left out."""
    value: dict[str, Any] = {"reason": str(refusal.reason), "message": refusal.message}
    if refusal.retry_after is not None:
        value["retry_after"] = refusal.retry_after // timedelta(microseconds=1)
    if refusal.violations:
        value["violations"] = [[violation.subject, violation.description] for violation in refusal.violations]
    if refusal.problems:
        value["problems"] = [
            [problem.type, problem.detail, problem.status, problem.identifier] for problem in refusal.problems
        ]
    return _encode(value)


def decode_refusal(text: str) -> Refusal:
    """The refusal of `encode_refusal`."""
    value = json.loads(text)
    retry_after = value.get("retry_after")
    return Refusal(
        Reason(value["reason"]),
        value["message"],
        None if retry_after is None else timedelta(microseconds=retry_after),
        tuple(Violation(*violation) for violation in value.get("violations", ())),
        tuple(ProblemDocument(*problem) for problem in value.get("problems", ())),
    )


def _encode_txt_records(records: Sequence[TxtRecord]) -> str | None:
    if not records:
        return None
    return _encode([[r.zone, r.name, r.value, r.record_id, r.credentials] for r in records])


def _decode_txt_records(text: str | None) -> tuple[TxtRecord, ...]:
    return () if text is None else tuple(TxtRecord(*fields) for fields in json.loads(text))


ORDER_COLUMNS: Final = (
    "identity",
    "profile",
    "profile_hash",
    "dns_names",
    "public_key_sha256",
    "csr_der",
    "issuer",
    "request_id",
    "identity_serial",
    "replaces_certificate_id",
    "identity_issuer",
    "identity_anchor",
    "cause",
    "ask_time",
    "retry_epoch",
    "order_id",
    "state",
    "create_time",
    "update_time",
    "acme_order_url",
    "txt_records",
    "certificate_id",
    "error",
    "retry_time",
    "finalize_time",
)
"""What `order_from_row` reads, in this order."""


def order_values(order: Order) -> dict[str, object]:
    """All columns of an order's row; `end_time` follows from state and `update_time`."""
    return {
        **{name: getattr(order, name) for name in OrderDraft.__dataclass_fields__},
        "dns_names": _encode(order.dns_names),
        "names_sha256": names_sha256(order.dns_names),
        "order_id": order.order_id,
        "state": str(order.state),
        "create_time": to_micros(order.create_time),
        "update_time": to_micros(order.update_time),
        "end_time": None if order.state.is_open else to_micros(order.update_time),
        "acme_order_url": order.acme_order_url,
        "txt_records": _encode_txt_records(order.txt_records),
        "certificate_id": order.certificate_id,
        "error": None if order.error is None else encode_refusal(order.error),
        "retry_time": to_micros_or_none(order.retry_time),
        "cause": str(order.cause),
        "ask_time": to_micros_or_none(order.ask_time),
        "finalize_time": to_micros_or_none(order.finalize_time),
    }


def order_from_row(row: Row) -> Order:
    """The order of a row of `ORDER_COLUMNS`."""
    values: Mapping[str, Any] = dict(zip(ORDER_COLUMNS, row, strict=True))
    return Order(
        **{
            **values,
            "dns_names": tuple(json.loads(values["dns_names"])),
            "csr_der": bytes(values["csr_der"]),
            "state": OrderState(values["state"]),
            "create_time": from_micros(values["create_time"]),
            "update_time": from_micros(values["update_time"]),
            "txt_records": _decode_txt_records(values["txt_records"]),
            "error": None if values["error"] is None else decode_refusal(values["error"]),
            "retry_time": _from_micros_or_none(values["retry_time"]),
            "cause": OrderCause(values["cause"]),
            "ask_time": _from_micros_or_none(values["ask_time"]),
            "finalize_time": _from_micros_or_none(values["finalize_time"]),
        }
    )


# Certificates

CERTIFICATE_COLUMNS: Final = tuple(CertificateRecord.__dataclass_fields__)
"""What `certificate_from_row` reads, in this order: the fields of `CertificateRecord`."""


def certificate_values(certificate: CertificateRecord) -> dict[str, object]:
    """All columns of a certificate's row."""
    values: dict[str, object] = {}
    for name in CERTIFICATE_COLUMNS:
        value = getattr(certificate, name)
        values[name] = to_micros(value) if isinstance(value, datetime) else value
    values["dns_names"] = _encode(certificate.dns_names)
    reason = certificate.revocation_reason
    values["revocation_reason"] = None if reason is None else str(reason)
    values["withdrawn"] = int(certificate.withdrawn)
    return values


@functools.lru_cache(maxsize=1024)
def decode_names(text: str) -> tuple[str, ...]:
    """The names of a `dns_names` column."""
    return tuple(json.loads(text))


def certificate_from_row(row: Row) -> CertificateRecord:
    """The certificate of a row of `CERTIFICATE_COLUMNS`; written out, since every cached answer passes here."""
    (
        certificate_id,
        order_id,
        identity,
        profile,
        profile_hash,
        issuer,
        dns_names,
        public_key_sha256,
        serial_number,
        certificate_pem,
        chain_pem,
        not_before,
        not_after,
        renew_time,
        create_time,
        acme_order_url,
        deliver_time,
        revoke_time,
        revocation_reason,
        withdrawn,
    ) = row
    return CertificateRecord(
        certificate_id,
        order_id,
        identity,
        profile,
        profile_hash,
        issuer,
        decode_names(dns_names),
        public_key_sha256,
        serial_number,
        certificate_pem,
        chain_pem,
        from_micros(not_before),
        from_micros(not_after),
        from_micros(renew_time),
        from_micros(create_time),
        acme_order_url,
        _from_micros_or_none(deliver_time),
        _from_micros_or_none(revoke_time),
        None if revocation_reason is None else RevocationReason(revocation_reason),
        bool(withdrawn),
    )


# Renewal plans

PLAN_COLUMNS: Final = tuple(RenewalPlan.__dataclass_fields__)
"""What `plan_from_row` reads, in this order: the fields of `RenewalPlan`."""


def plan_values(plan: RenewalPlan) -> dict[str, object]:
    """All columns of a plan's row."""
    values: dict[str, object] = {}
    for name in PLAN_COLUMNS:
        value = getattr(plan, name)
        values[name] = to_micros(value) if isinstance(value, datetime) else value
    values["cause"] = str(plan.cause)
    return values


def plan_from_row(row: Row) -> RenewalPlan:
    """The plan of a row of `PLAN_COLUMNS`."""
    values: dict[str, Any] = dict(zip(PLAN_COLUMNS, row, strict=True))
    for name in ("renew_time", "window_start", "window_end", "next_check_time"):
        values[name] = _from_micros_or_none(values[name])
    values["cause"] = RenewalCause(values["cause"])
    return RenewalPlan(**values)


# The deny-list

DENY_COLUMNS: Final = ("name", "issuer", "serial_number", "reason", "create_time")
"""What `deny_entry_from_row` reads, in this order."""


def deny_entry_from_row(row: Row) -> DenyEntry:
    """The entry of a row of `DENY_COLUMNS`."""
    name, issuer, serial_number, reason, create_time = row
    return DenyEntry(name, issuer, serial_number, reason, from_micros(create_time))


# Identities

IDENTITY_COLUMNS: Final = (
    "name",
    "issuer",
    "serial_number",
    "not_before",
    "activate_time",
    "source_ip",
    "newest_not_before",
    "retired",
    "contest",
    "displaced_count",
    "displace_time",
)
"""What `identity_from_row` reads, in this order."""


def identity_values(known: KnownIdentity) -> dict[str, object]:
    """All columns of an identity's row but the number of its change."""
    active = known.active
    return {
        "name": known.name,
        "issuer": active.issuer,
        "serial_number": active.serial_number,
        "not_before": to_micros(active.not_before),
        "activate_time": to_micros(active.time),
        "source_ip": active.source_ip,
        "newest_not_before": to_micros(known.newest),
        "retired": _encode([_use_fields(use) for use in known.retired]) if known.retired else None,
        "contest": None if known.contest is None else _encode(_use_fields(known.contest)),
        "displaced_count": known.displaced_count,
        "displace_time": to_micros_or_none(known.displace_time),
    }


def identity_from_row(row: Row) -> KnownIdentity:
    """The identity of a row of `IDENTITY_COLUMNS`."""
    name, *active, newest, retired, contest, displaced_count, displace_time = row
    return KnownIdentity(
        name,
        _use(active),
        from_micros(newest),
        () if retired is None else tuple(map(_use, json.loads(retired))),
        None if contest is None else _use(json.loads(contest)),
        displaced_count,
        _from_micros_or_none(displace_time),
    )


def _use_fields(use: IdentityUse) -> list[object]:
    return [use.issuer, use.serial_number, to_micros(use.not_before), to_micros(use.time), use.source_ip]


def _use(fields: Sequence[Any]) -> IdentityUse:
    issuer, serial_number, not_before, time, source_ip = fields
    return IdentityUse(issuer, serial_number, from_micros(not_before), from_micros(time), source_ip)
