"""Keeps one lineage renewed: the plan says what to do, and that is done, again and again.

Deciding is `certplane.agent.renewal`'s, pure; here are the acts and their bookkeeping: the status is saved before and
after each, so that an end at any point is taken up by the next start. An error never leaves: it becomes the status, the
log line and the waiting time before the next try.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from dataclasses import replace
from datetime import datetime, timedelta

from certplane.agent.acting import Activates, Requester
from certplane.agent.faults import as_error
from certplane.agent.lineage import Lineage, OrderUnderWayError
from certplane.agent.model import LineageStatus, Version
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.renewal.failures import failure_of, is_final_for_key
from certplane.agent.renewal.plan import (
    Activate,
    Plan,
    Request,
    Verify,
    Wait,
    newest_version,
    next_step,
    pause,
    pause_after_issue,
)
from certplane.agent.renewal.status import (
    is_well,
    planned,
    request_failed,
    request_succeeded,
    requesting,
    revoked,
)
from certplane.agent.renewal.waiting import LEAST_WAIT
from certplane.agent.settled import Settled
from certplane.agent.spans import install_span, note_renewal, renewal_span
from certplane.errors import CertplaneError, RefusalError
from certplane.fleet_report.model import CertificateState
from certplane.runtime import tracing
from certplane.runtime.clock import Clock
from certplane.runtime.finishing import uninterrupted
from certplane.runtime.progress import Progress

_AFTER_DISK_ERROR = timedelta(minutes=1)
_AFTER_FAULT = timedelta(minutes=5)
_JUMP = timedelta(minutes=1)
"""From the monotonic clock, before a wall clock counts as set. Less is NTP at work, and rounding."""
_MOST_STEPS = 9
"""Of one `settle`: request, activation, a look and a few repetitions. More would be a plan that contradicts itself."""

logger = logging.getLogger(__name__)


class LineageRunner:
    """Carries out a lineage's plan, one step at a time.

    Args:
        lineage: the lineage.
        requester: gets its next certificate.
        activator: puts a version in force.
        clock: for all times.
        rng: spreads the waiting times.
        progress: told each step.
    """

    def __init__(
        self,
        lineage: Lineage,
        *,
        requester: Requester,
        activator: Activates,
        clock: Clock,
        rng: random.Random,
        progress: Progress,
    ) -> None:
        self._lineage = lineage
        self._requester = requester
        self._activator = activator
        self._clock = clock
        self._rng = rng
        self._progress = progress
        self._requesting = False
        self._woken = asyncio.Event()
        self._forced = False
        self._at_once = False
        self._released = False
        self._again_at: float | None = None
        self._forgiven_at = -math.inf
        self._unseen = True
        self._last: tuple[datetime, float] | None = None
        self._revoked: set[str] = set()
        self._settled = Settled(lineage.name)
        self.trace = ""  # the context of the last renewal's span, for what becomes of it

    @property
    def name(self) -> str:
        """The lineage's name."""
        return self._lineage.name

    async def run(self) -> None:
        """Live until cancelled; errors are logged and waited out."""
        try:
            await self._live()
        finally:
            self._settled.end()

    async def _live(self) -> None:
        requested = False
        while True:
            forced, self._forced = self._forced, False
            at_once, self._at_once = self._at_once, False
            try:
                plan, status = await self._advance(forced=forced, at_once=at_once)
                span = pause(plan, self._clock.now())
            except CertplaneError as error:  # the status itself can't be read or written
                logger.error("%s: %s", self.name, error)  # noqa: TRY400 - a traceback says nothing more
                self._settled.settle(error)
                span = _AFTER_DISK_ERROR
            except Exception as error:  # noqa: BLE001 - a bug must not end the other lineages
                self._settled.settle(as_error(self.name, error))
                span = _AFTER_FAULT
            else:
                if isinstance(plan.step, Activate) and requested:
                    span = pause_after_issue(self._lineage.spec, plan.step.version, self._clock.now())
                requested = isinstance(plan.step, Request)
                if span > timedelta() and not (self._forced or self._at_once):
                    self._settled.settle(status)
            if self._again_at is not None:
                span = min(span, max(timedelta(seconds=self._again_at - self._clock.monotonic()), timedelta()))
            if span > timedelta():
                await self._sleep(span)

    async def settle(self, *, forced: bool = False, at_once: bool = False) -> LineageStatus:
        """Do all that is due now, then return; instead of `run`, for a program that ends.

        What `try_again` has asked for is done at once, however it was to be spread.

        Args:
            forced: Request a new certificate whatever the dates say.
            at_once: Use what is on disk, whatever it waits for.

        Raises:
            CertplaneError: the status can't be read or written, or a bug.
        """
        if self._again_at is not None:
            self._again_at = self._clock.monotonic()
        try:
            return await self._settle(forced=forced, at_once=at_once)
        except Exception as error:
            told = as_error(self.name, error)
            if told is error:
                raise
            raise told from error

    async def _settle(self, *, forced: bool, at_once: bool) -> LineageStatus:
        requested = False
        for number in range(_MOST_STEPS):
            plan, status = await self._advance(forced=forced, at_once=at_once)
            forced = at_once = False
            match plan.step:
                case Wait() as wait:
                    if number == 0 and not is_well(status):
                        self._still_ill(wait, status)
                    return status
                case Request():
                    requested = True
                    if status.state is CertificateState.REQUESTING:
                        return status  # still under way at the broker
                case Activate():
                    if requested:  # what is due again at once has too short a life; the next run goes on
                        return status
        raise RuntimeError(f"the plan of {self.name} does not terminate")

    async def renew_now(self) -> LineageStatus:
        """Make the lineage renew now while `run` is at work, and wait until it has nothing more to do at once.

        Raises:
            CertplaneError: the status can't be read or written, or the agent ends.
        """
        self._forced = True
        return await self._settled_next()

    async def activate_now(self) -> LineageStatus:
        """Have the lineage use what is on disk, whatever it waits for; else as `renew_now`."""
        self._at_once = True
        return await self._settled_next()

    async def _settled_next(self) -> LineageStatus:
        settled = self._settled.wait()
        self._woken.set()
        return await settled

    def release(self) -> None:
        """What is on disk may be held back no longer: plan anew."""
        self._released = True
        self._woken.set()

    def try_again(self, *, after: timedelta = timedelta()) -> None:
        """What made requests fail is gone: don't wait out our own patience (a time that a CA named still counts).

        Args:
            after: When to try, so that hosts that hear of it together don't come together. Who says so again and again
                is heard once in `LEAST_WAIT`.
        """
        at = max(self._clock.monotonic() + after.total_seconds(), self._forgiven_at + LEAST_WAIT.total_seconds())
        self._again_at = at if self._again_at is None else min(self._again_at, at)
        self._woken.set()

    def note_revoked(self, certificate_id: str) -> None:
        """A version that a newer one is to follow was revoked: it is left at once, and nothing goes back to it."""
        self._revoked.add(certificate_id)
        self._woken.set()

    @property
    def wants_again(self) -> bool:
        """Whether `try_again` was asked for, or a version was revoked or released, and nothing was planned since."""
        return self._again_at is not None or bool(self._revoked) or self._released

    @property
    def is_requesting(self) -> bool:
        """Whether a request is under way."""
        return self._requesting

    def wake(self) -> None:
        """Something on disk has changed: plan anew."""
        self._woken.set()

    async def _advance(self, *, forced: bool, at_once: bool) -> tuple[Plan, LineageStatus]:
        """Plan, and take the one step; returns the status after it."""
        now = self._clock.now()
        self._released = False
        facts = await self._facts(now, at_once=at_once)
        if self._again_at is not None and self._again_at <= self._clock.monotonic():
            self._again_at, self._forgiven_at = None, self._clock.monotonic()
            facts = replace(facts, status=replace(facts.status, next_attempt_time=None))
        known = facts
        if self._unseen:  # whatever an earlier process saw: what is served now?
            known = replace(facts, status=replace(facts.status, next_verify_time=None))
        plan = next_step(self._lineage.spec, known, now, forced=forced, at_once=at_once)
        status = planned(facts.status, plan, now)
        if status is not facts.status:
            await self._lineage.save(status)
            if isinstance(plan.step, Wait) and plan.step.why:
                logger.warning("%s: not renewed yet: %s", self.name, plan.step.why)
        if plan.overdue:
            logger.warning("%s: its renewal is overdue; last error: %s", self.name, status.last_error or "none")
        match plan.step:
            case Request():
                status = await self._request(plan.step, facts, status)
            case Activate(version):
                self._progress.step(self.name, f"installing version {version.number}")
                status = replace(status, activated_settings=self._lineage.spec.asked.settings)
                status = await uninterrupted(self._activate(version, status))
            case Verify():
                self._unseen = False
                status = await self._activator.verify(plan.step, status)
                if status.verify_error:
                    self._progress.failed(self.name, status.verify_error)
        return plan, status

    async def _facts(self, now: datetime, *, at_once: bool) -> LineageFacts:
        """What is on disk, its waits moved along where the wall clock was set since the last look."""
        if at_once:
            await self._lineage.disk.run(self._lineage.release, now)
        monotonic = self._clock.monotonic()
        last, self._last = self._last, (now, monotonic)
        jump = timedelta() if last is None else (now - last[0]) - timedelta(seconds=monotonic - last[1])
        if abs(jump) < _JUMP:
            jump = timedelta()
        else:
            logger.warning(
                "%s: the clock was set by %.0f s; its wait times move with it", self.name, jump.total_seconds()
            )
        await self._lineage.disk.run(self._lineage.settle_waits, now, jump)
        facts = await self._lineage.facts(now)
        return await self._without_revoked(facts, now) if self._revoked else facts

    async def _without_revoked(self, facts: LineageFacts, now: datetime) -> LineageFacts:
        """The facts with the versions marked that `note_revoked` has told of: durable, so that a restart knows too."""
        noted, status = set(self._revoked), facts.status
        for version in facts.versions:
            if version.certificate_id in noted and version.number not in status.revoked_versions:
                status = revoked(status, version.number, now)
                if facts.current is not None and facts.current.number == version.number:
                    logger.warning(
                        "%s: version %d is in use and was revoked; the newer one takes its place at once",
                        self.name,
                        version.number,
                    )
                    status = replace(status, next_activation_time=None)
        if status is not facts.status:
            facts = replace(facts, status=await self._lineage.save(status))
        self._revoked -= noted
        return facts

    async def _request(self, request: Request, facts: LineageFacts, status: LineageStatus) -> LineageStatus:
        with renewal_span(self.name, request) as span:
            self.trace = tracing.context()
            return note_renewal(span, await self._make_request(request, facts, status))

    async def _make_request(self, request: Request, facts: LineageFacts, status: LineageStatus) -> LineageStatus:
        self._progress.step(self.name, f"requesting: {request.reason}")
        logger.info("%s: requesting a certificate: %s", self.name, request.reason)
        asked = self._lineage.spec.asked
        status = replace(
            requesting(status, request.reason, self._clock.now()),
            asked_request=asked.request,
            asked_settings=asked.settings,
        )
        status = await self._lineage.save(status)
        try:
            if self._lineage.trial is not None and (facts.pending is None or not facts.pending.order_id):
                # one that can't be installed would be wasted: a public CA issues few a week
                await self._lineage.disk.run(self._lineage.trial.try_install)
            if request.abandon_pending:
                await self._lineage.disk.run(self._lineage.keys.abandon)
            self._requesting = True
            try:
                version = await self._requester(request)
            finally:
                self._requesting = False
        except OrderUnderWayError as error:
            logger.log(logging.INFO if error.expected else logging.WARNING, "%s: %s", self.name, error)
            self._progress.failed(self.name, str(error))
            return await self._lineage.disk.run(self._lineage.statuses.load) or status  # it says what is waited for
        except Exception as error:  # noqa: BLE001 - as in `run`: it waits as any failure does
            return await self._request_failed(as_error(self.name, error), facts, status)
        succeeded = request_succeeded(status, version, self._clock.now(), directed=request.directed)
        return await self._lineage.save(succeeded)

    async def _request_failed(self, error: CertplaneError, facts: LineageFacts, status: LineageStatus) -> LineageStatus:
        now = self._clock.now()
        failure = failure_of(error, now, getattr(error, "retry_time", None))
        if isinstance(error, RefusalError) and is_final_for_key(error.refusal):
            await self._lineage.disk.run(self._lineage.keys.abandon)
        failed = request_failed(status, failure, now, self._rng, newest_version(facts.versions))
        told = error.refusal.request_id if isinstance(error, RefusalError) else ""
        logger.error(
            "%s: no certificate: %s; next try at %s",
            self.name,
            failure.message,
            _text(failed.next_attempt_time),
            extra={"fields": {"request_id": told} if told else {}},
        )
        self._progress.failed(self.name, failure.message)
        return await self._lineage.save(failed)

    async def _activate(self, version: Version, status: LineageStatus) -> LineageStatus:
        with install_span(self.name, self.trace) as span:
            result = await self._activator.activate(version, status)
            if result.error:
                span.failed("install")
                self._progress.failed(self.name, result.error)
            else:
                self._progress.done(self.name, f"version {version.number} is in use until {_text(version.not_after)}")
        return result.status

    def _still_ill(self, wait: Wait, status: LineageStatus) -> None:
        """Nothing was tried, since what failed before waits for its time: say so once more."""
        text = wait.why or f"{status.last_error or 'it'} ({self._waiting(wait)})"
        logger.error("%s: %s", self.name, text)
        self._progress.failed(self.name, text)

    def _waiting(self, wait: Wait) -> str:
        """Until when, whose word that is, and what a person can do."""
        if wait.by_issuer:
            return f"the CA named {_text(wait.until)}: no request before"
        if self._lineage.directive is None:  # the identity's, which nobody renews by hand
            return f"waits until {_text(wait.until)}"
        return f"waits until {_text(wait.until)}; `certplane-agent renew {self.name}` tries now"

    async def _sleep(self, span: timedelta) -> None:
        """Until `span` is over or somebody wakes this lineage."""
        sleep = asyncio.ensure_future(self._clock.sleep(span))
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait([sleep, woken], return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            woken.cancel()
            self._woken.clear()


def _text(time: datetime | None) -> str:
    return "once the cause is gone" if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"
