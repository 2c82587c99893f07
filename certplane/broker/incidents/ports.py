"""What incidents need from outside. The rules of `certplane.broker.ports` hold here too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from certplane.broker.events import AuditEvent
from certplane.broker.incidents.model import Incident, Member
from certplane.broker.renewal.model import WindowMove


class IncidentStore(Protocol):
    """The durable incidents, for the one who watches them.

    Every method raises RefusalError: STORE_UNAVAILABLE; then nothing changed.
    """

    async def unassigned(self) -> Sequence[WindowMove]:
        """The windows that were brought forward and belong to no incident, in the order of their certificates' ids.

        However many there are, the event loop is held for a millisecond or two at a time.
        """
        ...

    async def open_incidents(self) -> Sequence[Incident]:
        """Those that have not ended, by their issuers: each has one at most."""
        ...

    async def record(
        self,
        before: Incident | None,
        after: Incident,
        *,
        members: Collection[str] = (),
        events: Sequence[AuditEvent] = (),
    ) -> bool:
        """Put `after` in the place of `before` (None: it begins), durable, in one transaction with all that follows.

        `members` are certificates that belong to it from now on; those that are of another one by now stay there. Where
        it ends, what was withdrawn is its own no longer, so that the CA may begin anew.

        False, and nothing is written, if the incident isn't `before` any more, or one of its id or an open one of its
        issuer is there: another broker was faster.

        Raises:
            RefusalError: AUDIT_UNAVAILABLE too.
        """
        ...

    async def members(self, incident_id: str, after: str, limit: int) -> Sequence[Member]:
        """Its certificates, those behind one, by their ids."""
        ...

    async def forget(self, *, moved_before: datetime, closed_before: datetime) -> None:
        """Drop windows of no incident that were moved before a time, and incidents that ended before another one."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where an incident is in the list."""

    closed: bool
    open_time: datetime
    incident_id: str


def place_of(incident: Incident) -> Place:
    """Where it is: open ones first, then the newest."""
    return Place(incident.close_time is not None, incident.open_time, incident.incident_id)


class IncidentReader(Protocol):
    """The incidents, for those who ask.

    Every method raises RefusalError: STORE_UNAVAILABLE.
    """

    async def get_incident(self, incident_id: str) -> Incident | None:
        """The incident of this id; None if there is none."""
        ...

    async def list_incidents(self, after: Place | None, limit: int, *, open_only: bool = False) -> Sequence[Incident]:
        """The next incidents behind a place, or the first: open ones first, then the newest."""
        ...


class WindowQuestions(Protocol):
    """When CAs are asked about certificates."""

    async def ask_now(self, issuer: str, now: datetime) -> None:
        """Have the CA asked about each certificate of its, though it wasn't time yet. However many there are.

        Raises:
            RefusalError: STORE_UNAVAILABLE; some may be asked about.
        """
        ...


class RolloutMembers(Protocol):
    """Which certificates of an incident were given to a rollout."""

    async def give(self, before: Incident, after: Incident, certificate_ids: Collection[str]) -> bool:
        """Note that a rollout has these certificates, `after.rollout_id`, durable; False as in `IncidentStore.record`.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


@dataclass(frozen=True, slots=True)
class Started:
    """A rollout that answers an incident.

    Attributes:
        rollout_id: Which.
        certificate_ids: The certificates that it was begun for, of those that were named.
    """

    rollout_id: str
    certificate_ids: Collection[str]


class RolloutStarter(Protocol):
    """Whoever runs rollouts."""

    async def under_way(self, certificate_ids: Sequence[str]) -> Mapping[str, str]:
        """Which of these a rollout has already that has begun, whoever began it: its id, by the certificate's.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def start(self, incident: Incident, certificate_ids: Sequence[str], request_id: str) -> Started:
        """Begin a rollout of these certificates under policy's standing rings.

        It renews, and revokes nothing; its deadline is the incident's. A ring that picks none of them is left out: an
        incident may have several rollouts, each of those that were heard of together. Idempotent for one `request_id`:
        asked again, by whichever broker, the rollout that there is, with the certificates that it was begun for.

        Raises:
            RefusalError: it can't begin; the message says why, and what to do.
        """
        ...
