"""Certificates that others have revoked: a command at the broker's machine, another broker. Their holders are told.

What this broker revokes itself is told at once (`RenewalPlans.note_revoked`); what others do only stands in the
database, and is noticed at the next look. Who has no stream at that moment is told when it comes
(`certplane.broker.fleet`), from the same record; so nothing is kept here that must outlive this program.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.model import CertificateRecord
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.renewal.ports import RevokedCertificates
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

logger = logging.getLogger(__name__)

_LOOK: Final = timedelta(seconds=15)

_OVERLAP: Final = timedelta(minutes=5)
"""Of two looks: another machine's clock may be behind, and a revocation is visible only some time after its moment."""


class RevocationWatch:
    """Notices revocations, while `run` runs."""

    def __init__(self, revoked: RevokedCertificates, plans: RenewalPlans, clock: Clock) -> None:
        """Nothing is looked at yet.

        Args:
            revoked: where revocations are recorded.
            plans: whose subscribers are told of each.
            clock: for the looks.
        """
        self._revoked = revoked
        self._plans = plans
        self._clock = clock
        self._told: set[str] = set()
        """Certificates of which was told, as far back as the next look goes."""
        plans.subscribe_revoked(self._note)

    async def run(self) -> None:
        """Work until cancelled."""
        since = self._clock.now()
        while True:
            now = self._clock.now()
            try:
                await self._look(since - _OVERLAP)
            except RefusalError as error:
                logger.warning("which certificates were revoked can't be read, and is tried again: %s", error)
            else:
                since = now
            await self._clock.sleep(_LOOK)

    def _note(self, certificate: CertificateRecord) -> None:
        self._told.add(certificate.certificate_id)

    async def _look(self, since: datetime) -> None:
        before = frozenset(self._told)
        revoked = await self._revoked.revoked_since(since, self._clock.now())
        for certificate in revoked:
            if certificate.certificate_id not in self._told:
                self._plans.note_revoked(certificate)
        # What was noted while it was read may be missing from what was read.
        self._told = {certificate.certificate_id for certificate in revoked} | (self._told - before)
