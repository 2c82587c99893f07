"""Which stored certificate answers a request. Pure (design, fixed decision 3).

The store finds the newest certificate of the caller, profile hash, issuer and key that isn't revoked; here it is judged
by time, by whether its holder ever got it, and by what the caller wants to replace.
"""

from __future__ import annotations

from datetime import datetime

from certplane.broker.model import CertificateRecord, Order


def answers(record: CertificateRecord, now: datetime, renew_time: datetime, replaces_certificate_id: str) -> bool:
    """Whether `record` is the answer: not due yet, or never handed out (its issuing call's answer was lost).

    An expired one never is, nor is the one that is to be replaced. `renew_time` is when it is due as is known now.
    """
    if record.certificate_id == replaces_certificate_id or not _is_valid(record, now):
        return False
    return now < renew_time or record.deliver_time is None


def answers_again(record: CertificateRecord, order: Order | None, now: datetime, replaces_certificate_id: str) -> bool:
    """Whether `record`, though due, is what this very renewal brought before: a repeated call gets it again.

    Otherwise a renewal whose answer is asked for late would make a second certificate for one key.
    """
    return (
        bool(replaces_certificate_id)
        and order is not None
        and order.replaces_certificate_id == replaces_certificate_id
        and record.certificate_id == order.certificate_id
        and _is_valid(record, now)
    )


def _is_valid(record: CertificateRecord, now: datetime) -> bool:
    return record.revoke_time is None and now < record.not_after
