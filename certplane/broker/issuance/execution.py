"""One order's way through the CA, each step journalled before the next.

    PENDING ----> create ----> AUTHORIZED ----> records ----> VALIDATING ----> answer ----> FINALIZING ----> ISSUED
                  (journal: ACME order URL)     (journal: TXT records)         (journal)    finalise, download, store

The order's row says where to go on, so that a start after a crash and a try after a failed step are the same code: look
at the CA's order, then do what its state and ours ask for.

- FINALIZING is durable before the CSR is sent, and from then on only the CA's word ends the order: as long as it can't
  be asked, or says "processing", it is asked again. `ready` means that it never got the CSR. An order that it does not
  know any more is FAILED, never silently done again. Where it may have issued what isn't stored, that blocks the key:
  no key ever gets a second certificate.
- Before that, an order that the CA lost or that somebody else finalised is abandoned, which is counted, and another is
  made.
- Policy, and whether the key is blocked, is asked again before the CA is asked for an order, and right before the
  finalisation.
- A cancellation parks the order: nothing is undone, the next start goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import NoReturn

from certplane.broker.issuance import measures
from certplane.broker.issuance.authorisation import OrderAuthorisation
from certplane.broker.issuance.condition import IssuanceCondition
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.events import OrderEvents
from certplane.broker.issuance.failover import IssuerChoice
from certplane.broker.issuance.journal import Journal, OrderEndedError
from certplane.broker.issuance.outcome import (
    Consequence,
    End,
    TryAgain,
    classify,
    conclude,
    fails_over,
    pause_before_new_order,
    scopes_of,
)
from certplane.broker.issuance.queue import Lane, OrderQueue, Place
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.issuance.storing import record_of
from certplane.broker.issuance.validation import RecordCleaner, merge_records
from certplane.broker.model import IssuerOrder, IssuerOrderStatus, Order, OrderState, Profile
from certplane.broker.ports import Issuer, OrderChange, Policy
from certplane.errors import Reason, Refusal, RefusalError
from certplane.pki.chain import ChainError, check_issued_chain
from certplane.runtime.failpoints import failpoint

__all__ = ["FAILPOINTS", "STEPS", "OrderExecution"]

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

_SHORTEST_PAUSE = timedelta(minutes=1)
"""Before a new order goes to an issuer that was left and isn't known to be out any more."""


class _OrderOverError(Exception):
    """The order can't go on.

    `left_open` says whether the CA still holds an order that was never finalised; `unaccounted`, that the CA may have
    issued what is not stored: a person should look, and the key is spent.
    """

    def __init__(self, end: End, *, left_open: bool = False, unaccounted: bool = False) -> None:
        super().__init__(end.refusal.message)
        self.end = end
        self.left_open = left_open
        self.unaccounted = unaccounted


class _IssuerChangedError(Exception):
    """The order goes on at another issuer, when its turn comes there."""


class _StillValidatingError(RefusalError):
    """The CA answers and is slow with this order's names: that says nothing of whether others reach it."""


class OrderExecution:
    """Takes one order to its end. Used once, by one task."""

    def __init__(
        self,
        ports: IssuancePorts,
        settings: IssuanceSettings,
        *,
        queue: OrderQueue,
        choice: IssuerChoice,
        condition: IssuanceCondition,
        cleaner: RecordCleaner,
        authorisation: OrderAuthorisation,
        journal: Journal,
        events: OrderEvents,
    ) -> None:
        self._ports = ports
        self._settings = settings
        self._queue = queue
        self._choice = choice
        self._condition = condition
        self._cleaner = cleaner
        self._authorisation = authorisation
        self._journal = journal
        self._events = events
        self._lane = self._find_lane()
        self._acme: IssuerOrder | None = None
        """The CA's order as last seen; None when it has to be looked at."""
        self._place: Place | None = None
        self._deadline = 0.0
        self._asked_at = 0.0
        """When the CA was turned to in this step, after whatever had to be waited for before."""
        self._out_since: float | None = None
        """Since when, after the order's last progress, the CA has been out of reach."""
        self._failures = 0
        self._abandoned = 0
        self._looked_at = ""
        """The issuer for which the order's preconditions were looked at: once, not at each try."""
        self._left: frozenset[str] = frozenset()
        """Issuers that this order has failed at."""
        self._ending: End | None = None
        """In FINALIZING: how the order ends if the CA turns out not to have the CSR."""

    @property
    def order(self) -> Order:
        """The order as it durably is."""
        return self._journal.order

    async def run(self, begin: Callable[[], None]) -> None:
        """Wait for the order's turn, call `begin`, and work until the order has ended and its records are removed.

        A cancellation parks the order, but lets the storing of an issued certificate finish.
        """
        started = None
        while True:
            async with self._queue.turn(self._lane) as self._place:
                if started is None:
                    begin()
                    started = self._ports.clock.monotonic()
                    await self._journal.refresh()
                self._deadline = self._ports.clock.monotonic() + self._settings.order_time_limit.total_seconds()
                try:
                    await self._go_on(started)
                except _IssuerChangedError:
                    self._lane = self._find_lane()
                else:
                    return

    async def _go_on(self, started: float) -> None:
        """Work until the order has ended; its place at the CA is kept until its records are removed."""
        while self.order.state.is_open:
            with suppress(OrderEndedError):
                await self._try_on()
        reason = self.order.error.reason.value if self.order.error is not None else OrderState.ISSUED.value
        spent = timedelta(seconds=self._ports.clock.monotonic() - started)
        self._ports.meter.observe(measures.ORDER_DURATION, spent, reason=reason)
        self._ports.meter.count(measures.ORDERS_ENDED, profile=self.order.profile, reason=reason)
        self._condition.order_ended(self.order.profile, self.order.error)
        await self.clean_up()

    async def fail(self, refusal: Refusal) -> None:
        """End the order for a reason that lies outside of it, and remove its records."""
        await self._end(End(refusal, pause_before_new_order(refusal)), left_open=bool(self.order.acme_order_url))
        await self.clean_up()

    async def clean_up(self) -> None:
        """Remove the records of an ended order; those that can't be removed stay journalled."""
        records = self.order.txt_records
        if not records:
            return
        with self._step("remove"):
            left = await self._cleaner.remove(self.order)
        if left != records:
            with self._step("journal_removed"):
                await self._journal.write(OrderChange(txt_records=left))

    async def _try_on(self) -> None:
        """One step, and what follows from its failure."""
        state = self.order.state
        self._asked_at = self._ports.clock.monotonic()
        try:
            await self._advance()
        except _OrderOverError as over:
            await self._end(over.end, left_open=over.left_open, unaccounted=over.unaccounted)
        except RefusalError as error:
            if error.refusal.reason is not Reason.ISSUER_UNAVAILABLE or isinstance(error, _StillValidatingError):
                self._out_since = None
            elif self._out_since is None:
                self._out_since = self._asked_at
            await self._after_failure(error.refusal)
        if self.order.state is not state:
            self._failures = 0
            self._out_since = None

    async def _after_failure(self, refusal: Refusal) -> None:
        self._acme = None
        self._failures += 1
        self._ports.meter.count(measures.STEP_FAILURES, reason=refusal.reason.value)
        verdict = conclude(
            refusal,
            failures=self._failures,
            time_left=self._time_left,
            backoff=self._settings.retry,
            rng=self._ports.rng,
        )
        # Stuck after the finalisation is what a person should see: nothing but the CA can end it.
        stuck = isinstance(verdict, End) and self.order.state is OrderState.FINALIZING
        logger.log(
            logging.WARNING if stuck else logging.INFO,
            "a step of an order failed: %s",
            refusal.message,
            extra={
                "fields": {
                    "order_id": self.order.order_id,
                    "state": self.order.state.value,
                    "reason": refusal.reason.value,
                    "failures": self._failures,
                }
            },
        )
        issuer = self._elsewhere(refusal, verdict)
        if issuer:
            await self._move(issuer, refusal)
        elif isinstance(verdict, TryAgain):
            self._ending = None
            self._hold(refusal, verdict.wait)
            await self._ports.clock.sleep(verdict.wait)
        elif self.order.state is OrderState.FINALIZING:
            # The CA may have the CSR: what it says when it is looked at again decides, however long that takes.
            self._ending = verdict
            if self._place is not None:
                self._place.leave()
            wait = self._settings.retry.wait(self._failures, self._ports.rng)
            if refusal.retry_after is not None and refusal.reason is not Reason.ISSUER_RATE_LIMITED:
                wait = max(wait, refusal.retry_after)  # a rate limit is on finalising, not on looking
            await self._ports.clock.sleep(wait)
        else:
            left_open = bool(self.order.acme_order_url) and refusal.reason is not Reason.ISSUER_REJECTED
            await self._end(verdict, left_open=left_open)

    def _elsewhere(self, refusal: Refusal, verdict: TryAgain | End) -> str:
        """The issuer that the order should go on at; empty if it stays."""
        profile = self._profile
        if self.order.state is OrderState.FINALIZING or profile is None or not fails_over(refusal):
            return ""
        now = self._ports.clock.now()
        out_of_reach = self._out_since is not None
        if isinstance(verdict, TryAgain):
            if self._out_since is None:
                return ""
            out = timedelta(seconds=self._ports.clock.monotonic() - self._out_since)
            # What the issuer says of its absence counts as much as what was seen of it.
            if out + (refusal.retry_after or timedelta()) < self._settings.failover_after:
                return ""
        but = self._left | {self.order.issuer}
        issuers = self._ports.issuers_of(profile)
        issuer = self._choice.choose(issuers, self.order.dns_names, profile.acme_profile, now, but=but)
        if issuer and out_of_reach:
            self._choice.suspect(self.order.issuer, now, refusal)
        return issuer

    async def _move(self, issuer: str, refusal: Refusal) -> NoReturn:
        """Go on at another issuer: nothing was finalised here, so that no key gets two certificates."""
        order = self.order
        asks_person = classify(refusal) is Consequence.ASK_PERSON  # whom nobody would call while the other one works
        logger.log(
            logging.ERROR if asks_person else logging.WARNING,
            "an order goes on at another issuer%s: %s",
            ", a person has to act" if asks_person else "",
            refusal.message,
            extra={"fields": {"order_id": order.order_id, "issuer": order.issuer, "next_issuer": issuer}},
        )
        self._ports.meter.count(measures.FAILOVERS, issuer=order.issuer, reason=refusal.reason.value)
        self._hold(refusal, pause_before_new_order(refusal))
        self._left |= {order.issuer}
        self._failures = 0
        self._acme = None
        self._out_since = None
        events = []
        if order.acme_order_url:
            events.append(self._events.abandoned(order.acme_order_url, refusal.message))
            self._ports.meter.count(measures.ORDERS_ABANDONED)
        events.append(self._events.failed_over(issuer, refusal))
        await self._journal.write(OrderChange(issuer=issuer, acme_order_url=""), events)
        raise _IssuerChangedError

    async def _advance(self) -> None:
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
        async with self._queue.asking(self._lane):
            profile = await self._authorisation.ask_again(self.order)
            self._check_held()
            await self._leave_suspected(profile)
            self._asked_at = self._ports.clock.monotonic()
            with self._step("create"):
                acme = await self._issuer.create_order(
                    self.order.csr_der, profile, self._timeout(self._settings.call_timeout), replaces=replaces
                )
        if acme.status not in (IssuerOrderStatus.PENDING, IssuerOrderStatus.READY):
            raise RefusalError(Reason.ISSUER_UNAVAILABLE, f"the CA handed back an order that is {acme.status.value}")
        with self._step("journal_url"):
            state = OrderState.AUTHORIZED if self.order.state is OrderState.PENDING else None
            await self._journal.write(OrderChange(state=state, acme_order_url=acme.url))
        if acme.trouble is not None:
            raise RefusalError.of(acme.trouble)
        self._acme = acme

    def _check_held(self) -> None:
        held = self._queue.held(self._lane, self._ports.clock.now())
        if held is not None:
            until, refusal = held
            raise RefusalError.of(replace(refusal, retry_after=until - self._ports.clock.now()))

    async def _leave_suspected(self, profile: Profile) -> None:
        """Go where others have gone that found the issuer out of reach while this order waited for its turn."""
        now = self._ports.clock.now()
        suspected = self._choice.suspected(self.order.issuer, now)
        if suspected is None:
            return
        but = self._left | {self.order.issuer}
        issuers = self._ports.issuers_of(profile)
        issuer = self._choice.choose(issuers, self.order.dns_names, profile.acme_profile, now, but=but)
        if issuer:
            await self._move(issuer, suspected)

    async def _replaced_pem(self) -> str:
        """The certificate that the CA is told this order replaces: one of its own that shares a name (RFC 9773 5)."""
        if not self.order.replaces_certificate_id:
            return ""
        record = await self._ports.certificates.get_certificate(self.order.replaces_certificate_id)
        if record is None or record.issuer != self.order.issuer:
            return ""
        return "" if set(record.dns_names).isdisjoint(self.order.dns_names) else record.certificate_pem

    async def _look(self, url: str) -> None:
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
                raise _OrderOverError(End(unknown, pause_before_new_order(unknown)), unaccounted=True) from error
            await self._abandon("the CA does not know it any more", error.refusal)

    async def _abandon(self, why: str, refusal: Refusal) -> None:
        """Give up an order at the CA that can't be used and was not finalised by us; another one follows."""
        url = self.order.acme_order_url
        self._abandoned += 1
        if self._abandoned > _MOST_ABANDONED:
            raise _OrderOverError(End(refusal, pause_before_new_order(refusal)))
        self._acme = None
        await self._journal.write(OrderChange(acme_order_url=""), [self._events.abandoned(url, why)])
        self._ports.meter.count(measures.ORDERS_ABANDONED)

    async def _prepare(self, acme: IssuerOrder) -> None:
        """Before the finalisation: get the CA's order ready, then make the decision to finalise durable."""
        match acme.status:
            case IssuerOrderStatus.PENDING:
                await self._validate(acme)
            case IssuerOrderStatus.READY:
                await self._authorisation.ask_again(self.order)
                with self._step("journal_finalizing"):
                    await self._journal.write(OrderChange(state=OrderState.FINALIZING))
            case IssuerOrderStatus.INVALID:
                # There is nothing left to answer; asked that way, the CA says why the order is invalid.
                await self._issuer.answer_challenges(acme, self._timeout(self._settings.call_timeout))
                raise _OrderOverError(_rejected("the CA has given the order up: a challenge failed or it expired"))
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
        with self._step("journal_records"):
            await self._journal.write(OrderChange(state=OrderState.VALIDATING, txt_records=journalled))
        if len(records) < len(journalled):
            left = await self._cleaner.remove_unneeded(self.order)
            await self._journal.write(OrderChange(txt_records=(*left, *records)))
        with self._step("present"):
            written = await self._ports.solver.present(records, self._timeout(self._settings.dns_timeout))
        with self._step("journal_record_ids"):
            await self._journal.write(OrderChange(txt_records=merge_records(self.order.txt_records, written)))
        with self._step("propagate"):
            await self._ports.solver.wait_until_visible(written, self._timeout(self._settings.propagation_timeout))
        self._asked_at = self._ports.clock.monotonic()
        with self._step("answer"):
            answered = await self._issuer.answer_challenges(acme, self._timeout(self._settings.call_timeout))
        if answered.status is IssuerOrderStatus.PENDING:
            raise _StillValidatingError(
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
                if self._ending is not None:
                    raise _OrderOverError(self._ending, left_open=True)
                await self._authorisation.ask_again(self.order)
                with self._step("finalize"):
                    finalized = await self._issuer.finalize(acme, self.order.csr_der, self._settings.call_timeout)
                self._acme = None if finalized.status is IssuerOrderStatus.READY else finalized
            case IssuerOrderStatus.INVALID if self._ending is not None:
                raise _OrderOverError(self._ending)
            case _:  # of an invalid order there is nothing to collect, but the CA says why
                await self._collect(acme)

    async def _collect(self, acme: IssuerOrder) -> None:
        with self._step("download"):
            fullchain_pem = await self._issuer.download(acme, self._settings.call_timeout)
        try:
            chain = check_issued_chain(
                fullchain_pem,
                public_key_sha256=self.order.public_key_sha256,
                dns_names=self.order.dns_names,
                now=self._ports.clock.now(),
            )
        except ChainError as error:
            raise _OrderOverError(_rejected(error.refusal.message), unaccounted=True) from error
        record = record_of(self.order, chain, self._profile, self._ports.new_id(), self._ports.clock.now())
        with self._step("store"):
            await self._journal.finish(record, [self._events.issued(record, self._policy)])
        self._ports.renewals.note_issued(record)
        self._choice.works(self.order.issuer)

    async def _end(self, end: End, *, left_open: bool = False, unaccounted: bool = False) -> None:
        order = self.order
        asks_person = classify(end.refusal) is Consequence.ASK_PERSON
        if asks_person:
            fields = {"order_id": order.order_id, "profile": order.profile, "reason": end.refusal.reason.value}
            logger.error("a person has to act: %s", end.refusal.message, extra={"fields": fields})
        self._hold(end.refusal, end.pause)
        error, pause = self._until_any_issuer(end)
        events = [self._events.failed(error, order.acme_order_url, alarming=unaccounted or asks_person)]
        if left_open:
            events.append(self._events.abandoned(order.acme_order_url, error.message))
            self._ports.meter.count(measures.ORDERS_ABANDONED)
        retry_time = self._ports.clock.now() + pause
        await self._journal.write(
            OrderChange(state=OrderState.FAILED, error=error, retry_time=retry_time, block_key=unaccounted), events
        )

    def _until_any_issuer(self, end: End) -> tuple[Refusal, timedelta]:
        """What is told, and when a new order may follow: as soon as another of the profile's issuers can be asked.

        A limit of the issuer that was asked last, days long, must not keep the order from the first one that was away
        for minutes.
        """
        profile = self._profile
        if profile is None or not fails_over(end.refusal):
            return end.refusal, end.pause
        others = [issuer for issuer in self._ports.issuers_of(profile) if issuer != self.order.issuer]
        if not others:
            return end.refusal, end.pause
        wait = self._choice.wait(others, self.order.dns_names, profile.acme_profile, self._ports.clock.now())
        pause = min(end.pause, max(wait, _SHORTEST_PAUSE))
        return (end.refusal if pause == end.pause else replace(end.refusal, retry_after=pause)), pause

    def _hold(self, refusal: Refusal, wait: timedelta) -> None:
        """Keep everybody whom the refusal concerns from asking the CA for the same answer."""
        scopes = scopes_of(refusal)
        if not scopes:
            return
        until = self._ports.clock.now() + wait
        if not self._queue.hold(self._lane, scopes, until, refusal):
            return
        concerned = " ".join(map(str, scopes))
        fields = {"order_id": self.order.order_id, "issuer": self.order.issuer, "scope": concerned}
        fields["until"] = f"{until:%Y-%m-%dT%H:%M:%SZ}"
        logger.warning("the CA is not asked again for a while: %s", refusal.message, extra={"fields": fields})

    @property
    def _issuer(self) -> Issuer:
        """The order's issuer.

        Raises:
            _OrderOverError: it isn't configured any more.
        """
        issuer = self._ports.issuers.get(self.order.issuer)
        if issuer is None:
            message = f"the broker's configuration has no issuer {self.order.issuer} any more"
            raise _OrderOverError(_rejected(message), unaccounted=self.order.state is OrderState.FINALIZING)
        return issuer

    @property
    def _policy(self) -> Policy | None:
        try:
            return self._ports.policies.current
        except RefusalError:
            return None

    @property
    def _profile(self) -> Profile | None:
        """The order's profile as policy has it now, allowed or not."""
        policy = self._policy
        return policy.find_profile(self.order.profile) if policy is not None else None

    def _find_lane(self) -> Lane:
        profile = self._profile
        return Lane(self.order.issuer, profile.acme_profile if profile is not None else "", self.order.dns_names)

    @property
    def _time_left(self) -> timedelta:
        return timedelta(seconds=self._deadline - self._ports.clock.monotonic())

    def _timeout(self, most: timedelta) -> timedelta:
        """For a step before the finalisation: within the order's time, but long enough to be worth trying."""
        return min(most, max(self._time_left, _SHORTEST_TIMEOUT))

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """A step of `STEPS`: its failpoints, and its time when it succeeds."""
        failpoint(f"order.{name}.before")
        started = self._ports.clock.monotonic()
        yield
        spent = timedelta(seconds=self._ports.clock.monotonic() - started)
        self._ports.meter.observe(measures.STEP_DURATION, spent, step=name)
        failpoint(f"order.{name}.after")


def _rejected(message: str) -> End:
    refusal = Refusal(Reason.ISSUER_REJECTED, message)
    return End(refusal, pause_before_new_order(refusal))
