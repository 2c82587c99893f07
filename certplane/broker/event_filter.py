"""Which audit events an operator wants to see."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from certplane.broker.events import AuditSeverity

_SEVERITIES: Final = [severity.value for severity in (AuditSeverity.INFO, AuditSeverity.WARNING, AuditSeverity.ERROR)]
_IDS: Final = (
    "event_id",
    "request_id",
    "order_id",
    "certificate_id",
    "renewal_request_id",
    "replaces_certificate_id",
    "rollout_id",
)


@dataclass(frozen=True, slots=True)
class EventFilter:
    """All that is set must match, and of a set of values one.

    Attributes:
        start: From this time on.
        end: Before this time.
        identities: Whose the event is.
        dns_names: Among the names that were asked for or expected.
        serial_numbers: Of the certificate.
        event_types: What it is.
        reason_codes: Of a refusal.
        ids: Of the event, the request, the order, the certificate, the renewal request, the rollout.
        profiles: By name.
        severity: At least so bad.
    """

    start: datetime | None = None
    end: datetime | None = None
    identities: frozenset[str] = frozenset()
    dns_names: frozenset[str] = frozenset()
    serial_numbers: frozenset[str] = frozenset()
    event_types: frozenset[str] = frozenset()
    reason_codes: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    profiles: frozenset[str] = frozenset()
    severity: AuditSeverity = AuditSeverity.INFO

    def picks(self, time: datetime, record: dict[str, Any]) -> bool:
        """Whether an event of this time is picked; `record` is the public format."""
        if (self.start is not None and time < self.start) or (self.end is not None and time >= self.end):
            return False
        for wanted, name in (
            (self.identities, "identity"),
            (self.serial_numbers, "cert_serial_number"),
            (self.event_types, "event_type"),
            (self.reason_codes, "reason_code"),
            (self.profiles, "profile_name"),
        ):
            if wanted and record.get(name) not in wanted:
                return False
        if self.ids and not any(record.get(name) in self.ids for name in _IDS):
            return False
        if self.dns_names and self.dns_names.isdisjoint(
            [*record.get("csr_dns_names", ()), *record.get("expected_dns_names", ())]
        ):
            return False
        severity = record.get("severity", AuditSeverity.INFO)
        return severity not in _SEVERITIES or _SEVERITIES.index(severity) >= _SEVERITIES.index(self.severity)
