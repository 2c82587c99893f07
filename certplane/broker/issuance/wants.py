"""Why an order is wanted, before it is opened; and who is told when a limit holds it up.

A renewal that somebody else than the caller wants (an operator, the CA, an operator's revocation), or that is due, is
not held up by the limits for hosts that run wild (`certplane.broker.policy.limits`). The store has the last word: what
was asked for once is taken once.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from certplane.broker import metrics
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.outcome import cap_pause
from certplane.broker.model import Caller, CertificateRecord, OrderCause, OrderDraft
from certplane.broker.ports import Meter
from certplane.errors import Reason, Refusal, RefusalError

logger = logging.getLogger(__name__)

_MOST_TOLD: Final = 1024


@dataclass(frozen=True, slots=True)
class Claim:
    """An order as it is wanted, and the certificate that it is the renewal of, if any."""

    draft: OrderDraft
    certificate: CertificateRecord | None = None


class Wants:
    """Finds out why orders are wanted."""

    def __init__(self, ports: IssuancePorts) -> None:
        self._ports = ports

    async def claim(self, draft: OrderDraft, replaced: CertificateRecord | None) -> Claim:
        """The draft with its cause, and since when it is asked for.

        A caller that doesn't say what it replaces (a service, a host that lost its state) renews the newest that it has
        of the profile, if that is revoked, due or asked for; else it has another certificate beside it. What has ended
        is in use no more where a newer one followed it: else old ones would be worth a renewal each.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        now = self._ports.clock.now()
        certificate = replaced
        if certificate is None or certificate.not_after <= now:
            certificate = await self._ports.newest_certificate(draft.identity, draft.profile)
        if certificate is None or (replaced is not None and certificate.certificate_id != replaced.certificate_id):
            return Claim(draft)
        if certificate.revoke_time is not None:
            cause = OrderCause.WITHDRAWN if certificate.withdrawn else OrderCause.REVOKED
            return Claim(replace(draft, cause=cause, ask_time=certificate.revoke_time), certificate)
        wanted = await self._ports.renewals.wanted(certificate, now)
        if wanted is not None:
            wish = replace(
                draft,
                cause=wanted.cause,
                ask_time=wanted.since,
                renewal_request_id=wanted.renewal_request_id,
                rollout_id=wanted.rollout_id,
            )
            return Claim(self._moved(wish, wanted.to_issuer), certificate)
        early = replaced is not None and _is_far_from_due(replaced, now)
        return Claim(replace(draft, cause=OrderCause.EARLY) if early else draft, certificate)

    def _moved(self, draft: OrderDraft, issuer: str) -> OrderDraft:
        """The draft at the issuer that a rollout moves to, as long as policy and configuration allow it.

        What is no longer allowed must not keep a host from its next certificate: the rollout says that it didn't move.
        """
        policy = self._ports.policy
        profile = policy.find_profile(draft.profile) if policy is not None else None
        if not issuer or profile is None or issuer not in self._ports.issuers_of(profile):
            return draft
        return replace(draft, issuer=issuer, to_issuer=issuer)

    def hasten(self, error: RefusalError, claim: Claim) -> RefusalError:
        """RATE_LIMITED as `claim` meets it: its certificate may be due before the limit has room again.

        Nor does anybody wait for more than half of the life that is left.
        """
        refusal, certificate = error.refusal, claim.certificate
        if refusal.reason is not Reason.RATE_LIMITED or refusal.retry_after is None or certificate is None:
            return error
        now = self._ports.clock.now()
        due = self._ports.renewals.renew_time(certificate)
        waits = certificate.revoke_time is None and not claim.draft.cause.asked_for
        message, pause = refusal.message, refusal.retry_after
        if waits and now < due < now + pause:
            message, pause = f"{message}; this one is due at {due:%Y-%m-%dT%H:%M:%SZ}", due - now
        pause = cap_pause(pause, certificate.not_after - now)
        return RefusalError.of(replace(refusal, message=message, retry_after=pause))


class LimitsTold:
    """Says in the log and counts which limits hold up whom; each once, however often the host asks."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._told: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def tell(self, caller: Caller, profile: str, refusal: Refusal) -> None:
        """A new order was refused with RATE_LIMITED."""
        for violation in refusal.violations:
            self._meter.count(metrics.LIMITS_REACHED, limit=violation.subject)
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
