"""What a host doesn't know yet of the plans for its certificates: from durable state alone, after any restart. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.fleet.filter import IDENTITY
from certplane.broker.fleet.model import HostRecord
from certplane.broker.model import CertificateRecord
from certplane.broker.renewal.model import HostActivation, InForce, RenewalPlan
from certplane.fleet_report.model import IDENTITY_FEATURE, CertificateStatus, RenewalCause

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
        if _is_unknown(plan, renews[plan.certificate_id], waits.get(plan.certificate_id)):
            unknown.append(plan)
    return unknown


def unknown_activations(
    activations: Iterable[HostActivation], certificates: Iterable[CertificateStatus]
) -> list[HostActivation]:
    """Those of certificates that the host says it holds: it is told until it doesn't say so any more.

    What it holds may have taken the place of what the rollout knows, which the host can tell: then it is told of all
    that its rollout has released there.
    """
    told = list(activations)
    held = {
        status.issued.certificate_id: status.held_by_rollout_id
        for status in certificates
        if status.held_by_rollout_id and status.issued is not None
    }
    unnamed = {held[one] for one in held.keys() - {each.certificate_id for each in told}}
    return [each for each in told if each.certificate_id in held or each.rollout_id in unnamed]


def unknown_identity_plan(
    wanted: tuple[str, RenewalPlan] | None, record: HostRecord, refused: Collection[PlanMark] = ()
) -> RenewalPlan | None:
    """The plan for its identity that the host should be told; None if there is none, it knows, or it has renewed since.

    Args:
        wanted: The newest request for it, with the serial number of what is to be replaced.
        record: What is known of the host.
        refused: What it was told and has refused.
    """
    if wanted is None or mark(wanted[1]) in refused or lacks_identity_renewal(record):
        return None
    serial_number, plan = wanted
    if identity_serial(record) != serial_number:
        return None
    status = next((each for each in record.certificates if each.name == IDENTITY), None)
    if status is None:
        return plan
    waits = (status.update_time, status.next_attempt_time) if status.request_failures else None
    return plan if _is_unknown(plan, status.renew_time, waits) else None


def identity_serial(record: HostRecord) -> str:
    """Serial number of the newest identity certificate of a host that is known here; empty of one that never came."""
    for status in record.certificates:
        if status.name == IDENTITY and (newest := status.issued or status.installed) is not None:
            return newest.serial_number
    return "" if record.stream is None else record.stream.identity_serial_number


def lacks_identity_renewal(record: HostRecord) -> str:
    """Why the host can't renew its identity when it is told to; empty if it can."""
    if record.stream is None:
        return "it never came"
    if IDENTITY_FEATURE in record.stream.facts.features:
        return ""
    return (
        f"its agent ({record.stream.facts.agent_version}) can't be told to: upgrade it, or run `certplane-agent renew "
        "identity` there, or `certplane-agent enroll --force` with a new token"
    )


_Wait = tuple[datetime | None, datetime | None]
"""Of what a host could not renew: since when, and when it means to try again."""


def _is_unknown(plan: RenewalPlan, meant: datetime | None, waits: _Wait | None) -> bool:
    """Whether a host that means to renew something then, or doesn't say when, has to be told of the plan."""
    if plan.hold_activation or plan.new_key:
        return True  # by when it means to renew nobody can tell whether it knows how
    failed, again = waits or (None, None)
    if plan.cause in _ASKED and failed is not None and again is not None and failed < plan.renew_time < again:
        return True  # it was asked for after the failure for which the host waits
    return meant is None or meant > plan.renew_time + _CLOSE


def _waiting_certificates(certificates: Iterable[CertificateStatus]) -> dict[str, _Wait]:
    """Of those that a host could not renew how it waits, by id."""
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
