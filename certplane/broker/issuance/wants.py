"""Why an order is wanted, before it is opened; and who is told when a limit holds it up.

A renewal that somebody else than the caller wants (an operator, the CA, an operator's revocation), or that is due, is
not held up by the limits for hosts that run wild (`certplane.broker.policy.limits`). The store has the last word: what
was asked for once is taken once.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import replace
from datetime import datetime
from typing import Final

from certplane.broker.issuance import measures
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.model import Caller, CertificateRecord, OrderCause, OrderDraft
from certplane.broker.ports import CertificateQuery, Meter
from certplane.errors import Refusal

__all__ = ["LimitsTold", "Wants"]

logger = logging.getLogger(__name__)

_MOST_TOLD: Final = 1024


class Wants:
    """Finds out why orders are wanted."""

    def __init__(self, ports: IssuancePorts) -> None:
        self._ports = ports

    async def claim(self, draft: OrderDraft, replaced: CertificateRecord | None) -> OrderDraft:
        """The draft with its cause, and since when it is asked for.

        A caller that doesn't say what it replaces (a service, a host that lost its state) renews the newest that it has
        of the profile, if that is revoked, due or asked for; else it has another certificate beside it.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        now = self._ports.clock.now()
        certificate = replaced or await self._newest(draft)
        if certificate is None:
            return draft
        if certificate.revoke_time is not None:
            cause = OrderCause.WITHDRAWN if certificate.withdrawn else OrderCause.REVOKED
            return replace(draft, cause=cause, ask_time=certificate.revoke_time)
        wanted = await self._ports.renewals.wanted(certificate, now)
        if wanted is not None:
            return replace(draft, cause=wanted[0], ask_time=wanted[1])
        early = replaced is not None and _is_far_from_due(replaced, now)
        return replace(draft, cause=OrderCause.EARLY) if early else draft

    async def _newest(self, draft: OrderDraft) -> CertificateRecord | None:
        query = CertificateQuery(draft.identity, profile=draft.profile, limit=1)
        return next(iter(await self._ports.certificates.list_certificates(query)), None)


class LimitsTold:
    """Says in the log and counts which limits hold up whom; each once, however often the host asks."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._told: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def tell(self, caller: Caller, profile: str, refusal: Refusal) -> None:
        """A new order was refused with RATE_LIMITED."""
        for violation in refusal.violations:
            self._meter.count(measures.LIMITS_REACHED, limit=violation.subject)
        key = (caller.name, profile, refusal.message)
        if key in self._told:
            return
        self._told[key] = None
        if len(self._told) > _MOST_TOLD:
            self._told.popitem(last=False)
        fields = {"identity": caller.name, "profile": profile}
        logger.warning("an order is refused: %s", refusal.message, extra={"fields": fields})


def _is_far_from_due(certificate: CertificateRecord, now: datetime) -> bool:
    """Whether more than half of its life is left: no setting makes that a time to renew (`certplane.pki.lifetime`)."""
    return certificate.not_after - now > (certificate.not_after - certificate.not_before) / 2
