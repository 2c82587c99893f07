"""Places within the CAs' limits for the orders under way: what each needs, and what a CA's refusal says of them.

An order takes its places right before it is made at the CA, so that one that waits holds nobody's. What it needs is
found anew each time: its certificate in use may have been revoked, and the window for it may have opened or passed.

A refusal of the CA that is about a limit of the ledger corrects the ledger, and the order waits as one that had no
place. About anything else the ledger says nothing: that is waited out as ever (`holds`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime

from certplane.broker.budget.claims import claim_of, failed_needs, refused_needs, urgency_of
from certplane.broker.budget.model import Claim, Shortage
from certplane.broker.budget.places import taken_needs
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.journal import Journal
from certplane.broker.issuance.outcome import pause_before_new_order, scopes_of
from certplane.broker.issuance.place_queue import PlaceQueue
from certplane.broker.issuance.progress import BUDGET, cut
from certplane.broker.issuance.step_outcome import OutOfBudget
from certplane.broker.model import CertificateRecord, Order, OrderState
from certplane.errors import Reason, Refusal, RefusalError

logger = logging.getLogger(__name__)


class OrderBudget:
    """Asks the ledger for orders."""

    def __init__(self, ports: IssuancePorts) -> None:
        self._ports = ports
        self.queue = PlaceQueue(ports.clock)

    async def claim(self, order: Order, replaced: CertificateRecord | None, *, told: bool) -> Claim | None:
        """What the order needs; None where nothing is counted.

        Args:
            order: Of which issuer, for which names.
            replaced: The certificate that it says it replaces.
            told: Whether the CA is told that, and hasn't counted such an order before all the same.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        limits = self._ports.budgets.get(order.issuer)
        if limits is None or not limits.limits:
            return None
        in_use = replaced or await self._ports.newest_certificate(order.identity, order.profile)
        ari = told and replaced is not None and await self._is_exempt(order, replaced)
        urgency = urgency_of(order.order_id, _end_of(in_use), order.create_time)
        return claim_of(limits, order.dns_names, urgency=urgency, ari=ari)

    async def _is_exempt(self, order: Order, replaced: CertificateRecord) -> bool:
        """Whether the CA takes it for a renewal in its window: what another order has replaced is none any more."""
        return order.cause.asked_for and await self._ports.renewals.in_window(replaced, self._ports.clock.now())

    async def take(self, journal: Journal, claim: Claim | None) -> Shortage | None:
        """Take the order's places, durable; or why it has to wait.

        Raises:
            OrderEndedError, OrderTakenError: see `Journal.write`.
        """
        if claim is None or not claim.needs:
            return None
        done = await journal.take_places(claim)
        self.queue.learn(done.free_times)
        return done.shortage

    async def refused(self, journal: Journal, claim: Claim | None, refusal: Refusal) -> Shortage | None:
        """Correct the ledger by what the CA has said no to; None if that is about nothing that is counted.

        Raises:
            OrderEndedError, OrderTakenError: see `Journal.write`.
        """
        if claim is None or refusal.reason is not Reason.ISSUER_RATE_LIMITED:
            return None
        order, limits = journal.order, self._ports.budgets[journal.order.issuer]
        whole = claim_of(limits, order.dns_names, urgency=claim.urgency)
        needs = refused_needs(whole, scopes_of(refusal), refusal.message)
        if not needs:
            return None
        until = self._ports.clock.now() + pause_before_new_order(refusal)
        return (await journal.correct_places(whole, needs, until)).shortage

    async def wait(self, journal: Journal, out: OutOfBudget) -> None:
        """Return when the order should ask for its places again; meanwhile its progress says what it lacks."""

        def tell(shortage: Shortage) -> None:
            text = cut(shortage.text(self._ports.clock.now()))
            fields = {"order_id": journal.order.order_id, "issuer": journal.order.issuer, "limit": shortage.limit.name}
            # Once, however often it asks.
            level = logging.INFO if journal.order.progress.place_time is None else logging.DEBUG
            logger.log(level, "an order waits for a place within the CA's limits: %s", text, extra={"fields": fields})
            journal.note(trouble=text, place_time=shortage.expected_time)

        journal.begin(BUDGET, wait="a place within the CA's limits")
        await self.queue.wait(out.shortage, out.urgency, tell)

    async def never_issued(self, order: Order) -> None:
        """Put back the places of what the CA counts when it issues; `order` as it was before that was written down.

        One that wasn't finalised never will be. Its place among the account's orders stays taken: the CA was asked.
        """
        limits = self._ports.budgets.get(order.issuer)
        if limits is None or not order.places or order.state is OrderState.FINALIZING:
            return
        urgency = urgency_of(order.order_id, None, order.create_time)
        had = taken_needs(claim_of(limits, order.dns_names, urgency=urgency).needs, order.places)
        needs = [need for need in had if need.limit.scope.counts_certificates]
        if not needs:
            return
        try:
            await self._ports.ledger.give_back(needs)
        except RefusalError as error:
            fields = {"order_id": order.order_id, "issuer": order.issuer, "reason": error.refusal.reason.value}
            logger.warning(
                "places within the CA's limits that an order hadn't used come back with time, not at once: %s",
                error.refusal.message,
                extra={"fields": fields},
            )

    async def count_failures(self, order: Order, names: Iterable[str]) -> None:
        """A validation of each of these names has failed at the order's CA.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        limits = self._ports.budgets.get(order.issuer)
        needs = failed_needs(limits, names) if limits is not None else ()
        if needs:
            await self._ports.ledger.count(needs)

    async def count_after_all(self, order: Order, claim: Claim | None, replaced: CertificateRecord | None) -> None:
        """The CA has made the order, but not as the renewal that exempted it: what it counts then is counted.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        if claim is None:
            return
        whole = claim_of(self._ports.budgets[order.issuer], order.dns_names, urgency=claim.urgency)
        had = {need.key for need in claim.needs}
        again = replaced is not None and replaced.dns_names == order.dns_names
        missed = [need for need in whole.needs if need.takes and need.key not in had]
        needs = [need for need in missed if not (again and need.unless_known)]
        if needs:
            await self._ports.ledger.count(needs)


def limit_refusal(shortage: Shortage, now: datetime) -> Refusal:
    """A shortage as the CA would have said it."""
    wait = max(shortage.expected_time - now, shortage.limit.rate.lag)
    return Refusal(Reason.ISSUER_RATE_LIMITED, shortage.text(now), retry_after=wait)


def _end_of(certificate: CertificateRecord | None) -> datetime | None:
    if certificate is None:
        return None
    return min(certificate.not_after, certificate.revoke_time or certificate.not_after)
