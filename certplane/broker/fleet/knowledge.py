"""What a host doesn't know yet of the plans for its certificates: from durable state alone, after any restart. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.model import CertificateRecord
from certplane.broker.renewal.model import InForce, RenewalPlan
from certplane.fleet_report.model import CertificateStatus, RenewalCause

PlanMark = tuple[str, datetime]
"""What tells one state of a plan from another: the certificate, and when it is to be renewed."""

_ASKED: Final = frozenset({RenewalCause.OPERATOR, RenewalCause.REVOKED})
_CLOSE: Final = timedelta(seconds=1)
"""A host keeps times as it likes; less than this isn't another time."""


def mark(plan: RenewalPlan) -> PlanMark:
    """The plan's mark."""
    return (plan.certificate_id, plan.renew_time)


def unknown_plans(
    in_force: Iterable[InForce], certificates: Collection[CertificateStatus], refused: Collection[PlanMark] = ()
) -> list[RenewalPlan]:
    """The plans that the host should be told.

    Those of certificates that it says it holds, when it means to renew them later than planned, or doesn't say when.
    Renewing sooner is the host's own business. A host that waits after a failure is told what was asked for since.

    Args:
        in_force: The host's certificates, with their plans.
        certificates: What it last reported.
        refused: What it was told and has refused.
    """
    renews = held_certificates(certificates)
    waits = _waiting_certificates(certificates)
    unknown = []
    for certificate in in_force:
        plan = certificate.plan
        if plan is None or plan.certificate_id not in renews or mark(plan) in refused:
            continue
        meant = renews[plan.certificate_id]
        failed, again = waits.get(plan.certificate_id, (None, None))
        if plan.cause in _ASKED and failed is not None and again is not None and failed < plan.renew_time < again:
            meant = None  # it was asked for after the failure for which the host waits
        if meant is None or meant > plan.renew_time + _CLOSE:
            unknown.append(plan)
    return unknown


def _waiting_certificates(
    certificates: Iterable[CertificateStatus],
) -> dict[str, tuple[datetime | None, datetime | None]]:
    """Of those that a host could not renew: since when, and when it means to try again."""
    return {
        held.certificate_id: (status.update_time, status.next_attempt_time)
        for status in certificates
        if status.request_failures
        for held in (status.installed, status.issued)
        if held is not None and held.certificate_id
    }


def held_certificates(certificates: Iterable[CertificateStatus]) -> dict[str, datetime | None]:
    """The broker's certificates that a host says it holds, by id, and when it means to renew each."""
    return {
        held.certificate_id: status.renew_time
        for status in certificates
        for held in (status.installed, status.issued)
        if held is not None and held.certificate_id
    }


def revoked_plan(certificate: CertificateRecord) -> RenewalPlan | None:
    """What the holder of a revoked certificate is told: renew now. None for one that isn't revoked.

    It follows from the certificate and isn't stored: a revoked one is in force no longer.
    """
    if certificate.revoke_time is None:
        return None
    reason = certificate.revocation_reason
    return RenewalPlan(
        certificate_id=certificate.certificate_id,
        host=certificate.identity,
        renew_time=certificate.revoke_time,
        cause=RenewalCause.REVOKED,
        reason=f"it was revoked: {reason}" if reason else "it was revoked",
    )
