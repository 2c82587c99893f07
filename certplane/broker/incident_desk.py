"""Incidents, put together for `app`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from typing_extensions import override

from certplane.broker.events import AuditTrail
from certplane.broker.fleet.index import FleetIndex
from certplane.broker.incidents.known import KnownIncidents
from certplane.broker.incidents.model import Incident
from certplane.broker.incidents.ports import RolloutStarter, Started
from certplane.broker.incidents.watch import IncidentWatch
from certplane.broker.incidents.words import trouble
from certplane.broker.model import ChangeKind
from certplane.broker.notify.model import OwnTrouble
from certplane.broker.notify.watch import LookAtSelf
from certplane.broker.ports import Meter, PolicySource
from certplane.broker.prepared import Prepared
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.rollouts.desk import RolloutDesk
from certplane.broker.standing_rules import IncidentRules
from certplane.broker.store import Stores
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.text import printable

_MOST_TEXT: Final = 500
"""Octets of a rollout's reason, as in the proto."""


class RolloutsOfIncidents(RolloutStarter):
    """`RolloutStarter` at a broker's own desk."""

    def __init__(self, desk: RolloutDesk) -> None:
        self._desk = desk

    @override
    async def under_way(self, certificate_ids: Sequence[str]) -> Mapping[str, str]:
        return await self._desk.under_way(certificate_ids)

    @override
    async def start(self, incident: Incident, certificate_ids: Sequence[str], request_id: str) -> Started:
        reason = f"{incident.issuer} wants it replaced (incident {incident.incident_id})"
        if incident.explanation_url:
            reason = f"{reason}: {incident.explanation_url}"
        rollout, begun_for = await self._desk.start_for_incident(
            incident.incident_id, certificate_ids, request_id, printable(reason, _MOST_TEXT), incident.deadline
        )
        return Started(rollout.rollout_id, begun_for)


def incident_watch(
    stores: Stores,
    index: FleetIndex,
    plans: RenewalPlans,
    prepared: Prepared,
    *,
    rollouts: RolloutDesk | None = None,
    clock: Clock,
    meter: Meter,
    trail: AuditTrail,
) -> IncidentWatch:
    """What looks for incidents, woken by what CAs do to plans; it is to be run."""
    known = KnownIncidents(stores.incidents)
    stores.changes.follow(ChangeKind.INCIDENT, known, what="incidents")
    watch = IncidentWatch(
        store=stores.incidents,
        index=index,
        known=known,
        rules=_rules(prepared.policy),
        rollouts=None if rollouts is None else RolloutsOfIncidents(rollouts),
        keep=prepared.settings.store.keep.span,
        clock=clock,
        meter=meter,
        trail=trail,
    )
    plans.subscribe(watch.plans_changed)
    plans.subscribe_unknown(watch.plans_unknown)
    return watch


def _rules(policies: PolicySource) -> Callable[[], IncidentRules]:
    def rules() -> IncidentRules:
        try:
            return policies.current.incidents
        except RefusalError:  # no policy was ever loaded
            return IncidentRules()

    return rules


def also_of_incidents(look: LookAtSelf, known: KnownIncidents) -> LookAtSelf:
    """What `look` finds, and what incidents are open: for those who are notified."""

    def look_at_all() -> Sequence[OwnTrouble]:
        return [*look(), *map(trouble, known.open)]

    return look_at_all
