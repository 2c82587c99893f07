"""Audit events as rows and lines. The record is the public format, whatever release wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from certplane.ctl.show.words import clock_text
from certplane.runtime.columns import Column
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted
from certplane.v1 import audit_pb2

_STYLES: Final = {"error": Style.BAD, "warning": Style.WARNING}


def record_of(event: audit_pb2.AuditEvent) -> dict[str, Any]:
    """The whole event."""
    record: dict[str, Any] = MessageToDict(event.record)
    return record


def _text(event: audit_pb2.AuditEvent, *keys: str) -> str:
    """The first of these members that there is."""
    record = event.record.fields
    for key in keys:
        if key not in record:
            continue
        value = record[key]
        if value.WhichOneof("kind") == "list_value":
            return " ".join(item.string_value for item in value.list_value.values)
        if value.WhichOneof("kind") == "number_value":
            return f"{value.number_value:g}"
        if value.string_value:
            return value.string_value
    return ""


def names_of(event: audit_pb2.AuditEvent) -> str:
    """The DNS names that it is about."""
    return _text(event, "dns_names", "csr_dns_names", "expected_dns_names")


def why(event: audit_pb2.AuditEvent) -> str:
    """Reason code and text, or the cause."""
    said = ": ".join(filter(None, (_text(event, "reason_code"), _text(event, "reason"))))
    return said or _text(event, "cause")


def style_of(event: audit_pb2.AuditEvent) -> Style:
    """Its colour, by its severity."""
    return _STYLES.get(_text(event, "severity"), Style.PLAIN)


def _short_time(event: audit_pb2.AuditEvent) -> str:
    """Without the year, which is this one mostly."""
    return clock_text(event.event_time)[5:].removesuffix("Z")


COLUMNS: Final[Sequence[Column[audit_pb2.AuditEvent]]] = (
    Column("TIME", _short_time, 0, wide_text=lambda event: clock_text(event.event_time)),
    Column("EVENT", lambda event: event.event_type, 0, least=20, style=style_of),
    Column("IDENTITY", lambda event: _text(event, "identity"), 1, least=12),
    Column("WHY", why, 3, least=16),
    Column("NAMES", names_of, 2, least=12),
    Column("PROFILE", lambda event: _text(event, "profile_name"), 5),
    Column("SERIAL", lambda event: _text(event, "cert_serial_number"), 6),
    Column("COUNT", lambda event: _text(event, "count", "repeat_count"), None),
    Column("ISSUER", lambda event: _text(event, "issuer_name"), None),
    Column("FROM", lambda event: _text(event, "source_ip"), None),
    Column("REQUEST", lambda event: _text(event, "request_id"), None),
    Column("ORDER", lambda event: _text(event, "order_id"), None),
    Column("CERTIFICATE", lambda event: _text(event, "certificate_id"), None),
    Column("RENEWAL", lambda event: _text(event, "renewal_request_id"), None),
    Column("ID", lambda event: event.event_id, None),
)


def event_line(event: audit_pb2.AuditEvent) -> str:
    """An event, in a line: when, what, whose, why, names."""
    parts = (clock_text(event.event_time), event.event_type, _text(event, "identity"), names_of(event), why(event))
    return "  ".join(filter(None, parts))


def finding_line(finding: audit_pb2.VerifyAuditLogResponse.Finding) -> str:
    """Something that doesn't hold."""
    place = f"event {finding.sequence}" if finding.sequence else "the log"
    named = f" ({finding.event_id})" if finding.event_id else ""
    return f"{finding.kind.upper()}: {place}{named}: {finding.text}"


def result_facts(result: audit_pb2.VerifyAuditLogResponse.Result) -> list[tuple[str, str]]:
    """What came of a check."""
    unsigned = "" if result.checkpoint_count else "; no signed checkpoint proves where it ends"
    return [
        ("events", str(result.event_count)),
        ("chains", f"{result.chain_count}, one of each broker and start"),
        ("checkpoints", f"{result.checkpoint_count} signed{unsigned}"),
        ("signed up to", f"event {result.signed_sequence}" if result.signed_sequence else ""),
        (
            "not proven",
            f"{counted(result.unchained_event_count, 'event')} of releases without a chain"
            if result.unchained_event_count
            else "",
        ),
        ("findings", str(result.finding_count)),
    ]
