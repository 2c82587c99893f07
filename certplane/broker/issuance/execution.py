"""One order's run to its end: step after step (`steps`), and what follows from what each returns.

The order's row says where to go on, so that a start after a crash and a try after a failed step are the same code: look
at the CA's order, then do what its state and ours ask for.

- FINALIZING is durable before the CSR is sent, and from then on only the CA's word ends the order: as long as it can't
  be asked, or says "processing", it is asked again. `ready` means that it never got the CSR. An order that it does not
  know any more is FAILED, never silently done again. Where it may have issued what isn't stored, that blocks the key:
  no key ever gets a second certificate.
- Before that, an order that the CA lost or that somebody else finalised is abandoned, which is counted, and another is
  made; and an order whose issuer is out goes on at the next one of its profile (`failover`).
- Without a place within its CA's limits an order waits, without its turn (`budgeting`), or goes to the next issuer.
- All that let the order in (`authorisation`) is asked again before the CA is asked for anything, and right before the
  finalisation.
- A cancellation parks the order: nothing is undone, the next start goes on.
"""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime, timedelta
from functools import partial

from certplane.broker import metrics
from certplane.broker.events import AuditEvent
from certplane.broker.issuance.budgeting import limit_refusal
from certplane.broker.issuance.events import OrderEvents
from certplane.broker.issuance.flights import Flight
from certplane.broker.issuance.journal import Journal, OrderEndedError, OrderTakenError
from certplane.broker.issuance.order_context import OrderContext
from certplane.broker.issuance.outcome import (
    SHORT_RATE_LIMIT,
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
from certplane.broker.issuance.progress import TURN, cut
from certplane.broker.issuance.queue import Place
from certplane.broker.issuance.step_outcome import Abandoned, Elsewhere, Failed, Outcome, OutOfBudget, Over
from certplane.broker.issuance.steps import OrderSteps
from certplane.broker.issuance.tenure import LeaseLostError
from certplane.broker.model import Order, OrderState
from certplane.broker.ports import OrderChange
from certplane.errors import Reason, Refusal, RefusalError

logger = logging.getLogger(__name__)

_MOST_ABANDONED = 3
"""ACME orders that one order may give up before it fails: a CA that loses each one would get new ones without end."""

_CHECKED_FOR = timedelta(minutes=10).total_seconds()
"""What was looked at before an order isn't looked at again by one that has waited for a place for less."""


class OrderExecution:
    """Takes one order to its end. Used once, by one task."""

    def __init__(self, context: OrderContext, journal: Journal, events: OrderEvents, flight: Flight) -> None:
        self._context = context
        self._ports = context.ports
        self._settings = context.settings
        self._journal = journal
        self._events = events
        self._flight = flight
        self._lane = context.lane_of(journal.order)
        self._started: float | None = None
        self._left: frozenset[str] = frozenset()
        """Issuers that the order has failed at."""
        self._abandoned = 0
        self._failures = 0
        self._logged = ""
        """Why the last step that failed did, as the log has it."""
        self._out_since: float | None = None
        """Since when, after the order's last progress, the CA has been out of reach."""
        self._lacks: OutOfBudget | None = None
        """Why the order waits for places within its CA's limits."""
        self._counted: frozenset[str] = frozenset()
        """Issuers that have refused the order by a limit: it takes places there, whatever it is exempt from."""
        self._short: dict[str, datetime] = {}
        """When each issuer that had no place has one, of those that were asked since the order waited last."""
        self._checked: tuple[str, float] | None = None
        """At which issuer what can be known before an order was looked at last, and when (monotonic)."""
        self._ending: End | None = None
        """In FINALIZING: how the order ends if the CA turns out not to have the CSR."""

    @property
    def order(self) -> Order:
        """The order as it durably is."""
        return self._journal.order

    async def run(self) -> None:
        """Wait for the order's turn, and work until the order has ended and its records are removed.

        A cancellation parks the order, but lets the storing of an issued certificate finish.
        """
        if self._flight.stopped:
            await self._journal.refresh()
        if not self.order.state.is_open:  # somebody else has ended it: no turn is needed
            await self._finish()
            return
        moved = True
        while moved:
            if self._lacks is not None:
                await self._wait_for_places(self._lacks)
            self._lane = self._context.lane_of(self.order)
            async with self._turn() as place:
                self._flight.begun = True
                if self._started is None:
                    self._started = self._ports.clock.monotonic()
                    if not self._ports.lease.shared:  # else its row was read when it got its turn
                        await self._journal.refresh()
                moved = await self._work(place)
                if not moved:
                    await self._finish()  # its turn lasts until its records are removed

    def _turn(self) -> AbstractAsyncContextManager[Place]:
        queue, waits = self._context.queue, self._journal.begin
        if self._ports.lease.shared and self.order.turn_time is not None:
            # Of a broker that has gone: here it must not queue behind those that wait for its end.
            waits(TURN)
            return queue.place()
        others = partial(self._context.lanes.take, self._journal, self._lane)
        return queue.turn(self._lane, others=others, waits=waits)

    async def _wait_for_places(self, out: OutOfBudget) -> None:
        """Without its turn, as long as the CA's limits have no place for the order: others go on."""
        self._lacks = None
        self._flight.begun = False
        await self.leave_lane()
        await self._context.budget.wait(self._journal, out)
        await self._journal.refresh()

    async def fail(self, refusal: Refusal) -> None:
        """End the order for a reason that lies outside of it, and remove its records."""
        await self._end(Over(End(refusal, pause_before_new_order(refusal)), left_open=bool(self.order.acme_order_url)))
        await self.clean_up()

    async def clean_up(self) -> None:
        """Remove the records of an ended order; those that can't be removed stay journalled, and keep no others out."""
        try:
            await self._remove_records()
        except (OrderTakenError, LeaseLostError):
            raise  # whoever has the order next has its turn too
        except Exception:
            await self.leave_lane()
            raise
        await self.leave_lane()

    async def _remove_records(self) -> None:
        records = self.order.txt_records
        if not records:
            return
        with self._context.step(self._journal, "remove"):
            left = await self._context.records.remove(self._journal)
        if left != records:
            with self._context.step(self._journal, "journal_removed"):
                await self._journal.write(OrderChange(txt_records=left))

    async def leave_lane(self) -> None:
        """Let other brokers' orders of the same names go on."""
        if self.order.lane is not None:
            await self._journal.leave_lane()

    async def _work(self, place: Place) -> bool:
        """Work at the order's issuer until the order has ended; or return True, since it goes on at another one."""
        deadline = self._ports.clock.monotonic() + self._settings.time_limit(self.order.issuer).total_seconds()
        now, issuer = self._ports.clock.monotonic(), self.order.issuer
        checked = self._checked is not None and self._checked[0] == issuer and now - self._checked[1] < _CHECKED_FOR
        steps = OrderSteps(
            self._context,
            self._journal,
            self._events,
            lane=self._lane,
            deadline=deadline,
            left=self._left,
            checked=checked,
            counted=issuer in self._counted,
        )
        self._checked = self._checked if checked else (issuer, now)
        while self.order.state.is_open:
            state = self.order.state
            with suppress(OrderEndedError):
                outcome = await steps.advance(self._ending)
                if await self._act_on(outcome, steps.time_left, place):
                    return True
            if self.order.state is not state:
                self._failures = 0
                self._logged = ""
                self._out_since = None
        return False

    async def _act_on(self, outcome: Outcome, time_left: timedelta, place: Place) -> bool:
        """Do what follows from a step's outcome; whether the order goes on at another issuer."""
        match outcome:
            case Over():
                await self._end(outcome)
            case Abandoned():
                await self._abandon(outcome)
            case Elsewhere():
                await self._move(outcome)
                return True
            case OutOfBudget():
                return await self._without_places(outcome)
            case Failed():
                return await self._after_failure(outcome, time_left, place)
        return False

    async def _without_places(self, out: OutOfBudget) -> bool:
        """Go on at another issuer, if there is one; else wait, without its turn. True: not here and now."""
        if out.refused:
            self._counted |= {self.order.issuer}
        self._short[self.order.issuer] = out.shortage.expected_time
        refusal = limit_refusal(out.shortage, self._ports.clock.now())
        profile = self._ports.profile_of(self.order)
        if profile is not None and (refusal.retry_after or SHORT_RATE_LIMIT) > SHORT_RATE_LIMIT:
            issuer = self._context.next_issuer(self.order, profile, self._left)
            issuer = issuer or self._context.sooner_issuer(self.order, profile, self._left, self._short)
            if issuer:  # the ledger knows when this one may be asked again: nothing is held
                await self._move(Elsewhere(issuer, refusal), hold=False)
                return True
        self._lacks, self._short = out, {}
        return True

    async def _after_failure(self, failed: Failed, time_left: timedelta, place: Place) -> bool:
        refusal = failed.refusal
        if failed.unreached_since is None:
            self._out_since = None
        elif self._out_since is None:
            self._out_since = failed.unreached_since
        self._failures += 1
        self._ports.meter.count(metrics.STEP_FAILURES, reason=refusal.reason.value)
        verdict = conclude(
            refusal, failures=self._failures, time_left=time_left, backoff=self._settings.retry, rng=self._ports.rng
        )
        finalizing = self.order.state is OrderState.FINALIZING
        self._note_failure(refusal, stuck=isinstance(verdict, End) and finalizing)
        issuer = self._next_issuer(refusal, verdict)
        if issuer:
            await self._move(Elsewhere(issuer, refusal))
            return True
        if isinstance(verdict, TryAgain):
            self._ending = None
            await self._hold(refusal, verdict.wait)
            told = is_told(refusal)
            await self._wait(verdict.wait, "the time that the other side has named" if told else "its next try")
        elif finalizing:
            # The CA may have the CSR: what it says when it is looked at again decides, however long that takes.
            self._ending = verdict
            place.leave()
            wait = self._settings.retry.wait(self._failures, self._ports.rng)
            if refusal.retry_after is not None and refusal.reason is not Reason.ISSUER_RATE_LIMITED:
                wait = max(wait, refusal.retry_after)  # a rate limit is on finalising, not on looking
            await self._wait(wait, "the CA, which alone can end it")
        else:
            left_open = bool(self.order.acme_order_url) and refusal.reason is not Reason.ISSUER_REJECTED
            await self._end(Over(verdict, left_open=left_open))
        return False

    async def _wait(self, span: timedelta, what: str) -> None:
        self._journal.note(next_attempt=self._ports.clock.now() + span, wait=what)
        await self._ports.clock.sleep(span)

    def _note_failure(self, refusal: Refusal, *, stuck: bool) -> None:
        """For who looks at the order; and in the log, once for each cause, not with each try.

        Louder where a person should see it: only the CA can end it (`stuck`), or it is the first of all orders to meet
        this trouble of its issuer or DNS provider, which may go on for long.
        """
        trouble = cut(f"{refusal.reason}: {refusal.message}")
        news, self._logged = trouble != self._logged, trouble
        self._journal.note(trouble=trouble, failures=self._failures, next_attempt=None, wait="")
        first = self._context.is_news(self.order, refusal.reason)
        level = logging.WARNING if stuck or first else logging.INFO
        order = self.order
        fields: dict[str, object] = {"order_id": order.order_id, "state": order.state.value, "issuer": order.issuer}
        fields |= {"reason": refusal.reason.value, "failures": self._failures}
        level = level if news else logging.DEBUG
        logger.log(level, "a step of an order failed: %s", refusal.message, extra={"fields": fields})

    def _next_issuer(self, refusal: Refusal, verdict: TryAgain | End) -> str:
        """The issuer that the order should go on at; empty if it stays."""
        profile = self._ports.profile_of(self.order)
        if self.order.state is OrderState.FINALIZING or profile is None or not fails_over(refusal):
            return ""
        if isinstance(verdict, TryAgain):
            if self._out_since is None:
                return ""
            out = timedelta(seconds=self._ports.clock.monotonic() - self._out_since)
            # What the issuer says of its absence counts as much as what was seen of it.
            if out + (refusal.retry_after or timedelta()) < self._settings.failover_after:
                return ""
        issuer = self._context.next_issuer(self.order, profile, self._left)
        if issuer and self._out_since is not None:
            self._context.holds.suspect(self.order.issuer, self._ports.clock.now(), refusal)
        return issuer

    async def _move(self, elsewhere: Elsewhere, *, hold: bool = True) -> None:
        """Go on at another issuer: nothing was finalised here, so that no key gets two certificates."""
        order, refusal = self.order, elsewhere.refusal
        asks_person = classify(refusal) is Consequence.ASK_PERSON  # whom nobody would call while the other one works
        logger.log(
            logging.ERROR if asks_person else logging.WARNING,
            "an order continues at another issuer%s: %s",
            ", a person has to act" if asks_person else "",
            refusal.message,
            extra={"fields": {"order_id": order.order_id, "issuer": order.issuer, "next_issuer": elsewhere.issuer}},
        )
        self._ports.meter.count(metrics.FAILOVERS, issuer=order.issuer, reason=refusal.reason.value)
        if hold:
            await self._hold(refusal, pause_before_new_order(refusal))
        self._left |= {order.issuer}
        self._failures = 0
        self._out_since = None
        self._journal.note(failures=0)
        events = self._abandoning(refusal.message) if order.acme_order_url else []
        events.append(self._events.failed_over(elsewhere.issuer, refusal))
        await self._journal.write(OrderChange(issuer=elsewhere.issuer, acme_order_url=""), events)
        await self._context.budget.never_issued(order)

    async def _abandon(self, abandoned: Abandoned) -> None:
        """Give the CA's order up; another one follows, but not without end."""
        self._abandoned += 1
        if self._abandoned > _MOST_ABANDONED:
            await self._end(Over(End(abandoned.refusal, pause_before_new_order(abandoned.refusal)), counted=True))
        else:
            await self._journal.write(OrderChange(acme_order_url=""), self._abandoning(abandoned.why))

    def _abandoning(self, why: str) -> list[AuditEvent]:
        self._ports.meter.count(metrics.ORDERS_ABANDONED)
        return [self._events.abandoned(self.order.acme_order_url, why)]

    async def _end(self, over: Over) -> None:
        order, refusal = self.order, over.end.refusal
        asks_person = classify(refusal) is Consequence.ASK_PERSON
        if asks_person:
            fields = {"order_id": order.order_id, "profile": order.profile, "reason": refusal.reason.value}
            logger.error("a person has to act: %s", refusal.message, extra={"fields": fields})
        await self._hold(refusal, over.end.pause)
        error, pause = self._context.until_any_issuer(order, over.end)
        events = [self._events.failed(error, order.acme_order_url, alarming=over.unaccounted or asks_person)]
        if over.left_open:
            events += self._abandoning(error.message)
        if not is_told(error):
            pause = cap_pause(pause, await self._life_left())
        change = OrderChange(
            state=OrderState.FAILED,
            error=error,
            retry_time=self._ports.clock.now() + pause,
            block_key=over.unaccounted,
        )
        await self._journal.write(change, events)
        if not over.counted:
            await self._context.budget.never_issued(order)

    async def _finish(self) -> None:
        """The order has ended: tell who measures and who chooses, and remove its records."""
        reason = self.order.error.reason.value if self.order.error is not None else OrderState.ISSUED.value
        now = self._ports.clock.monotonic()
        spent = timedelta(seconds=now - (self._started if self._started is not None else now))
        self._ports.meter.observe(metrics.ORDER_DURATION, spent, reason=reason)
        self._ports.meter.count(metrics.ORDERS_ENDED, profile=self.order.profile, reason=reason)
        self._context.condition.order_ended(self.order)
        if self.order.state is OrderState.ISSUED:
            fields = {"order_id": self.order.order_id}
            self._context.works(
                self.order, lambda subject: logger.info("%s works again", subject, extra={"fields": fields})
            )
            self._context.holds.works(self.order.issuer)
            await self._context.holds.save(self._ports.clock.now())
        await self.clean_up()

    async def _life_left(self) -> timedelta | None:
        """Of the certificate that the order was to take the place of; None if there is none, or it can't be read."""
        try:
            newest = await self._ports.newest_certificate(self.order.identity, self.order.profile)
        except RefusalError:
            return None
        return newest.not_after - self._ports.clock.now() if newest is not None else None

    async def _hold(self, refusal: Refusal, wait: timedelta) -> None:
        """Keep everybody whom the refusal concerns from asking the CA for the same answer: here before anything else.

        What else was found out of the issuer is told the other brokers too.
        """
        holds, now = self._context.holds, self._ports.clock.now()
        scopes, until = scopes_of(refusal), now + wait
        if holds.hold(self._lane, scopes, until, refusal, now):
            concerned = " ".join(map(str, scopes))
            fields = {"order_id": self.order.order_id, "issuer": self.order.issuer, "scope": concerned}
            fields["until"] = f"{until:%Y-%m-%dT%H:%M:%SZ}"
            logger.warning("requests to the CA are paused: %s", refusal.message, extra={"fields": fields})
        await holds.save(now)
