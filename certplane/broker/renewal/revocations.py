"""Certificates that others have revoked: a command at the broker's machine, another broker. Their holders are told.

What this broker revokes itself is told at once (`RenewalPlans.note_revoked`); what others revoke comes through the
change feed. A host without a stream at that moment is told when it connects (`certplane.broker.fleet`), from the same
record; so nothing is kept here that must outlive this program.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final

from typing_extensions import override

from certplane.broker.model import CertificateRecord
from certplane.broker.ports import ChangeFollower
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.renewal.ports import RevokedCertificates
from certplane.runtime.clock import Clock

_OVERLAP: Final = timedelta(minutes=5)
"""Of what is read again: another machine's clock may be behind, and a revocation is visible only after its moment."""


class Revocations(ChangeFollower):
    """Tells `RenewalPlans` what others have revoked, each certificate once."""

    def __init__(self, revoked: RevokedCertificates, plans: RenewalPlans, clock: Clock) -> None:
        self._revoked = revoked
        self._plans = plans
        self._clock = clock
        self._told: set[str] = set()
        """Certificates that were revoked, by this broker or others, while it runs."""
        plans.subscribe_revoked(self._note)

    @override
    async def changed(self, keys: Collection[str]) -> None:
        for certificate_id in keys:
            certificate = await self._revoked.get_certificate(certificate_id)
            if certificate is not None and certificate.revoke_time is not None:
                self._tell(certificate)

    @override
    async def reread(self, since: datetime) -> None:
        now = self._clock.now()
        for certificate in await self._revoked.revoked_since(since - _OVERLAP, now):
            self._tell(certificate)

    def _tell(self, certificate: CertificateRecord) -> None:
        if certificate.certificate_id not in self._told:
            self._plans.note_revoked(certificate)

    def _note(self, certificate: CertificateRecord) -> None:
        self._told.add(certificate.certificate_id)
