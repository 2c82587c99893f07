"""The steps of one order at one CA, each journalled before the next; which one comes is read from the order's row.

    PENDING ----> create ----> AUTHORIZED ----> records ----> VALIDATING ----> answer ----> FINALIZING ----> ISSUED
                  (journal: ACME order URL)     (journal: TXT records)         (journal)    finalise, download, store

A step returns what came of it (`Outcome`); what follows from that is decided by `execution` alone.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from functools import partial

from certplane.broker.budget.model import Claim
from certplane.broker.issuance.events import OrderEvents
from certplane.broker.issuance.journal import Journal
from certplane.broker.issuance.order_context import OrderContext
from certplane.broker.issuance.outcome import End, fails_over, is_told, pause_before_new_order
from certplane.broker.issuance.progress import LOOK, PREFLIGHT, cut
from certplane.broker.issuance.queue import Lane
from certplane.broker.issuance.step_outcome import Abandoned, Elsewhere, Failed, Outcome, OutOfBudget, Over
from certplane.broker.issuance.storing import record_of
from certplane.broker.model import CertificateRecord, IssuerOrder, IssuerOrderStatus, Order, OrderState, Profile
from certplane.broker.ports import Issuer, OrderChange
from certplane.broker.telling import telling
from certplane.errors import Reason, Refusal, RefusalError
from certplane.pki.chain import MOST_CAME, IssuedChain, check_issued_chain
from certplane.pki.chain_path import ChainError
from certplane.runtime.failpoints import failpoint

logger = logging.getLogger(__name__)

STEPS = (
    "create",
    "journal_url",
    "journal_records",
    "present",
    "journal_record_ids",
    "propagate",
    "answer",
    "journal_finalizing",
    "finalize",
    "download",
    "store",
    "remove",
    "journal_removed",
)
"""Every step of an order that meets no trouble, in order; names that are validated already skip those on records."""

FAILPOINTS = tuple(f"order.{step}.{edge}" for step in STEPS for edge in ("before", "after"))

LEDGER_FAILPOINTS = ("order.take_places.before", "order.take_places.after")
"""Before "create", where the CA's limits are counted."""

_SHORTEST_TIMEOUT = timedelta(seconds=1)


class OrderSteps:
    """Takes one order a step further at a time. Made for one turn at one issuer."""

    def __init__(
        self,
        context: OrderContext,
        journal: Journal,
        events: OrderEvents,
        *,
        lane: Lane,
        deadline: float,
        left: frozenset[str],
        checked: bool = False,
        counted: bool = False,
    ) -> None:
        """The order has its turn in `lane`, must be ready by `deadline` (monotonic), and has `left` these issuers.

        `checked` says whether what can be known before an order was looked at just now, and `counted`, whether the CA
        has counted the order although it replaces a certificate in its window.
        """
        self._context = context
        self._ports = context.ports
        self._settings = context.settings
        self._authorisation = context.authorisation
        self._step = partial(context.step, journal)
        self._journal = journal
        self._events = events
        self._lane = lane
        self._deadline = deadline
        self._left = left
        self._acme: IssuerOrder | None = None
        """The CA's order as last seen; None when it has to be looked at."""
        self._asked_at = 0.0
        """When the CA was turned to in this step, after whatever had to be waited for before."""
        self._unusable_since: float | None = None
        """Since when what the CA hands out as the certificate can't be used."""
        self._preconditions_checked = checked
        """Once, not at each try."""
        self._counted = counted

    @property
    def order(self) -> Order:
        """The order as it durably is."""
        return self._journal.order

    @property
    def time_left(self) -> timedelta:
        """Until the order's deadline."""
        return timedelta(seconds=self._deadline - self._ports.clock.monotonic())

    async def advance(self, ending: End | None = None) -> Outcome:
        """Take the next step.

        Args:
            ending: In FINALIZING: how the order ends if the CA turns out not to have the CSR.

        Raises:
            OrderEndedError: somebody else has ended the order.
        """
        self._asked_at = self._ports.clock.monotonic()
        heard = 0

        def hear(text: str) -> None:
            """What holds up this step: at once for who looks, and from the second try on in the log."""
            nonlocal heard
            heard += 1
            self._journal.note(trouble=cut(text))
            reason, _, message = text.partition(": ")
            if heard > 1 and self._context.is_news(self.order, reason):
                fields = {"order_id": self.order.order_id, "issuer": self.order.issuer, "reason": reason}
                logger.warning("a step of an order fails, and is tried again: %s", message, extra={"fields": fields})

        try:
            with telling(hear):
                outcome = await self._next(ending)
        except RefusalError as error:
            away = error.refusal.reason is Reason.ISSUER_UNAVAILABLE
            outcome = Failed(error.refusal, self._asked_at if away else None)
        if outcome is not None:
            self._acme = None  # what was seen of the CA's order may be wrong by now
        return outcome

    async def _next(self, ending: End | None) -> Outcome:
        acme = self._acme
        if not self.order.acme_order_url:
            return await self._create()
        if acme is None:
            return await self._look(self.order.acme_order_url)
        if self.order.state is OrderState.FINALIZING:
            return await self._complete(acme, ending)
        return await self._prepare(acme)

    async def _create(self) -> Outcome:
        self._check_held()
        replaced = await self._replaced()
        replaces = self._told_pem(replaced)
        if not self._preconditions_checked:
            self._preconditions_checked = True
            self._journal.begin(PREFLIGHT)
            timeout = self._timeout(self._settings.preflight_timeout)
            await self._ports.preflight.check_order(self.order.dns_names, self.order.issuer, timeout)
        self._journal.begin("create", wait="its turn to ask the CA for an order")
        async with self._context.queue.asking(self._lane):
            profile = await self._authorisation.ask_again(self.order)
            self._check_held()
            elsewhere = self._where_others_went(profile)
            if elsewhere is not None:
                return elsewhere
            claim = await self._context.budget.claim(self.order, replaced, told=bool(replaces) and not self._counted)
            out = await self._take_places(claim)
            if out is not None:
                return out
            self._asked_at = self._ports.clock.monotonic()
            try:
                with self._step("create"):
                    acme = await self._issuer.create_order(
                        self.order.csr_der, profile, self._timeout(self._settings.call_timeout), replaces=replaces
                    )
            except RefusalError as error:
                shortage = await self._context.budget.refused(self._journal, claim, error.refusal)
                if shortage is None or claim is None:
                    raise
                return OutOfBudget(shortage, claim.urgency, refused=True)
        if acme.status not in (IssuerOrderStatus.PENDING, IssuerOrderStatus.READY):
            raise RefusalError(Reason.ISSUER_UNAVAILABLE, f"the CA returned an order that is {acme.status.value}")
        with self._step("journal_url"):
            state = OrderState.AUTHORIZED if self.order.state is OrderState.PENDING else None
            await self._journal.write(OrderChange(state=state, acme_order_url=acme.url))
        if replaces and not acme.replaces:
            await self._context.budget.count_after_all(self.order, claim, replaced)
        if acme.trouble is not None:
            raise RefusalError.of(acme.trouble)
        self._acme = acme
        return None

    def _check_held(self) -> None:
        held = self._context.holds.held(self._lane, self._ports.clock.now())
        if held is not None:
            until, refusal = held
            if is_told(refusal):
                refusal = replace(refusal, retry_after=until - self._ports.clock.now())
            raise RefusalError.of(refusal)

    def _where_others_went(self, profile: Profile) -> Elsewhere | None:
        """Where others have found the issuer out of reach, this order needn't find out for itself."""
        suspected = self._context.holds.suspected(self.order.issuer, self._ports.clock.now())
        issuer = self._context.next_issuer(self.order, profile, self._left) if suspected is not None else ""
        return Elsewhere(issuer, suspected[1]) if suspected is not None and issuer else None

    async def _take_places(self, claim: Claim | None) -> OutOfBudget | None:
        """Take the order's places within the CA's limits: whatever happens next, they are counted."""
        if claim is not None and claim.needs:
            self._context.tenure.check()
            failpoint(LEDGER_FAILPOINTS[0])
            shortage = await self._context.budget.take(self._journal, claim)
            failpoint(LEDGER_FAILPOINTS[1])
            if shortage is not None:
                return OutOfBudget(shortage, claim.urgency)
        if self.order.progress.place_time is not None:
            self._journal.note(trouble="", place_time=None)
        return None

    async def _replaced(self) -> CertificateRecord | None:
        replaced_id = self.order.replaces_certificate_id
        return await self._ports.certificates.get_certificate(replaced_id) if replaced_id else None

    def _told_pem(self, record: CertificateRecord | None) -> str:
        """The certificate that the CA is told this order replaces: one of its own that shares a name (RFC 9773 5)."""
        if record is None or record.issuer != self.order.issuer:
            return ""
        return "" if set(record.dns_names).isdisjoint(self.order.dns_names) else record.certificate_pem

    async def _look(self, url: str) -> Outcome:
        finalizing = self.order.state is OrderState.FINALIZING
        if not finalizing:  # from then on only the CA's word ends it
            await self._authorisation.ask_again(self.order)
        elif self.order.issuer not in self._ports.issuers:
            message = f"the issuer {self.order.issuer} is no longer in the broker's configuration"
            return Over(_rejected(message), unaccounted=True)
        self._journal.begin(LOOK)
        try:
            self._acme = await self._issuer.get_order(url, self._timeout(self._settings.call_timeout))
        except RefusalError as error:
            # What the CA wants of the account (new terms, a binding) says nothing of the order.
            if error.refusal.reason is not Reason.ISSUER_REJECTED or fails_over(error.refusal):
                raise
            if finalizing:
                unknown = replace(
                    error.refusal,
                    message="the CA no longer knows the order, for which the CSR may have been sent",
                )
                return Over(End(unknown, pause_before_new_order(unknown)), unaccounted=True)
            return Abandoned("the CA no longer knows it", error.refusal)
        return None

    async def _prepare(self, acme: IssuerOrder) -> Outcome:
        """Before the finalisation: get the CA's order ready, then make the decision to finalise durable."""
        match acme.status:
            case IssuerOrderStatus.PENDING:
                return await self._validate(acme)
            case IssuerOrderStatus.READY:
                return await self._decide()
            case IssuerOrderStatus.VALID if await self._is_ours(acme):
                return await self._decide()
            case IssuerOrderStatus.INVALID:
                # There is nothing left to answer; asked that way, the CA says why the order is invalid.
                await self._answer(acme)
                return Over(_rejected("the CA invalidated the order: a challenge failed, or the order expired"))
            case _:
                why = f"it is {acme.status.value} although its CSR was never sent"
                return Abandoned(why, Refusal(Reason.ISSUER_REJECTED, f"the CA's order can't be used: {why}"))

    async def _decide(self) -> Outcome:
        await self._authorisation.ask_again(self.order)
        with self._step("journal_finalizing"):
            await self._journal.write(OrderChange(state=OrderState.FINALIZING))
        return None

    async def _is_ours(self, acme: IssuerOrder) -> bool:
        """Whether the CA has issued for our key, although nothing here says that our CSR was sent.

        So it is after the database was restored from before that: another order would be a second certificate.
        """
        fullchain_pem = await self._issuer.download(acme, self._timeout(self._settings.call_timeout))
        try:
            self._check_chain(fullchain_pem)
        except ChainError:
            return False
        return True

    async def _validate(self, acme: IssuerOrder) -> Outcome:
        profile = await self._authorisation.ask_again(self.order)
        self._check_challenges(acme)
        ours = [challenge for challenge in acme.challenges if not challenge.standing]
        await self._context.records.publish(self._journal, ours, profile, self._timeout, self._step)
        await self._authorisation.ask_again(self.order)  # DNS may have taken minutes
        self._asked_at = self._ports.clock.monotonic()
        with self._step("answer"):
            answered = await self._answer(acme)
        if answered.status is IssuerOrderStatus.PENDING:
            # The CA answers and is slow with these names: that says nothing of whether others reach it.
            message = "the CA has not finished validating"
            slow = Refusal(Reason.ISSUER_UNAVAILABLE, message, retry_after=answered.retry_after)
            return Failed(answered.trouble or slow)
        self._acme = answered
        return None

    async def _answer(self, acme: IssuerOrder) -> IssuerOrder:
        """Have the CA look, or say what it has found: a name's failure counts, whenever it is heard of."""
        try:
            return await self._issuer.answer_challenges(acme, self._timeout(self._settings.call_timeout))
        except RefusalError as error:
            if error.refusal.reason is Reason.ISSUER_REJECTED:
                named = {problem.identifier for problem in error.refusal.problems if problem.identifier}
                failed = named or {challenge.domain for challenge in acme.challenges}
                await self._context.budget.count_failures(self.order, failed)
            raise

    def _check_challenges(self, acme: IssuerOrder) -> None:
        """Prove nothing that wasn't asked for: the CA's order is read anew after each failure and each restart."""
        asked = {name.removeprefix("*.") for name in self.order.dns_names}
        for challenge in acme.challenges:
            if challenge.domain not in asked:
                message = f"the CA wants proof for {challenge.domain}, which was not requested"
                raise RefusalError(Reason.ISSUER_UNAVAILABLE, message)

    async def _complete(self, acme: IssuerOrder, ending: End | None) -> Outcome:
        """From the finalisation on: only what the CA's order says decides."""
        match acme.status:
            case IssuerOrderStatus.READY if ending is not None:
                return Over(ending, left_open=True)
            case IssuerOrderStatus.READY:
                await self._authorisation.ask_again(self.order)
                with self._step("finalize"):
                    finalized = await self._issuer.finalize(acme, self.order.csr_der, self._settings.call_timeout)
                self._acme = None if finalized.status is IssuerOrderStatus.READY else finalized
                return None
            case IssuerOrderStatus.INVALID if ending is not None:
                return Over(ending)
            case _:  # of an invalid order there is nothing to collect, but the CA says why
                return await self._collect(acme)

    async def _collect(self, acme: IssuerOrder) -> Outcome:
        with self._step("download"):
            fullchain_pem = await self._issuer.download(acme, self._settings.call_timeout)
        try:
            chain = self._check_chain(fullchain_pem)
        except ChainError as error:
            return self._unusable_chain(error)
        if chain.dropped:
            fields = {"order_id": self.order.order_id, "dropped": list(chain.dropped)}
            logger.warning("dropped certificates that do not belong to the CA's chain", extra={"fields": fields})
        profile, now = self._ports.profile_of(self.order), self._ports.clock.now()
        record = record_of(self.order, chain, profile, self._ports.new_id(), now)
        with self._step("store"):
            await self._journal.finish(record, [self._events.issued(record, self._ports.policy)])
        self._ports.renewals.note_issued(record)
        return None

    def _check_chain(self, fullchain_pem: str) -> IssuedChain:
        return check_issued_chain(
            fullchain_pem,
            public_key_sha256=self.order.public_key_sha256,
            dns_names=self.order.dns_names,
            now=self._ports.clock.now(),
            most=MOST_CAME,
        )

    def _unusable_chain(self, error: ChainError) -> Failed | Over:
        """Fetch it again for a while where that may help: another order would bring the same, and cost one more."""
        if not error.may_heal:
            return Over(_rejected(error.refusal.message), unaccounted=True)
        said = f"the CA has issued, but its answer can't be used: {error.refusal.message}"
        now, patience = self._ports.clock.monotonic(), self._settings.chain_patience
        if self._unusable_since is None:
            self._unusable_since = now
        if now - self._unusable_since < patience.total_seconds():
            message = f"{said}; the certificate is fetched again, without a new order"
            return Failed(Refusal(Reason.ISSUER_UNAVAILABLE, message))
        remedy = "ask the CA what is wrong with its chain; `certplane-agent renew NAME` orders another one sooner"
        refusal = Refusal(Reason.ISSUER_REJECTED, f"{said}; {remedy}")
        return Over(End(refusal, self._settings.unusable_chain_pause), unaccounted=True)

    @property
    def _issuer(self) -> Issuer:
        """The order's; there is one, or nothing lets the order go on (`OrderAuthorisation`, `_look`)."""
        return self._ports.issuers[self.order.issuer]

    def _timeout(self, most: timedelta) -> timedelta:
        """For a step before the finalisation: within the order's time, but long enough to be worth trying."""
        return min(most, max(self.time_left, _SHORTEST_TIMEOUT))


def _rejected(message: str) -> End:
    refusal = Refusal(Reason.ISSUER_REJECTED, message)
    return End(refusal, pause_before_new_order(refusal))
