"""`RenewalPlanner`: asks each CA about each certificate in force, when it is time, and makes what it says durable.

Rules:

- All that has to be remembered is in the store: a broker that is started again goes on where the last one was, and so
  does another one. Where several share a database, one of them asks a CA (`watch`), and one tidies up (`tidy`); what
  they plan the others hear of (`RenewalPlans`). Two that ask at a time cost a question: a plan is replaced only if it
  still is the one that was decided about.
- One request a certificate and check, a few at once for each CA; CAs don't wait for each other. A CA that asks for
  patience is asked about nothing until then.
- What was planned while the CA was asked (an operator's request) is read again and planned with, never overwritten.
- A plan that the store doesn't take changes nothing; the certificate stays due.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from certplane.broker import metrics
from certplane.broker.events import AuditEvent, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.model import CertificateRecord
from certplane.broker.ports import Meter, NullMeter, PolicySource
from certplane.broker.renewal.model import (
    DueCheck,
    InForce,
    RenewalInfo,
    RenewalInfoError,
    RenewalInfoUnsupportedError,
    RenewalPlan,
)
from certplane.broker.renewal.planning import LONGEST_WAIT, has_moved, move_of, plan_renewal
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.renewal.ports import RenewalInfoSource
from certplane.broker.standing_rules import IncidentRollout
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

logger = logging.getLogger(__name__)

_LOOK: Final = timedelta(seconds=30)
"""Between looks at what is due: half of the shortest wait that a CA may ask for."""

_TIDY: Final = timedelta(hours=1)
"""Between looks at which plans are of certificates that are gone, and at all that are known."""

_BATCH: Final = 64
"""Certificates that are read at a time."""

_AT_ONCE: Final = 4
"""Questions to one CA under way at once: enough for 100,000 certificates in six hours at 800 ms each."""

_TIMEOUT: Final = timedelta(seconds=20)

_STORE_PAUSE: Final = timedelta(minutes=1)
"""After a plan that couldn't be stored: asking the CA again and again would help nobody."""

PATIENCE: Final = timedelta(minutes=10)
"""How long a certificate that its CA wants replaced now waits for a rollout to take it, where policy wants incidents
answered by rollouts (`incidents.rollout: rings`). Many are heard of one after the other, and whether they are an
incident shows after some of them; a host that is told *now* would renew and use its certificate outside every ring."""

_MOST_TRIES: Final = 3
"""At storing a plan that others change at the same time."""


class RenewalPlanner:
    """Keeps the plans of all certificates in force up to date, while `run`, `tidy` and each issuer's `watch` run."""

    def __init__(
        self,
        plans: RenewalPlans,
        sources: Mapping[str, RenewalInfoSource],
        policies: PolicySource,
        *,
        clock: Clock,
        rng: random.Random,
        trail: AuditTrail,
        meter: Meter | None = None,
    ) -> None:
        """Nothing is asked yet.

        Args:
            plans: what is planned; `refresh` has been awaited.
            sources: by issuer; certificates of others keep their own time.
            policies: for the profiles' `renew_before` of the moment.
            clock: times of the plans, and of the next questions.
            rng: picks the moments, and spreads the questions.
            trail: makes audit events.
            meter: gets the checks by result, and the plans that have moved.
        """
        self._plans = plans
        self._sources = sources
        self._policies = policies
        self._clock = clock
        self._rng = rng
        self._trail = trail
        self._meter = meter or NullMeter()
        self._wake = {issuer: asyncio.Event() for issuer in sources}
        self._held: dict[str, datetime] = {}
        """Until when a CA isn't asked at all."""
        self._left_out: set[str] = set()
        """Certificates that the planner itself failed on, until it is tidied up."""
        plans.subscribe_issued(self._on_issue)

    @property
    def issuers(self) -> Collection[str]:
        """The CAs that can be asked."""
        return self._sources.keys()

    async def run(self) -> None:
        """Read the plans anew each hour, should one have gone unheard, until cancelled."""
        while True:
            await self._clock.sleep(_TIDY)
            self._left_out.clear()
            try:
                await self._plans.refresh()
            except RefusalError as error:
                logger.warning("the renewal plans could not be read again: %s", error)

    def _on_issue(self, certificate: CertificateRecord) -> None:
        if certificate.issuer in self._wake:
            self._wake[certificate.issuer].set()

    async def tidy(self) -> None:
        """Drop the plans of certificates that are gone, now and each hour, until cancelled."""
        while True:
            try:
                await self._plans.tidy(self._clock.now())
            except RefusalError as error:
                logger.warning("the plans of certificates that are gone could not be dropped: %s", error)
            await self._clock.sleep(_TIDY)

    async def watch(self, issuer: str) -> None:
        """Ask one CA about its certificates as they become due, until cancelled.

        Up to `_AT_ONCE` questions are under way: the one that takes long holds up no other.
        """
        source, wake = self._sources[issuer], self._wake[issuer]
        waiting: deque[DueCheck] = deque()
        running: set[str] = set()
        more = False

        async def check(due: DueCheck) -> None:
            certificate = due.certificate
            try:
                await self._check(due, source)
            except Exception:
                # A bug that one certificate brings out must not end the planning of all others.
                logger.exception("could not plan a renewal", extra=_fields(certificate))
                self._left_out.add(certificate.certificate_id)
            finally:
                running.discard(certificate.certificate_id)
                if waiting or more:
                    wake.set()

        async with asyncio.TaskGroup() as group:
            while True:
                wake.clear()
                if self._is_held(issuer):
                    waiting.clear()
                elif not waiting and len(running) < _AT_ONCE:
                    due = await self._due(issuer)
                    waiting.extend(one for one in due if one.certificate.certificate_id not in running | self._left_out)
                    more = len(due) == _BATCH
                else:
                    more = True  # there may be: it was not looked
                while waiting and len(running) < _AT_ONCE:
                    one = waiting.popleft()
                    running.add(one.certificate.certificate_id)
                    group.create_task(check(one))
                await self._idle(wake)

    async def _due(self, issuer: str) -> Sequence[DueCheck]:
        try:
            return await self._plans.to_check(issuer, self._clock.now(), _BATCH)
        except RefusalError as error:
            logger.warning("could not read which renewals are due for a check: %s", error)
            return ()

    async def _idle(self, wake: asyncio.Event) -> None:
        """Until there may be more to do."""
        sleeping = asyncio.ensure_future(self._clock.sleep(_LOOK))
        woken = asyncio.ensure_future(wake.wait())
        try:
            await asyncio.wait({sleeping, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            woken.cancel()

    async def _check(self, due: DueCheck, source: RenewalInfoSource) -> None:
        certificate = due.certificate
        answer: RenewalInfo | RenewalInfoError
        try:
            answer = await source.renewal_info(due.certificate_pem, _TIMEOUT)
        except RenewalInfoError as error:
            answer = error
        self._meter.count(metrics.RENEWAL_CHECKS, issuer=certificate.issuer, result=_result(answer))
        if isinstance(answer, RenewalInfoError):
            self._note_error(certificate, answer)
        try:
            await self._store(certificate, answer)
        except RefusalError as error:
            logger.warning("a renewal plan could not be stored: %s", error, extra=_fields(certificate))
            self._hold(certificate.issuer, _STORE_PAUSE)

    async def _store(self, certificate: InForce, answer: RenewalInfo | RenewalInfoError) -> None:
        current: InForce | None = certificate
        for _ in range(_MOST_TRIES):
            if current is None:  # expired, revoked or replaced meanwhile
                return
            now = self._clock.now()
            plan = plan_renewal(
                current,
                answer,
                renew_before=self._renew_before(current),
                patience=self._patience(),
                now=now,
                rng=self._rng,
            )
            moved = has_moved(current.plan, plan)
            events = [self._moved(current, plan)] if moved else []
            move = move_of(current, plan, now) if isinstance(answer, RenewalInfo) else None
            if await self._plans.replace_plan(current.plan, plan, events, move=move):
                if moved:
                    self._meter.count(metrics.RENEWAL_PLANS_MOVED, issuer=current.issuer)
                    logger.info("the CA has moved a renewal window", extra=_fields(current, plan))
                return
            current = await self._plans.find(certificate.certificate_id, self._clock.now())

    def _renew_before(self, certificate: InForce) -> timedelta | None:
        try:
            profile = self._policies.current.find_profile(certificate.profile)
        except RefusalError:  # no policy was ever loaded
            return None
        return None if profile is None else profile.renew_before

    def _patience(self) -> timedelta:
        try:
            rules = self._policies.current.incidents
        except RefusalError:
            return timedelta()
        return PATIENCE if rules.rollout is IncidentRollout.RINGS else timedelta()

    def _note_error(self, certificate: InForce, error: RenewalInfoError) -> None:
        if isinstance(error, RenewalInfoUnsupportedError):
            return
        logger.info("the CA gave no renewal information: %s", error, extra=_fields(certificate))
        if error.temporary and error.retry_after is not None:
            self._hold(certificate.issuer, min(error.retry_after, LONGEST_WAIT))

    def _hold(self, issuer: str, span: timedelta) -> None:
        until = self._clock.now() + span
        self._held[issuer] = max(until, self._held.get(issuer, until))

    def _is_held(self, issuer: str) -> bool:
        until = self._held.get(issuer)
        # A clock that was set back must not make a short wait a long one.
        return until is not None and self._clock.now() < until <= self._clock.now() + LONGEST_WAIT

    def _moved(self, certificate: InForce, plan: RenewalPlan) -> AuditEvent:
        before = certificate.plan
        assert before is not None
        now = self._clock.now()
        reason = f"renew at {plan.renew_time:%Y-%m-%dT%H:%M:%SZ} instead of {before.renew_time:%Y-%m-%dT%H:%M:%SZ}"
        reason += f": {plan.reason}"
        if plan.window_end is not None and plan.window_end <= now:
            reason += f"; its window has ended at {plan.window_end:%Y-%m-%dT%H:%M:%SZ}"
        if plan.explanation_url:
            reason += f"; explained at {plan.explanation_url}"
        return self._trail.event(
            AuditEventType.RENEWAL_WINDOW_MOVED,
            severity=AuditSeverity.WARNING if plan.renew_time <= now else AuditSeverity.INFO,
            identity=certificate.host,
            profile_name=certificate.profile,
            issuer_name=certificate.issuer,
            certificate_id=certificate.certificate_id,
            reason=reason,
            cert_not_before=certificate.not_before,
            cert_not_after=certificate.not_after,
        )


def _result(answer: RenewalInfo | RenewalInfoError) -> str:
    if isinstance(answer, RenewalInfo):
        return "window"
    if isinstance(answer, RenewalInfoUnsupportedError):
        return "unsupported"
    return "unavailable" if answer.temporary else "unusable"


def _fields(certificate: InForce, plan: RenewalPlan | None = None) -> dict[str, dict[str, str]]:
    fields = {
        "certificate_id": certificate.certificate_id,
        "identity": certificate.host,
        "profile": certificate.profile,
        "issuer": certificate.issuer,
    }
    if plan is not None:
        fields |= {"renew_time": f"{plan.renew_time:%Y-%m-%dT%H:%M:%SZ}", "why": plan.reason}
        fields |= {"explanation_url": plan.explanation_url} if plan.explanation_url else {}
    return {"fields": fields}
