"""The steps of one order at the CA, each journalled before the next; which one comes is read from the order's row.

    PENDING ----> create ----> AUTHORIZED ----> records ----> VALIDATING ----> answer ----> FINALIZING ----> ISSUED
                  (journal: ACME order URL)     (journal: TXT records)         (journal)    finalise, download, store

What a failed step means is `execution`'s to say: here it only ends, with a `RefusalError` that may pass, or with what
ends the order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

from certplane.broker import metrics
from certplane.broker.issuance.authorisation import OrderAuthorisation
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.events import OrderEvents
from certplane.broker.issuance.failover import IssuerChoice
from certplane.broker.issuance.journal import Journal
from certplane.broker.issuance.outcome import End, fails_over, is_told, pause_before_new_order
from certplane.broker.issuance.queue import Lane, OrderQueue
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.issuance.storing import record_of
from certplane.broker.issuance.validation import RecordCleaner, merge_records
from certplane.broker.model import IssuerOrder, IssuerOrderStatus, Order, OrderState, Profile
from certplane.broker.ports import Issuer, OrderChange, Policy
from certplane.errors import Reason, Refusal, RefusalError
from certplane.pki.chain import MOST_CAME, check_issued_chain
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

_MOST_ABANDONED = 3
"""ACME orders that one order may give up before it fails: a CA that loses each one would get new ones without end."""

_SHORTEST_TIMEOUT = timedelta(seconds=1)


class OrderOverError(Exception):
    """The order can't go on.

    `left_open` says whether the CA still holds an order that was never finalised; `unaccounted`, that the CA may have
    issued what is not stored: a person should look, and the key is spent.
    """

    def __init__(self, end: End, *, left_open: bool = False, unaccounted: bool = False) -> None:
        super().__init__(end.refusal.message)
        self.end = end
        self.left_open = left_open
        self.unaccounted = unaccounted


class IssuerSuspectedError(Exception):
    """Others have found the issuer out of reach, `refusal` is what they met, and `issuer` is where they have gone."""

    def __init__(self, issuer: str, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.issuer = issuer
        self.refusal = refusal


class StillValidatingError(RefusalError):
    """The CA answers and is slow with this order's names: that says nothing of whether others reach it."""


class OrderSteps:
    """Takes one order a step further at a time. Used by its execution alone."""

    def __init__(
        self,
        ports: IssuancePorts,
        settings: IssuanceSettings,
        *,
        queue: OrderQueue,
        choice: IssuerChoice,
        cleaner: RecordCleaner,
        authorisation: OrderAuthorisation,
        journal: Journal,
        events: OrderEvents,
    ) -> None:
        self._ports = ports
        self._settings = settings
        self._queue = queue
        self._choice = choice
        self._cleaner = cleaner
        self._authorisation = authorisation
        self._journal = journal
        self._events = events
        self._acme: IssuerOrder | None = None
        """The CA's order as last seen; None when it has to be looked at."""
        self._abandoned = 0
        self._unusable_since: float | None = None
        """Since when what the CA hands out as the certificate can't be used."""
        self._looked_at = ""
        """The issuer for which the order's preconditions were looked at: once, not at each try."""
        self.lane = self.find_lane()
        self.deadline = 0.0
        """Monotonic time until which the order must be ready to be finalised."""
        self.asked_at = 0.0
        """When the CA was turned to in this step, after whatever had to be waited for before."""
        self.left: frozenset[str] = frozenset()
        """Issuers that this order has failed at."""
        self.ending: End | None = None
        """In FINALIZING: how the order ends if the CA turns out not to have the CSR."""

    @property
    def order(self) -> Order:
        """The order as it durably is."""
        return self._journal.order

    def forget(self) -> None:
        """What was seen of the CA's order may be wrong by now: look at it again."""
        self._acme = None

    async def advance(self) -> None:
        """Take the next step.

        Raises:
            RefusalError: it failed and may be tried again.
            OrderOverError: the order can't go on.
            IssuerSuspectedError: nothing was asked; there is reason to go elsewhere.
            OrderEndedError: somebody else has ended the order.
        """
        if not self.order.acme_order_url:
            await self._create()
        elif self._acme is None:
            await self._look(self.order.acme_order_url)
        elif self.order.state is OrderState.FINALIZING:
            await self._complete(self._acme)
        else:
            await self._prepare(self._acme)

    async def _create(self) -> None:
        self._check_held()
        replaces = await self._replaced_pem()
        if self._looked_at != self.order.issuer:
            self._looked_at = self.order.issuer
            timeout = self._timeout(self._settings.preflight_timeout)
            await self._ports.preflight.check_order(self.order.dns_names, self.order.issuer, timeout)
        async with self._queue.asking(self.lane):
            profile = await self._authorisation.ask_again(self.order)
            self._check_held()
            self._check_suspected(profile)
            self.asked_at = self._ports.clock.monotonic()
            with self.step("create"):
                acme = await self._issuer.create_order(
                    self.order.csr_der, profile, self._timeout(self._settings.call_timeout), replaces=replaces
                )
        if acme.status not in (IssuerOrderStatus.PENDING, IssuerOrderStatus.READY):
            raise RefusalError(Reason.ISSUER_UNAVAILABLE, f"the CA handed back an order that is {acme.status.value}")
        with self.step("journal_url"):
            state = OrderState.AUTHORIZED if self.order.state is OrderState.PENDING else None
            await self._journal.write(OrderChange(state=state, acme_order_url=acme.url))
        if acme.trouble is not None:
            raise RefusalError.of(acme.trouble)
        self._acme = acme

    def _check_held(self) -> None:
        held = self._queue.held(self.lane, self._ports.clock.now())
        if held is not None:
            until, refusal = held
            if is_told(refusal):
                refusal = replace(refusal, retry_after=until - self._ports.clock.now())
            raise RefusalError.of(refusal)

    def next_issuer(self, profile: Profile) -> str:
        """The next of the profile's issuers that isn't out and that this order hasn't failed at; empty for none."""
        but = self.left | {self.order.issuer}
        issuers = self._ports.issuers_of(profile)
        now = self._ports.clock.now()
        return self._choice.choose(issuers, self.order.dns_names, profile.acme_profile, now, but=but)

    def _check_suspected(self, profile: Profile) -> None:
        """Where others have found the issuer out of reach, this order needn't find out for itself."""
        suspected = self._choice.suspected(self.order.issuer, self._ports.clock.now())
        if suspected is None:
            return
        issuer = self.next_issuer(profile)
        if issuer:
            raise IssuerSuspectedError(issuer, suspected)

    async def _replaced_pem(self) -> str:
        """The certificate that the CA is told this order replaces: one of its own that shares a name (RFC 9773 5)."""
        if not self.order.replaces_certificate_id:
            return ""
        record = await self._ports.certificates.get_certificate(self.order.replaces_certificate_id)
        if record is None or record.issuer != self.order.issuer:
            return ""
        return "" if set(record.dns_names).isdisjoint(self.order.dns_names) else record.certificate_pem

    async def _look(self, url: str) -> None:
        if self.order.state is not OrderState.FINALIZING:  # from then on only the CA's word ends it
            await self._authorisation.ask_again(self.order)
        try:
            self._acme = await self._issuer.get_order(url, self._timeout(self._settings.call_timeout))
        except RefusalError as error:
            # What the CA wants of the account (new terms, a binding) says nothing of the order.
            if error.refusal.reason is not Reason.ISSUER_REJECTED or fails_over(error.refusal):
                raise
            if self.order.state is OrderState.FINALIZING:
                unknown = replace(
                    error.refusal,
                    message="the CA does not know the order any more for which the CSR may have been sent",
                )
                raise OrderOverError(End(unknown, pause_before_new_order(unknown)), unaccounted=True) from error
            await self._abandon("the CA does not know it any more", error.refusal)

    async def _abandon(self, why: str, refusal: Refusal) -> None:
        """Give up an order at the CA that can't be used and was not finalised by us; another one follows."""
        url = self.order.acme_order_url
        self._abandoned += 1
        if self._abandoned > _MOST_ABANDONED:
            raise OrderOverError(End(refusal, pause_before_new_order(refusal)))
        self._acme = None
        await self._journal.write(OrderChange(acme_order_url=""), [self._events.abandoned(url, why)])
        self._ports.meter.count(metrics.ORDERS_ABANDONED)

    async def _prepare(self, acme: IssuerOrder) -> None:
        """Before the finalisation: get the CA's order ready, then make the decision to finalise durable."""
        match acme.status:
            case IssuerOrderStatus.PENDING:
                await self._validate(acme)
            case IssuerOrderStatus.READY:
                await self._authorisation.ask_again(self.order)
                with self.step("journal_finalizing"):
                    await self._journal.write(OrderChange(state=OrderState.FINALIZING))
            case IssuerOrderStatus.INVALID:
                # There is nothing left to answer; asked that way, the CA says why the order is invalid.
                await self._issuer.answer_challenges(acme, self._timeout(self._settings.call_timeout))
                raise OrderOverError(_rejected("the CA has given the order up: a challenge failed or it expired"))
            case _:
                why = f"it is {acme.status.value} although its CSR was never sent"
                await self._abandon(why, Refusal(Reason.ISSUER_REJECTED, f"the CA's order can't be used: {why}"))

    async def _validate(self, acme: IssuerOrder) -> None:
        profile = await self._authorisation.ask_again(self.order)
        self._check_challenges(acme)
        planned = await self._ports.solver.plan(acme.challenges, profile, self._timeout(self._settings.dns_timeout))
        wanted = {(record.name, record.value) for record in planned}
        journalled = merge_records(self.order.txt_records, planned)
        records = [record for record in journalled if (record.name, record.value) in wanted]
        self._cleaner.need(self.order.order_id, records)
        with self.step("journal_records"):
            await self._journal.write(OrderChange(state=OrderState.VALIDATING, txt_records=journalled))
        if len(records) < len(journalled):
            left = await self._cleaner.remove_unneeded(self.order)
            await self._journal.write(OrderChange(txt_records=(*left, *records)))
        with self.step("present"):
            written = await self._ports.solver.present(records, self._timeout(self._settings.dns_timeout))
        with self.step("journal_record_ids"):
            await self._journal.write(OrderChange(txt_records=merge_records(self.order.txt_records, written)))
        with self.step("propagate"):
            silent = await self._ports.solver.wait_until_visible(
                written, self._timeout(self._settings.propagation_timeout), self._journal.tell
            )
        for line in silent:
            self._journal.tell(f"goes on without a name server that gives no answer: {line}")
            self._ports.meter.count(metrics.SERVERS_SILENT)
            fields = {"order_id": self.order.order_id}
            logger.warning(
                "a name server gives no answer; the order goes on without it: %s", line, extra={"fields": fields}
            )
        await self._authorisation.ask_again(self.order)  # DNS may have taken minutes
        self.asked_at = self._ports.clock.monotonic()
        with self.step("answer"):
            answered = await self._issuer.answer_challenges(acme, self._timeout(self._settings.call_timeout))
        if answered.status is IssuerOrderStatus.PENDING:
            raise StillValidatingError(
                Reason.ISSUER_UNAVAILABLE, "the CA has not finished validating", retry_after=answered.retry_after
            )
        self._acme = answered

    def _check_challenges(self, acme: IssuerOrder) -> None:
        """Prove nothing that wasn't asked for: the CA's order is read anew after each failure and each restart."""
        asked = {name.removeprefix("*.") for name in self.order.dns_names}
        for challenge in acme.challenges:
            if challenge.domain not in asked:
                message = f"the CA wants proof for {challenge.domain}, which wasn't asked for"
                raise RefusalError(Reason.ISSUER_UNAVAILABLE, message)

    async def _complete(self, acme: IssuerOrder) -> None:
        """From the finalisation on: only what the CA's order says decides."""
        match acme.status:
            case IssuerOrderStatus.READY:
                if self.ending is not None:
                    raise OrderOverError(self.ending, left_open=True)
                await self._authorisation.ask_again(self.order)
                with self.step("finalize"):
                    finalized = await self._issuer.finalize(acme, self.order.csr_der, self._settings.call_timeout)
                self._acme = None if finalized.status is IssuerOrderStatus.READY else finalized
            case IssuerOrderStatus.INVALID if self.ending is not None:
                raise OrderOverError(self.ending)
            case _:  # of an invalid order there is nothing to collect, but the CA says why
                await self._collect(acme)

    async def _collect(self, acme: IssuerOrder) -> None:
        with self.step("download"):
            fullchain_pem = await self._issuer.download(acme, self._settings.call_timeout)
        try:
            chain = check_issued_chain(
                fullchain_pem,
                public_key_sha256=self.order.public_key_sha256,
                dns_names=self.order.dns_names,
                now=self._ports.clock.now(),
                most=MOST_CAME,
            )
        except ChainError as error:
            raise self._unusable_chain(error) from error
        if chain.dropped:
            fields = {"order_id": self.order.order_id, "dropped": list(chain.dropped)}
            logger.warning("dropped what doesn't belong in the CA's chain", extra={"fields": fields})
        record = record_of(self.order, chain, self.profile, self._ports.new_id(), self._ports.clock.now())
        with self.step("store"):
            await self._journal.finish(record, [self._events.issued(record, self.policy)])
        self._ports.renewals.note_issued(record)

    def _unusable_chain(self, error: ChainError) -> Exception:
        """Fetch it again for a while where that may help: another order would bring the same, and cost one more."""
        if not error.may_heal:
            return OrderOverError(_rejected(error.refusal.message), unaccounted=True)
        said = f"the CA has issued, but what it sent can't be used: {error.refusal.message}"
        now, patience = self._ports.clock.monotonic(), self._settings.chain_patience
        if self._unusable_since is None:
            self._unusable_since = now
        if now - self._unusable_since < patience.total_seconds():
            message = f"{said}; the certificate is fetched again, and no other one ordered"
            return RefusalError(Reason.ISSUER_UNAVAILABLE, message)
        remedy = "ask the CA what is wrong with its chain; `certplane-agent renew NAME` orders another one sooner"
        refusal = Refusal(Reason.ISSUER_REJECTED, f"{said}; {remedy}")
        return OrderOverError(End(refusal, self._settings.unusable_chain_pause), unaccounted=True)

    @property
    def _issuer(self) -> Issuer:
        """The order's issuer.

        Raises:
            OrderOverError: it isn't configured any more.
        """
        issuer = self._ports.issuers.get(self.order.issuer)
        if issuer is None:
            message = f"the broker's configuration has no issuer {self.order.issuer} any more"
            raise OrderOverError(_rejected(message), unaccounted=self.order.state is OrderState.FINALIZING)
        return issuer

    @property
    def policy(self) -> Policy | None:
        """The policy in force, if any."""
        try:
            return self._ports.policies.current
        except RefusalError:
            return None

    @property
    def profile(self) -> Profile | None:
        """The order's profile as policy has it now, allowed or not."""
        policy = self.policy
        return policy.find_profile(self.order.profile) if policy is not None else None

    def find_lane(self) -> Lane:
        """Where the order has to take its turn: another one after it has moved."""
        profile = self.profile
        return Lane(self.order.issuer, profile.acme_profile if profile is not None else "", self.order.dns_names)

    @property
    def time_left(self) -> timedelta:
        """Until the order's deadline."""
        return timedelta(seconds=self.deadline - self._ports.clock.monotonic())

    def _timeout(self, most: timedelta) -> timedelta:
        """For a step before the finalisation: within the order's time, but long enough to be worth trying."""
        return min(most, max(self.time_left, _SHORTEST_TIMEOUT))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step of `STEPS`: its failpoints, and its time when it succeeds."""
        failpoint(f"order.{name}.before")
        started = self._ports.clock.monotonic()
        yield
        spent = timedelta(seconds=self._ports.clock.monotonic() - started)
        self._ports.meter.observe(metrics.STEP_DURATION, spent, step=name)
        failpoint(f"order.{name}.after")


def _rejected(message: str) -> End:
    refusal = Refusal(Reason.ISSUER_REJECTED, message)
    return End(refusal, pause_before_new_order(refusal))
