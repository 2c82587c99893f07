"""The audit events of what hosts report: of the steps that reach or fail something, not of each step in between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from certplane.broker.events import AuditEvent, AuditEventType, AuditSeverity, AuditTrail, EventKind
from certplane.broker.model import Caller
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
    caller: Caller, request_id: str, reports: Iterable[Report], trail: AuditTrail
) -> dict[int, ToldEvent]:
    """The events of those reports that say something to an auditor, by sequence.

    One outcome of one certificate is one kind; all that a host reports is the wider one, since a host may have as many
    certificates and reach as many outcomes as it says.
    """
    trail = trail.of_caller(caller, request_id)
    wider = (AuditEventType.RENEWAL_REPORTED.value, caller.name)
    return {
        report.sequence: ToldEvent(
            _event(report.certificate, trail),
            EventKind(caller.name, (*wider, report.certificate.name, report.certificate.outcome), wider),
        )
        for report in reports
        if report.certificate.outcome
    }


def _event(status: CertificateStatus, trail: AuditTrail) -> AuditEvent:
    held = (status.served if status.state is CertificateState.SERVING else None) or status.installed or status.issued
    return trail.event(
        AuditEventType.RENEWAL_REPORTED,
        severity=_SEVERITIES.get(status.state, AuditSeverity.INFO),
        profile_name=status.profile,
        reason=_reason(status),
        certificate_id=held.certificate_id if held else "",
        cert_serial_number=held.serial_number if held else "",
        cert_not_before=held.not_before if held else None,
        cert_not_after=held.not_after if held else None,
    )


def _reason(status: CertificateStatus) -> str:
    step = f" at {status.failed_step}" if status.failed_step else ""
    error = f": {status.last_error}" if status.last_error else ""
    return f"{status.name}: {status.state}{step}{error}"[:1000]
