"""The audit events of what hosts report: of the steps that reach or fail something, not of each step in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from certplane.broker.model import AuditEvent, AuditEventType, AuditSeverity, Caller, EventKind
from certplane.fleet_report.model import CertificateState, CertificateStatus, Report

_SEVERITIES = {
    CertificateState.FAILED: AuditSeverity.WARNING,
    CertificateState.DEGRADED: AuditSeverity.ERROR,
}


@dataclass(frozen=True, slots=True)
class ToldEvent:
    """The event of one report, and which others are its repetition."""

    event: AuditEvent
    kind: EventKind


def report_events(
    caller: Caller,
    request_id: str,
    reports: Iterable[Report],
    now: datetime,
    new_event_id: Callable[[], str],
) -> dict[int, ToldEvent]:
    """The events of those reports that say something to an auditor, by sequence.

    One outcome of one certificate is one kind; all that a host reports is the wider one, since a host may have as many
    certificates and reach as many outcomes as it says.
    """
    wider = (AuditEventType.RENEWAL_REPORTED.value, caller.name)
    return {
        report.sequence: ToldEvent(
            _event(caller, request_id, report.certificate, now, new_event_id()),
            EventKind(caller.name, (*wider, report.certificate.name, report.certificate.outcome), wider),
        )
        for report in reports
        if report.certificate.outcome
    }


def _event(caller: Caller, request_id: str, status: CertificateStatus, now: datetime, event_id: str) -> AuditEvent:
    held = (status.served if status.state is CertificateState.SERVING else None) or status.installed or status.issued
    return AuditEvent(
        event_id=event_id,
        timestamp=now,
        event_type=AuditEventType.RENEWAL_REPORTED,
        request_id=request_id,
        severity=_SEVERITIES.get(status.state, AuditSeverity.INFO),
        identity=caller.name,
        profile_name=status.profile,
        reason=_reason(status),
        source_ip=caller.source_ip,
        user_agent=caller.user_agent,
        certificate_id=held.certificate_id if held else "",
        cert_serial_number=held.serial_number if held else "",
        cert_not_before=held.not_before if held else None,
        cert_not_after=held.not_after if held else None,
    )


def _reason(status: CertificateStatus) -> str:
    step = f" at {status.failed_step}" if status.failed_step else ""
    error = f": {status.last_error}" if status.last_error else ""
    return f"{status.name}: {status.state}{step}{error}"[:1000]
