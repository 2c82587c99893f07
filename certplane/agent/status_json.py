"""`certplane-agent status --json`: the report in the dialect of all programs (`runtime.dialect`).

What a host reports to the broker too has the names, words and shape of `CertificateStatus` in renewal.proto, so that a
script reads a host's own answer and that of `certplanectl host` alike. What only the host knows has a name of its own.
"""

from __future__ import annotations

from typing import Any, Final

from certplane.agent.status import LineageReport, LinkReport, StatusReport
from certplane.runtime.dialect import json_line
from certplane.runtime.text import printable_values

_MOST_TEXT: Final = 8000


def to_json(report: StatusReport) -> str:
    """The report as one line."""
    document = {
        "identity_name": report.identity_name,
        "running": report.running,
        "identity": _certificate(report.identity),
        "certificates": [_certificate(each) for each in report.certificates],
        "broker": _link(report.broker),
    }
    return json_line(printable_values(document, _MOST_TEXT))  # a peer's words may be in it


def _certificate(report: LineageReport) -> dict[str, Any]:
    """One certificate, as `CertificateStatus` has it."""
    installed = {
        "certificate_id": report.certificate_id,
        "serial_number": report.serial_number,
        "not_before_time": report.not_before,
        "not_after_time": report.not_after,
        "version": _number(report.version),
    }
    served = {
        "serial_number": report.served_serial_number,
        "not_after_time": report.served_not_after,
        "version": _number(report.served_version),
        "observe_time": report.verify_time,
    }
    return {
        "name": report.name,
        "dns_names": report.dns_names,
        "state": f"STATE_{report.state.upper()}",
        "failed_step": report.failed_step and f"STEP_{report.failed_step.upper()}",
        "issued": {"version": _number(report.newest_version)},
        "installed": installed if report.version is not None else None,
        "served": served if report.verify_time is not None else None,
        "renew_time": report.renew_time,
        "renew_reason": report.renew_reason,
        "last_error": report.last_error,
        "request_failures": report.failures,
        "activation_failures": report.activation_failures,
        "next_attempt_time": report.next_attempt_time,
        "activate_time": report.activate_after,
        "held_by_rollout_id": report.held_by_rollout_id,
        "update_time": report.update_time,
        "health": f"HEALTH_{report.health}",
        "health_reason": report.health_text,
        "health_remedy": report.remedy,
        # What only the host knows.
        "severity": report.severity,
        "expired": report.expired,
        "overdue": report.overdue,
        "order_id": report.order_id,
        "verify_error": report.verify_error,
        "verify_failures": report.verify_failures,
        "next_verify_time": report.next_verify_time,
    }


def _link(report: LinkReport) -> dict[str, Any]:
    skew = report.clock_skew_seconds
    return {
        "phase": report.phase,
        "since_time": report.since,
        "last_error": report.last_error,
        "next_attempt_time": report.next_attempt_time,
        "unacknowledged_reports": report.unacknowledged_reports,
        "last_connected_time": report.last_connected_time,
        "broker_version": report.broker_version,
        "clock_skew": None if skew is None else f"{skew:g}s",
        "broker_url": report.broker_url,
    }


def _number(version: int | None) -> str | None:
    """A 64-bit number, which JSON has as a text in this dialect."""
    return None if version is None else str(version)
