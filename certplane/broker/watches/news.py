"""What a service is told of its certificates, from what the database has of them. Pure.

The newest of each profile and key: processes of one service may have a key each, and one certificate of a key that a
newer one of the same key follows is of no use to anybody.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from certplane.broker.model import RevocationReason
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.watches.model import CertificateNews, HeldByService
from certplane.fleet_report.model import RenewalCause
from certplane.runtime.text import printable

_LONGEST_REASON: Final = 500
"""Bytes (proto, CertificateNews.renew_reason)."""


def news_of(held: Iterable[HeldByService]) -> tuple[CertificateNews, ...]:
    """What the holder of these is told, the oldest first."""
    newest: dict[tuple[str, str], HeldByService] = {}
    for one in sorted(held, key=_age):
        newest.pop((one.profile, one.public_key_sha256), None)
        newest[one.profile, one.public_key_sha256] = one
    return tuple(map(_told, newest.values()))


def _age(one: HeldByService) -> tuple[object, str]:
    return one.create_time, one.certificate_id


def _told(one: HeldByService) -> CertificateNews:
    if one.revoke_time is not None:
        # It follows from the certificate and isn't planned: a revoked one is in force no longer.
        text = f"it was revoked: {one.revocation_reason}" if one.revocation_reason else "it was revoked"
        plan = RenewalPlan(one.certificate_id, one.identity, one.revoke_time, RenewalCause.REVOKED, text)
    else:
        plan = one.plan or RenewalPlan(one.certificate_id, one.identity, one.renew_time, RenewalCause.LIFETIME)
    return CertificateNews(
        certificate_id=one.certificate_id,
        profile=one.profile,
        dns_names=one.dns_names,
        serial_number=one.serial_number,
        public_key_sha256=one.public_key_sha256,
        create_time=one.create_time,
        not_after=one.not_after,
        renew_time=plan.renew_time,
        renew_cause=plan.cause,
        renew_reason=printable(plan.reason, _LONGEST_REASON),
        renewal_request_id=plan.renewal_request_id,
        new_key=plan.new_key or one.revocation_reason is RevocationReason.KEY_COMPROMISE,
        revoke_time=one.revoke_time,
        revocation_reason=one.revocation_reason,
    )
