"""A lineage's facts as a report to the broker: pure."""

from __future__ import annotations

from datetime import datetime

from certplane.agent.model import LineageStatus, Version
from certplane.agent.renewal.due import LineageSpec, shown_reason
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.renewal.plan import newest_version
from certplane.fleet_report.model import (
    MOST_ERROR_BYTES,
    MOST_REASON_BYTES,
    CertificateState,
    CertificateStatus,
    HeldCertificate,
)
from certplane.runtime.text import printable


def certificate_report(spec: LineageSpec, profile: str, facts: LineageFacts) -> CertificateStatus:
    """What the broker is told of a lineage.

    Args:
        spec: what is wanted of it; an identity's names are those that it has.
        profile: the policy profile; empty for the identity.
        facts: what is on disk, the broker's directive laid over it.
    """
    status, current = facts.status, facts.current
    newest = newest_version(facts.versions)
    state = status.state
    if state is CertificateState.ABSENT and current is not None:
        state = CertificateState.WAITING  # an enrollment has put it in force, and no agent has seen it yet
    names = spec.dns_names or (() if current is None else current.dns_names)
    return CertificateStatus(
        name=spec.name,
        state=state,
        update_time=status.update_time,
        profile=profile,
        dns_names=tuple(sorted(names)),
        failed_step=status.failed_step,
        issued=_held(newest),
        installed=_held(current),
        served=_served(status, facts.versions),
        renew_time=status.renew_time,
        renew_reason=printable(shown_reason(spec, status, newest), MOST_REASON_BYTES),
        last_error=printable(status.last_error or status.verify_error, MOST_ERROR_BYTES),
        request_failures=status.failures,
        activation_failures=status.activation_failures,
        next_attempt_time=_next_attempt(status),
        activate_time=status.activate_after,
        held_by_rollout_id=status.held_by_rollout_id,
    )


def _held(version: Version | None) -> HeldCertificate | None:
    if version is None:
        return None
    return HeldCertificate(
        serial_number=version.serial_number,
        certificate_id=version.certificate_id,
        not_before=version.not_before,
        not_after=version.not_after,
        version=version.number,
    )


def _served(status: LineageStatus, versions: tuple[Version, ...]) -> HeldCertificate | None:
    if not status.served_serial_number:
        return None
    known = next((each for each in versions if each.serial_number == status.served_serial_number), None)
    return HeldCertificate(
        serial_number=status.served_serial_number,
        certificate_id="" if known is None else known.certificate_id,
        not_before=status.served_not_before,
        not_after=status.served_not_after,
        version=0 if known is None else known.number,
        observe_time=status.verify_time,
    )


def _next_attempt(status: LineageStatus) -> datetime | None:
    """Of the request if that failed, else of the activation."""
    if status.failures:
        times = [time for time in (status.next_attempt_time, status.retry_time) if time is not None]
        return max(times, default=None)
    return status.next_activation_time if status.activation_failures else None
