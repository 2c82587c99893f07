"""`IncidentWatch`: looks for incidents and at how far they are, while `run` runs; one broker does it for all.

Rules:

- All that has to be remembered is in the store: another broker that takes the role goes on where this one was. Two that
  look at a time do no harm: what was decided on another version of an incident isn't written.
- What a CA has done is durable with the certificate's plan (`RenewalPlanStore.replace_plan`), so that it is found here
  whichever broker heard of it. While nothing is open, and no plan of a CA changes, nothing is read.
- Once there is an incident its CA is asked about all of its certificates, each once, though it named a later time:
  what it did to them would be heard of over hours else, and nobody could say how many they are.
- With policy's `incidents.rollout: rings` the certificates of an incident are given to a rollout, once no more come for
  a minute, and before their hosts renew by themselves (`planner.PATIENCE`). Those that come later are given to another
  one: what a rollout is for is frozen when it begins. What an operator's rollout has stays there.
- A rollout that can't begin holds nothing up: hosts renew at the planner's pace, as without it, and the incident says
  why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from certplane.broker import metrics
from certplane.broker.events import AuditEvent, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.fleet.index import FleetIndex
from certplane.broker.incidents.detect import TOGETHER, Found, detect, explanation_of, incident_id_of
from certplane.broker.incidents.known import KnownIncidents
from certplane.broker.incidents.model import Figures, Incident, Member
from certplane.broker.incidents.ports import IncidentStore, RolloutMembers, RolloutStarter, WindowQuestions
from certplane.broker.incidents.progress import Sums, member_progress
from certplane.broker.ports import Meter
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.renewal.planner import PATIENCE
from certplane.broker.standing_rules import IncidentRollout, IncidentRules
from certplane.errors import RefusalError
from certplane.fleet_report.model import RenewalCause
from certplane.runtime.clock import Clock
from certplane.runtime.failpoints import failpoint
from certplane.runtime.text import counted, printable

_logger = logging.getLogger("certplane.broker.incidents")

_PAUSE: Final = timedelta(seconds=2)
"""After a look, whatever comes: moves of a whole fleet come one by one."""
_LOOK: Final = timedelta(seconds=15)
"""Between looks at how far an open incident is: what its hosts report says nothing here."""
_TIDY: Final = timedelta(hours=1)
"""Between looks at what is old, and at what may have gone unheard."""
_SHARE: Final = 20
"""A look takes at most this part of the time: an incident of a large fleet is looked at less often."""
_PAGE: Final = 256
"""Certificates that are looked at before others get their turn: one or two milliseconds."""
_MOST_OF_A_DAY: Final = 50
"""Incidents of one issuer and day that can be told apart."""
_SETTLED: Final = timedelta(minutes=1)
"""Without another certificate: then those that wait for a rollout begin one together."""
_LONGEST_GATHERING: Final = PATIENCE / 2
"""They wait no longer for more to come: the other half is for the rollout to begin."""
_FAILED_PAUSE: Final = timedelta(minutes=1)
"""After a rollout that could not begin."""
_MOST_TEXT: Final = 500
"""Octets of why."""
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


class _Store(IncidentStore, WindowQuestions, RolloutMembers, Protocol):
    pass


class IncidentWatch:
    """Looks; for the event loop's thread."""

    def __init__(
        self,
        *,
        store: _Store,
        index: FleetIndex,
        known: KnownIncidents,
        rules: Callable[[], IncidentRules],
        rollouts: RolloutStarter | None,
        keep: timedelta | None,
        clock: Clock,
        meter: Meter,
        trail: AuditTrail,
    ) -> None:
        """Nothing is looked at yet.

        Args:
            store: The incidents.
            index: The fleet.
            known: Learns which incidents are open.
            rules: Of the policy in force.
            rollouts: Who runs them; None where nobody does.
            keep: How long an incident is kept that has ended; None for good.
            clock: The time.
            meter: Gets the figures.
            trail: Makes audit events.
        """
        self._store = store
        self._index = index
        self.known = known
        self._rules = rules
        self._rollouts = rollouts
        self._keep = keep
        self._clock = clock
        self._meter = meter
        self._trail = trail
        self._wake = asyncio.Event()
        self._tidied: datetime | None = None
        self._not_before = 0.0
        """Monotonic: when a rollout may be tried again that could not begin."""

    def plans_changed(self, plans: Iterable[RenewalPlan]) -> None:
        """Look whether plans that have changed are an incident."""
        if any(plan.cause is RenewalCause.ISSUER for plan in plans):
            self._wake.set()

    def plans_unknown(self) -> None:
        """Look: any plan may have changed unheard."""
        self._wake.set()

    async def run(self) -> None:
        """Look until cancelled."""
        said = ""
        while True:
            begun = self._clock.monotonic()
            self._wake.clear()
            try:
                await self.look()
            except RefusalError as error:
                if str(error) != said:
                    _logger.warning("could not look for incidents; will retry: %s", error)
                said = str(error)
                self._wake.set()
            except Exception as error:
                if repr(error) != said:
                    _logger.exception("looking for incidents failed; will retry")
                said = repr(error)
                self._wake.set()
            else:
                said = ""
            spent = timedelta(seconds=self._clock.monotonic() - begun)
            await self._clock.sleep(max(_PAUSE, spent * _SHARE))
            await self._idle(_LOOK if self.known.open or said else _TIDY)

    async def _idle(self, span: timedelta) -> None:
        """Until there may be something to look at."""
        sleeping = asyncio.ensure_future(self._clock.sleep(span))
        woken = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({sleeping, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            woken.cancel()

    async def look(self) -> None:
        """Look once.

        Raises:
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE.
        """
        await self._index.settled()
        rules = self._rules()
        incidents = await self._store.open_incidents()
        for found in detect(await self._store.unassigned(), incidents, rules.at_least):
            await self._take_in(found)
        for incident in await self._store.open_incidents():
            await self._follow(incident, rings=rules.rollout is IncidentRollout.RINGS)
        incidents = await self._store.open_incidents()
        self.known.note(incidents)
        self._show(incidents)
        await self._tidy()

    async def _take_in(self, found: Found) -> None:
        """Make an incident of what was found, or let it join the open one."""
        members = [move.certificate_id for move in found.moves]
        before = found.incident
        if before is not None:
            explanation = explanation_of(found.moves, before.explanation_url)
            after = replace(before, version=before.version + 1, explanation_url=explanation)
            await self._store.record(before, after, members=members)
            return
        now = self._clock.now()
        # First: killed in between, whoever looks next asks again, and no incident is without it.
        await self._store.ask_now(found.issuer, now)
        for number in range(1, _MOST_OF_A_DAY + 1):
            incident = Incident(
                incident_id_of(found.issuer, f"{now:%Y%m%d}", number),
                found.issuer,
                now,
                explanation_url=explanation_of(found.moves),
                figures=Figures(certificate_count=len(members), holder_count=len({move.host for move in found.moves})),
            )
            event = self._opened(incident)
            failpoint("incident.open.before")
            if await self._store.record(None, incident, members=members, events=[event]):
                failpoint("incident.open.after")
                _logger.warning("%s", event.reason, extra=_fields(incident))
                return
            if any(each.issuer == found.issuer for each in await self._store.open_incidents()):
                return  # another broker has seen it
        _logger.error("%s has had %d incidents today; no more are told apart", found.issuer, _MOST_OF_A_DAY)

    async def _follow(self, incident: Incident, *, rings: bool) -> None:
        """Write how far it is, if that is something new, and answer it."""
        now = self._clock.now()
        sums, waiting = Sums(now), list[Member]()
        after_id = ""
        while page := await self._store.members(incident.incident_id, after_id, _PAGE):
            after_id = page[-1].certificate_id
            for member in page:
                progress = member_progress(member, self._index.hosts.get(member.host), now)
                sums.add(member, progress)
                if member.forward and member.in_force and not member.rollout_id:
                    waiting.append(member)
            await asyncio.sleep(0)
        figures = sums.figures()
        over = figures.open_count == 0
        # Why none answers it is said while something waits for one.
        said = incident.trouble if rings and waiting else ""
        after = replace(incident, figures=figures, deadline=sums.deadline, trouble=said)
        if over:
            after = replace(after, close_time=now, deadline=incident.deadline)
        if after != incident:
            after = replace(after, version=incident.version + 1)
            events = [self._closed(after)] if over else []
            if over:
                failpoint("incident.close.before")
            if not await self._store.record(incident, after, events=events):
                return
            if over:
                _logger.info("%s", events[0].reason, extra=_fields(after))
        if rings and waiting and not over and _have_gathered(waiting, now):
            await self._answer(after, [member.certificate_id for member in waiting])

    async def _answer(self, incident: Incident, waiting: Sequence[str]) -> None:
        """Give to a rollout what is in none."""
        if self._rollouts is None or self._clock.monotonic() < self._not_before:
            return
        # An operator's own, halted or not, keeps what it has: a newer one would take it over, in other rings and
        # without its new keys and revocations.
        theirs = await self._rollouts.under_way(waiting)
        for rollout_id in sorted({*theirs.values()}):
            ids = [each for each in waiting if theirs.get(each) == rollout_id]
            after = replace(incident, version=incident.version + 1, rollout_id=rollout_id, trouble="")
            if not await self._store.give(incident, after, ids):
                return
            _logger.info("the rollout %s has certificates of the incident", rollout_id, extra=_fields(after))
            incident = after
        if rest := [each for each in waiting if each not in theirs]:
            await self._begin(incident, rest)

    async def _begin(self, incident: Incident, waiting: Sequence[str]) -> None:
        """Begin a rollout of these."""
        assert self._rollouts is not None, "looked at by whoever calls"
        try:
            number = incident.rollout_count + 1
            failpoint("incident.rollout.before")
            started = await self._rollouts.start(incident, waiting, f"{incident.incident_id}.{number}")
            failpoint("incident.rollout.after")
        except RefusalError as error:
            self._not_before = self._clock.monotonic() + _FAILED_PAUSE.total_seconds()
            trouble = printable(str(error), _MOST_TEXT)
            if incident.trouble != trouble:
                _logger.warning("no rollout answers the incident: %s", error, extra=_fields(incident))
                await self._store.record(incident, replace(incident, version=incident.version + 1, trouble=trouble))
            return
        answered = replace(incident, rollout_id=started.rollout_id, rollout_count=number, trouble="")
        after = replace(answered, version=incident.version + 1)
        # Killed before this is durable, the next look finds the same rollout under way. By the same request it is this
        # one too, and has what it was begun for: not what has come since.
        if await self._store.give(incident, after, started.certificate_ids):
            _logger.info("the rollout %s answers the incident", started.rollout_id, extra=_fields(after))

    def _show(self, incidents: Sequence[Incident]) -> None:
        """Tell the figures, by issuer: each has one that is open at most."""
        certificates: dict[tuple[str, ...], float] = {}
        deadlines: dict[tuple[str, ...], float] = {}
        for incident in incidents:
            figures = incident.figures
            for state, count in (
                ("open", figures.open_count),
                ("in_use", figures.in_use_count),
                ("hurt", figures.hurt_count),
                ("failing", figures.failing_count),
            ):
                certificates[incident.issuer, state] = count
            if incident.deadline is not None:
                deadlines[incident.issuer,] = incident.deadline.timestamp()
        self._meter.level(metrics.INCIDENTS, len(incidents))
        self._meter.table(metrics.INCIDENT_CERTIFICATES, certificates)
        self._meter.table(metrics.INCIDENT_DEADLINE, deadlines)

    async def _tidy(self) -> None:
        now = self._clock.now()
        if self._tidied is not None and self._tidied <= now < self._tidied + _TIDY:
            return
        # Twice the time in which moves count together: clocks may differ.
        closed_before = _LONG_AGO if self._keep is None else now - self._keep
        await self._store.forget(moved_before=now - 2 * TOGETHER, closed_before=closed_before)
        self._tidied = now

    def _opened(self, incident: Incident) -> AuditEvent:
        figures = incident.figures
        reason = (
            f"incident {incident.incident_id}: the CA wants {counted(figures.certificate_count, 'certificate')} of "
        )
        reason += f"{counted(figures.holder_count, 'holder')} replaced sooner"
        if incident.explanation_url:
            reason += f"; explained at {incident.explanation_url}"
        return self._event(AuditEventType.INCIDENT_OPENED, AuditSeverity.WARNING, incident, reason)

    def _closed(self, incident: Incident) -> AuditEvent:
        figures = incident.figures
        reason = f"incident {incident.incident_id} is over: of {counted(figures.certificate_count, 'certificate')} "
        reason += f"{counted(figures.in_use_count, 'has', 'have')} a successor in use"
        more = {
            "put off again by the CA": figures.withdrawn_count,
            "no longer held": figures.gone_count,
            "expired or revoked before": figures.hurt_count,
        }
        reason += "".join(f", {count} {what}" for what, count in more.items() if count)
        severity = AuditSeverity.WARNING if figures.hurt_count else AuditSeverity.INFO
        return self._event(AuditEventType.INCIDENT_CLOSED, severity, incident, reason)

    def _event(
        self, event_type: AuditEventType, severity: AuditSeverity, incident: Incident, reason: str
    ) -> AuditEvent:
        return self._trail.event(
            event_type,
            severity=severity,
            issuer_name=incident.issuer,
            reason=reason,
            selection=f"incident: {incident.incident_id}",
            count=incident.figures.certificate_count,
        )


def _have_gathered(waiting: Sequence[Member], now: datetime) -> bool:
    times = [member.move_time for member in waiting]
    # A clock that was set back: what was heard of in the future has waited long enough.
    return not now - _SETTLED < max(times) <= now or now - min(times) >= _LONGEST_GATHERING


def _fields(incident: Incident) -> dict[str, dict[str, str]]:
    return {"fields": {"incident_id": incident.incident_id, "issuer": incident.issuer}}
