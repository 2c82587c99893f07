"""Taking certificates back: first at the CA, then here, so that a failure in between is repaired by asking again.

The decision is durable in the audit log before the CA is asked, and the revocation before the caller learns of it.

A revoked certificate is no cache answer any more, and its key is spent: nobody gets a new certificate of it.
`keyCompromise` blocks the key altogether, also when the certificate was revoked for another reason before, and takes
the identity's other certificates of that key with it (`key_rotation: reuse`): who has the key can use them all. Whoever
holds a certificate may revoke it, whatever policy says by now.
"""

from __future__ import annotations

import logging

from certplane.broker import metrics
from certplane.broker.issuance.authorisation import CallAuthorisation
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.events import CallEvents
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.model import Caller, CertificateRecord, RevocationReason
from certplane.errors import Reason, RefusalError

logger = logging.getLogger(__name__)


class Revocation:
    """Revokes certificates of their holders."""

    def __init__(self, ports: IssuancePorts, settings: IssuanceSettings, authorisation: CallAuthorisation) -> None:
        self._ports = ports
        self._settings = settings
        self._authorisation = authorisation

    async def revoke(
        self, caller: Caller, certificate_id: str, reason: RevocationReason, events: CallEvents
    ) -> CertificateRecord:
        """Revoke, and record it. Doing it again answers as the first time did, and completes what was cut off.

        Raises:
            RefusalError: CERTIFICATE_NOT_FOUND (another's too), what the CA said, AUDIT_UNAVAILABLE or
                STORE_UNAVAILABLE: then the CA may have revoked, and asking again completes it. It has not been asked
                if the audit log could not take the decision.
        """
        record = await self._authorisation.own_certificate(caller, certificate_id)
        compromised = reason is RevocationReason.KEY_COMPROMISE
        if record.revoke_time is None or (compromised and record.revocation_reason is not reason):
            record = await self._revoke(record, reason, events)
        if compromised:
            now = self._ports.clock.now()
            others = await self._ports.certificates.usable_of_key(caller.name, record.public_key_sha256, now)
            for other in others:
                if other.issuer in self._ports.revokers:
                    await self._revoke(other, reason, events)
                else:
                    fields = {"identity": caller.name, "certificate_id": other.certificate_id, "issuer": other.issuer}
                    logger.error("a certificate of a compromised key can't be revoked here", extra={"fields": fields})
        return record

    async def _revoke(
        self, record: CertificateRecord, reason: RevocationReason, events: CallEvents
    ) -> CertificateRecord:
        revoker = self._ports.revokers.get(record.issuer)
        if revoker is None:
            raise RefusalError(
                Reason.ISSUER_REJECTED,
                f"the certificate was issued by {record.issuer}, which this broker does not use any more",
            )
        authorized = events.revocation_authorized(record, reason)
        await self._ports.repeats.record(events.revoking(record, authorized), [authorized])
        await revoker.revoke(record.certificate_pem, reason, self._settings.revocation_timeout)
        revoked = await self._ports.certificates.mark_revoked(
            record.certificate_id, reason, self._ports.clock.now(), [events.revoked(record, reason)], by_holder=True
        )
        self._ports.renewals.note_revoked(revoked)
        self._ports.meter.count(metrics.REVOCATIONS, reason=reason.value)
        return revoked
