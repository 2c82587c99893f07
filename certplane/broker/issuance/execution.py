"""One order's way to its end: step after step (`steps`), and what follows when one fails.

The order's row says where to go on, so that a start after a crash and a try after a failed step are the same code: look
at the CA's order, then do what its state and ours ask for.

- FINALIZING is durable before the CSR is sent, and from then on only the CA's word ends the order: as long as it can't
  be asked, or says "processing", it is asked again. `ready` means that it never got the CSR. An order that it does not
  know any more is FAILED, never silently done again. Where it may have issued what isn't stored, that blocks the key:
  no key ever gets a second certificate.
- Before that, an order that the CA lost or that somebody else finalised is abandoned, which is counted, and another is
  made; and an order whose issuer is out goes on at the next one of its profile (`failover`).
- All that let the order in (`authorisation`) is asked again before the CA is asked for anything, and right before the
  finalisation.
- A cancellation parks the order: nothing is undone, the next start goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import NoReturn

from certplane.broker import metrics
from certplane.broker.issuance.condition import IssuanceCondition
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.events import OrderEvents
from certplane.broker.issuance.failover import IssuerChoice
from certplane.broker.issuance.journal import Journal, OrderEndedError
from certplane.broker.issuance.outcome import (
    Consequence,
    End,
    TryAgain,
    cap_pause,
    classify,
    conclude,
    fails_over,
    is_told,
    pause_before_new_order,
    scopes_of,
)
from certplane.broker.issuance.queue import OrderQueue, Place
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.issuance.steps import IssuerSuspectedError, OrderOverError, OrderSteps, StillValidatingError
from certplane.broker.issuance.validation import RecordCleaner
from certplane.broker.model import Order, OrderState
from certplane.broker.ports import CertificateQuery, OrderChange
from certplane.errors import Reason, Refusal, RefusalError

logger = logging.getLogger(__name__)

_SHORTEST_PAUSE = timedelta(minutes=1)
"""Before a new order goes to an issuer that was left and isn't known to be out any more."""


class _IssuerChangedError(Exception):
    """The order goes on at another issuer, when its turn comes there."""


class OrderExecution:
    """Takes one order to its end. Used once, by one task."""

    def __init__(
        self,
        ports: IssuancePorts,
        settings: IssuanceSettings,
        *,
        steps: OrderSteps,
        queue: OrderQueue,
        choice: IssuerChoice,
        condition: IssuanceCondition,
        cleaner: RecordCleaner,
        journal: Journal,
        events: OrderEvents,
    ) -> None:
        self._ports = ports
        self._settings = settings
        self._steps = steps
        self._queue = queue
        self._choice = choice
        self._condition = condition
        self._cleaner = cleaner
        self._journal = journal
        self._events = events
        self._place: Place | None = None
        self._out_since: float | None = None
        """Since when, after the order's last progress, the CA has been out of reach."""
        self._failures = 0

    @property
    def order(self) -> Order:
        """The order as it durably is."""
        return self._journal.order

    async def run(self, begin: Callable[[], None]) -> None:
        """Wait for the order's turn, call `begin`, and work until the order has ended and its records are removed.

        A cancellation parks the order, but lets the storing of an issued certificate finish.
        """
        if not self.order.state.is_open:  # somebody else has ended it while it was stopped: no turn is needed
            await self._go_on(self._ports.clock.monotonic())
            return
        started = None
        while True:
            async with self._queue.turn(self._steps.lane) as self._place:
                if started is None:
                    begin()
                    started = self._ports.clock.monotonic()
                    await self._journal.refresh()
                self._steps.deadline = self._ports.clock.monotonic() + self._settings.order_time_limit.total_seconds()
                try:
                    await self._go_on(started)
                except _IssuerChangedError:
                    self._steps.lane = self._steps.find_lane()
                else:
                    return

    async def _go_on(self, started: float) -> None:
        """Work until the order has ended; its place at the CA is kept until its records are removed."""
        while self.order.state.is_open:
            with suppress(OrderEndedError):
                await self._try_on()
        reason = self.order.error.reason.value if self.order.error is not None else OrderState.ISSUED.value
        spent = timedelta(seconds=self._ports.clock.monotonic() - started)
        self._ports.meter.observe(metrics.ORDER_DURATION, spent, reason=reason)
        self._ports.meter.count(metrics.ORDERS_ENDED, profile=self.order.profile, reason=reason)
        self._condition.order_ended(self.order)
        if self.order.state is OrderState.ISSUED:
            self._choice.works(self.order.issuer)
        await self.clean_up()

    async def refresh(self) -> None:
        """Read the order anew: somebody else may have ended it."""
        await self._journal.refresh()

    async def fail(self, refusal: Refusal) -> None:
        """End the order for a reason that lies outside of it, and remove its records."""
        await self._end(End(refusal, pause_before_new_order(refusal)), left_open=bool(self.order.acme_order_url))
        await self.clean_up()

    async def clean_up(self) -> None:
        """Remove the records of an ended order; those that can't be removed stay journalled."""
        records = self.order.txt_records
        if not records:
            return
        with self._steps.step("remove"):
            left = await self._cleaner.remove(self.order)
        if left != records:
            with self._steps.step("journal_removed"):
                await self._journal.write(OrderChange(txt_records=left))

    async def _try_on(self) -> None:
        """One step, and what follows from its failure."""
        state = self.order.state
        self._steps.asked_at = self._ports.clock.monotonic()
        try:
            await self._steps.advance()
        except OrderOverError as over:
            await self._end(over.end, left_open=over.left_open, unaccounted=over.unaccounted)
        except IssuerSuspectedError as suspected:
            await self._move(suspected.issuer, suspected.refusal)
        except RefusalError as error:
            if error.refusal.reason is not Reason.ISSUER_UNAVAILABLE or isinstance(error, StillValidatingError):
                self._out_since = None
            elif self._out_since is None:
                self._out_since = self._steps.asked_at
            await self._after_failure(error.refusal)
        if self.order.state is not state:
            self._failures = 0
            self._out_since = None

    async def _after_failure(self, refusal: Refusal) -> None:
        self._steps.forget()
        self._failures += 1
        self._ports.meter.count(metrics.STEP_FAILURES, reason=refusal.reason.value)
        verdict = conclude(
            refusal,
            failures=self._failures,
            time_left=self._steps.time_left,
            backoff=self._settings.retry,
            rng=self._ports.rng,
        )
        # Stuck after the finalisation is what a person should see: nothing but the CA can end it.
        stuck = isinstance(verdict, End) and self.order.state is OrderState.FINALIZING
        news = self._journal.tell(f"{refusal.reason}: {refusal.message}")
        level = logging.WARNING if stuck else logging.INFO
        logger.log(
            level if news else logging.DEBUG,  # once for each cause, not with each try
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
            self._steps.ending = None
            self._hold(refusal, verdict.wait)
            await self._ports.clock.sleep(verdict.wait)
        elif self.order.state is OrderState.FINALIZING:
            # The CA may have the CSR: what it says when it is looked at again decides, however long that takes.
            self._steps.ending = verdict
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
        profile = self._steps.profile
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
        issuer = self._steps.next_issuer(profile)
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
        self._ports.meter.count(metrics.FAILOVERS, issuer=order.issuer, reason=refusal.reason.value)
        self._hold(refusal, pause_before_new_order(refusal))
        self._steps.left |= {order.issuer}
        self._failures = 0
        self._steps.forget()
        self._out_since = None
        events = []
        if order.acme_order_url:
            events.append(self._events.abandoned(order.acme_order_url, refusal.message))
            self._ports.meter.count(metrics.ORDERS_ABANDONED)
        events.append(self._events.failed_over(issuer, refusal))
        await self._journal.write(OrderChange(issuer=issuer, acme_order_url=""), events)
        raise _IssuerChangedError

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
            self._ports.meter.count(metrics.ORDERS_ABANDONED)
        if not is_told(error):
            pause = cap_pause(pause, await self._life_left())
        retry_time = self._ports.clock.now() + pause
        await self._journal.write(
            OrderChange(state=OrderState.FAILED, error=error, retry_time=retry_time, block_key=unaccounted), events
        )

    def _until_any_issuer(self, end: End) -> tuple[Refusal, timedelta]:
        """What is told, and when a new order may follow: as soon as another of the profile's issuers can be asked.

        A limit of the issuer that was asked last, days long, must not keep the order from the first one that was away
        for minutes.
        """
        profile = self._steps.profile
        if profile is None or not fails_over(end.refusal):
            return end.refusal, end.pause
        others = [issuer for issuer in self._ports.issuers_of(profile) if issuer != self.order.issuer]
        if not others:
            return end.refusal, end.pause
        wait = self._choice.wait(others, self.order.dns_names, profile.acme_profile, self._ports.clock.now())
        pause = min(end.pause, max(wait, _SHORTEST_PAUSE))
        return (end.refusal if pause == end.pause else replace(end.refusal, retry_after=pause)), pause

    async def _life_left(self) -> timedelta | None:
        """Of the certificate that the order was to take the place of; None if there is none, or it can't be read."""
        order = self.order
        try:
            newest = await self._ports.certificates.list_certificates(
                CertificateQuery(order.identity, profile=order.profile, limit=1)
            )
        except RefusalError:
            return None
        return newest[0].not_after - self._ports.clock.now() if newest else None

    def _hold(self, refusal: Refusal, wait: timedelta) -> None:
        """Keep everybody whom the refusal concerns from asking the CA for the same answer."""
        scopes = scopes_of(refusal)
        if not scopes:
            return
        until = self._ports.clock.now() + wait
        if not self._queue.hold(self._steps.lane, scopes, until, refusal):
            return
        concerned = " ".join(map(str, scopes))
        fields = {"order_id": self.order.order_id, "issuer": self.order.issuer, "scope": concerned}
        fields["until"] = f"{until:%Y-%m-%dT%H:%M:%SZ}"
        logger.warning("the CA is not asked again for a while: %s", refusal.message, extra={"fields": fields})
