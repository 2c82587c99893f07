"""Taking certificates back: first at the CA, then here, so that a failure in between is repaired by asking again.

The decision is durable in the audit log before the CA is asked, and the revocation before the caller learns of it.

A revoked certificate is no cache answer any more, and its key is spent: nobody gets a new certificate of it.
`keyCompromise` blocks the key altogether, also when the certificate was revoked for another reason before, and takes
the identity's other certificates of that key with it (`key_rotation: reuse`): who has the key can use them all. Whoever
holds a certificate may revoke it, whatever policy says by now; an operator may revoke anybody's; a rollout revokes what
it has replaced (ADR 0054).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from certplane.broker import metrics
from certplane.broker.issuance.authorisation import CallAuthorisation
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.events import CallEvents
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.model import Caller, CertificateRecord, RevocationReason
from certplane.broker.ports import KeyLedger
from certplane.errors import Reason, RefusalError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RevokedByOperator:
    """A certificate that an operator wanted revoked; `was_revoked`: it had been before."""

    certificate: CertificateRecord
    was_revoked: bool


async def is_left_to_revoke(
    record: CertificateRecord, reason: RevocationReason, keys: KeyLedger, *, by_holder: bool
) -> bool:
    """Whether revoking the certificate for this reason would change anything.

    One that is revoked stays as it is, but for two things: a compromised key has to be blocked, and what its holder
    alone has revoked becomes an operator's revocation, whose replacement no limit refuses (ADR 0012).

    Raises:
        RefusalError: STORE_UNAVAILABLE.
    """
    if record.revoke_time is None:
        return True
    if record.withdrawn and not by_holder:
        return True
    if reason is not RevocationReason.KEY_COMPROMISE:
        return False
    use = await keys.key_use(record.public_key_sha256)
    return use is None or not use.blocked


class Revocation:
    """Revokes certificates, of the caller's own or, for an operator, of anybody."""

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
        return await self._revoke_with_key(record, reason, events, by_holder=True)

    async def revoke_of_anybody(
        self, certificate_id: str, reason: RevocationReason, why: str, events: CallEvents
    ) -> RevokedByOperator:
        """Revoke whoever's certificate it is, and record it with the operator's `why`; else as `revoke`.

        Its holder renews it as what an operator has asked for.

        Raises:
            RefusalError: CERTIFICATE_NOT_FOUND, there is none; and as `revoke`.
        """
        record = await self._of_anybody(certificate_id)
        events.learn_purpose(f"of {record.identity}: {why}")
        was_revoked = record.revoke_time is not None
        return RevokedByOperator(
            await self._revoke_with_key(record, reason, events, by_holder=False), was_revoked=was_revoked
        )

    async def revoke_replaced(
        self, certificate_id: str, reason: RevocationReason, why: str, events: CallEvents
    ) -> CertificateRecord:
        """Revoke a certificate whose successor is in use, and record it with the `why`; else as `revoke_of_anybody`.

        This one alone, whatever the reason: the holder's other certificates of a compromised key, which may be in use
        still, are revoked when they are replaced themselves. The key is blocked all the same.

        Raises:
            RefusalError: as `revoke_of_anybody`.
        """
        record = await self._of_anybody(certificate_id)
        events.learn_purpose(f"of {record.identity}: {why}")
        if await is_left_to_revoke(record, reason, self._ports.keys, by_holder=False):
            record = await self._revoke(record, reason, events, by_holder=False)
        return record

    async def revoke_undelivered(self, certificate_id: str, events: CallEvents) -> None:
        """Revoke what nobody was given of a compromised key (`compromised`); nothing if it is revoked by now.

        Its holder is taken to have wanted it: no limit is lifted for it.

        Raises:
            RefusalError: as `revoke_of_anybody`.
        """
        record = await self._of_anybody(certificate_id)
        if record.revoke_time is None and record.deliver_time is None:
            events.learn_purpose("the CA has issued it of a key that was compromised meanwhile; nobody was given it")
            await self._revoke(record, RevocationReason.KEY_COMPROMISE, events, by_holder=True)

    async def _of_anybody(self, certificate_id: str) -> CertificateRecord:
        record = await self._ports.certificates.get_certificate(certificate_id)
        if record is None:
            message = "there is no such certificate; ListFleetCertificates, `certplanectl certs`, has those in use"
            raise RefusalError(Reason.CERTIFICATE_NOT_FOUND, message)
        return record

    async def _revoke_with_key(
        self, record: CertificateRecord, reason: RevocationReason, events: CallEvents, *, by_holder: bool
    ) -> CertificateRecord:
        """Revoke it, unless it is; and where its key is compromised, its holder's other certificates of that key."""
        if await is_left_to_revoke(record, reason, self._ports.keys, by_holder=by_holder):
            record = await self._revoke(record, reason, events, by_holder=by_holder)
        if reason is RevocationReason.KEY_COMPROMISE:
            now = self._ports.clock.now()
            others = await self._ports.certificates.usable_of_key(record.identity, record.public_key_sha256, now)
            for other in others:
                if other.issuer in self._ports.revokers:
                    await self._revoke(other, reason, events, by_holder=by_holder)
                else:
                    fields = {
                        "identity": other.identity,
                        "certificate_id": other.certificate_id,
                        "issuer": other.issuer,
                    }
                    logger.error("a certificate of a compromised key can't be revoked here", extra={"fields": fields})
        return record

    async def _revoke(
        self, record: CertificateRecord, reason: RevocationReason, events: CallEvents, *, by_holder: bool
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
            record.certificate_id,
            reason,
            self._ports.clock.now(),
            [events.revoked(record, reason)],
            by_holder=by_holder,
        )
        self._ports.renewals.note_revoked(revoked)
        self._ports.meter.count(metrics.REVOCATIONS, reason=reason.value)
        return revoked
