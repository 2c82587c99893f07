"""What a host doesn't know yet of the plans for its certificates: from durable state alone, after any restart. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.fleet.model import CertificateStatus
from certplane.broker.renewal.model import InForce, RenewalPlan

__all__ = ["PlanMark", "mark", "unknown_plans"]

PlanMark = tuple[str, datetime]
"""What tells one state of a plan from another: the certificate, and when it is to be renewed."""

_CLOSE: Final = timedelta(seconds=1)
"""A host keeps times as it likes; less than this isn't another time."""


def mark(plan: RenewalPlan) -> PlanMark:
    """The plan's mark."""
    return (plan.certificate_id, plan.renew_time)


def unknown_plans(
    in_force: Iterable[InForce], certificates: Iterable[CertificateStatus], refused: Collection[PlanMark] = ()
) -> list[RenewalPlan]:
    """The plans that the host should be told.

    Those of certificates that it says it holds, when it means to renew them later than planned, or doesn't say when.
    Renewing sooner is the host's own business.

    Args:
        in_force: The host's certificates, with their plans.
        certificates: What it last reported.
        refused: What it was told and has refused.
    """
    renews: dict[str, datetime | None] = {}
    for status in certificates:
        for held in (status.installed, status.issued):
            if held is not None and held.certificate_id:
                renews[held.certificate_id] = status.renew_time
    unknown = []
    for certificate in in_force:
        plan = certificate.plan
        if plan is None or plan.certificate_id not in renews or mark(plan) in refused:
            continue
        meant = renews[plan.certificate_id]
        if meant is None or meant > plan.renew_time + _CLOSE:
            unknown.append(plan)
    return unknown
