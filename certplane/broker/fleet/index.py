"""The whole fleet in memory: a small value for each host, kept current, so that questions about all cost no read.

Each broker has one, whether or not it leads. A question whose answer shows few hosts picks them here and reads them in
the store (`view`): texts for people aren't kept. Every host of the policy is here, those that never came too; every
host that is recorded though the policy no longer has it; and every service that has a certificate in force, or watches.

What this broker's own hosts do is in it at once. What other brokers record is in it a second or two later.

For the event loop's thread. Values are immutable: a host that changes is another value. Whoever goes through all of
them uses `walk`, which gives others their turn.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from certplane.broker.fleet.facts import CertificateFacts
from certplane.broker.model import IdentityKind
from certplane.fleet_report.model import AgentMode
from certplane.runtime.health import HealthActor, HealthWord


class IndexedCertificate(CertificateFacts, frozen=True, gc=False):
    """A certificate of a host's configuration, or one that was issued to a service, and how bad it is with it.

    Attributes:
        health: How bad it is.
        cause: What causes that, as in `Health`.
        actor: Who can act on it.
        since: Since when it is so, as far as is known; None for OK.
        issuer: Of what is in use, by its name in the broker's configuration; empty where it isn't known.
        public_key_sha256: Of what is in use (SPKI), lower-case hexadecimal; empty where it isn't known.
        superseded: Of a service: whether a newer one of the profile was issued, so that its end is nobody's trouble.
    """

    health: HealthWord = HealthWord.OK
    cause: str = ""
    actor: HealthActor = HealthActor.NOBODY
    since: datetime | None = None
    issuer: str = ""
    public_key_sha256: str = ""
    superseded: bool = False

    @property
    def end(self) -> datetime | None:
        """When the validity of what is in use ends: None if nothing is, or a newer one has taken its place."""
        return None if self.superseded else self.not_after


@dataclass(frozen=True, slots=True)
class IndexedHost:
    """A host, or a service.

    Attributes:
        name: The identity's name.
        label: In the policy; empty when policy no longer has it.
        kind: Host or service.
        connected: Whether it has a stream at any broker; of a service whether it watches its certificates.
        broker_id: The broker that has it.
        connect_time: When its last stream began; None if it never came, or never watched.
        last_seen_time: When it was last heard; of a host with a stream some time since that began. None if never.
        end_time: When its last stream ended; None while it has one.
        agent_version: As it last said, a service of its client; empty if it never came.
        mode: How its agent runs; None of one that doesn't say (`circumstances`).
        run_interval: How often that is, of a timer; None where it isn't known.
        broker_roots: The roots by which it knows its broker, as in `HostFacts`; empty of an agent that doesn't say.
        can_hold: Whether its agent can hold a certificate back for a rollout.
        blocked: Why it gets no certificates whatever it asks for, for people; empty if it does.
        change_time: When time alone may next change the health of one of its certificates; None if it can't.
        unheard_since: Since when it has been silent for longer than its mode allows; None if it isn't, or never came.
        labels: In the policy: the grant's own mapping, not to be changed.
        certificates: By name; the identity among them.
    """

    name: str
    label: str = ""
    kind: IdentityKind = IdentityKind.HOST
    connected: bool = False
    broker_id: str = ""
    connect_time: datetime | None = None
    last_seen_time: datetime | None = None
    end_time: datetime | None = None
    agent_version: str = ""
    mode: AgentMode | None = None
    run_interval: timedelta | None = None
    broker_roots: tuple[str, ...] = ()
    can_hold: bool = False
    blocked: str = ""
    change_time: datetime | None = None
    unheard_since: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    certificates: tuple[IndexedCertificate, ...] = ()

    @property
    def health(self) -> HealthWord:
        """The worst of its certificates; UNHEARD where it is nothing worse and silent for too long."""
        worst = min((each.health for each in self.certificates), key=lambda word: word.rank, default=HealthWord.OK)
        return HealthWord.UNHEARD if worst is HealthWord.OK and self.unheard_since is not None else worst


Picked = Callable[[IndexedHost], Iterable[IndexedCertificate]]
"""Which certificates of a host a question is about."""


@dataclass(frozen=True, slots=True)
class CauseGroup:
    """Certificates that one cause makes of one health.

    Attributes:
        health: Their health.
        cause: As in `Health`.
        actor: Who can act.
        certificate_count: How many.
        host_count: Of how many hosts and services.
        hosts: Some of those, by name: at most 5.
        example: One of the certificates, as host and name.
        since: Since when, the first of them; None where that isn't known.
        next_attempt_time: The soonest next try of any of them; None if none is made.
    """

    health: HealthWord
    cause: str
    actor: HealthActor
    certificate_count: int
    host_count: int
    hosts: tuple[str, ...]
    example: tuple[str, str]
    since: datetime | None = None
    next_attempt_time: datetime | None = None


class FleetIndex(Protocol):
    """The fleet in memory."""

    @property
    def hosts(self) -> Mapping[str, IndexedHost]:
        """Hosts and services by name, as they are now. Don't go through it across an `await`: see `walk`."""
        ...

    @property
    def ready(self) -> bool:
        """Whether the fleet has been read since this broker began: before, hosts are missing."""
        ...

    @property
    def services(self) -> int:
        """How many of those are services."""
        ...

    def counts(self) -> Mapping[HealthWord, int]:
        """Certificates of each health, identities and services' included; a word without any has 0. At no cost."""
        ...

    async def causes(self, picked: Picked | None = None) -> Sequence[CauseGroup]:
        """What is not OK, by health and cause: the worst health first, of one health the most certificates first.

        Certificates of a host that are all right but for its silence are UNHEARD, with it as their cause.

        Args:
            picked: Which certificates; None for all.
        """
        ...

    def walk(self) -> AsyncIterator[IndexedHost]:
        """All hosts and services by name, each as it is when its turn comes; others get theirs each millisecond."""
        ...

    def listen(self, told: Callable[[str], None]) -> None:
        """Have `told` called with the name of each host that has become another value, or is gone.

        At once, and never from within a read of the index; several changes of one host may be told once. After
        something that changes all (a policy) it is called for each that is another one then.
        """
        ...

    async def settled(self) -> None:
        """Wait until the fleet has been read once, and what was told by now of other brokers' hosts has been too.

        Raises:
            RefusalError: STORE_UNAVAILABLE: it can't be read.
        """
        ...
