"""One host as an operator sees it: durable record, stream in memory, policy and identity ledger, put together."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from certplane.broker.fleet.circumstances import HostCircumstances, Presence, Revoked
from certplane.broker.fleet.facts import service_status
from certplane.broker.fleet.health import HostKnowledge, certificate_health
from certplane.broker.fleet.hub import FleetHub
from certplane.broker.fleet.index import FleetIndex, IndexedCertificate, IndexedHost
from certplane.broker.fleet.knowledge import lacks_identity_renewal, unknown_identity_plan, unknown_plans
from certplane.broker.fleet.model import HostRecord, RevokedCertificate, StreamBroker
from certplane.broker.fleet.places import HostPlaces, NoServicePlaces, ServicePlace, ServicePlaces
from certplane.broker.fleet.plan_teller import ToldPlans
from certplane.broker.fleet.ports import FleetStore, StreamPlaces
from certplane.broker.fleet.progress import HolderNow
from certplane.broker.model import IdentityKind
from certplane.broker.ports import IdentityLedger, PolicySource
from certplane.broker.renewal.model import InForce, RenewalPlan
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import CertificateStatus
from certplane.runtime.clock import Clock
from certplane.runtime.health import Health, HealthWord

_PAGE: Final = 100
_SLICE: Final = 64
"""Hosts that are looked at before the loop has its turn: a millisecond or two."""


class HostNotFoundError(RefusalError):
    """There is no such host."""

    def __init__(self) -> None:
        super().__init__(
            Reason.HOST_NOT_FOUND, "there is no such host; ListHosts, `certplanectl fleet`, has those there are"
        )


@dataclass(frozen=True, slots=True)
class HostView:
    """A host, or a service.

    Attributes:
        record: What is durably known of it; of a service what was issued to it, and how it watches that.
        label: In the policy; empty when policy no longer has it.
        broker: The broker that has its stream, or where a service watches; None if none has.
        pending: What it doesn't know yet of what is planned.
        displaced_streams: How often one of its streams has displaced another of the same certificate.
        contested: Whether two holders use its identity.
        health: Of each certificate, by name.
        kind: Host or service.
        blocked: Why it gets no certificates whatever it asks for, for people; empty if it does.
        word: The worst of its certificates, or UNHEARD.
        labels: In the policy.
        watch_count: Of a service, how many calls it has open in which it watches its certificates, at all brokers.
    """

    record: HostRecord
    label: str
    broker: StreamBroker | None
    pending: tuple[RenewalPlan, ...]
    displaced_streams: int
    contested: bool
    health: Mapping[str, Health]
    kind: IdentityKind = IdentityKind.HOST
    blocked: str = ""
    word: HealthWord = HealthWord.OK
    labels: Mapping[str, str] = field(default_factory=dict)
    watch_count: int = 0


@dataclass(frozen=True, slots=True)
class CertificateView:
    """A certificate of a host or a service: as the index has it, as it was reported, and how bad it is."""

    host: IndexedHost
    certificate: IndexedCertificate
    status: CertificateStatus
    health: Health


class _Store(FleetStore, StreamPlaces, Protocol):
    pass


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is wanted of hosts without a stream here: by name, their certificates in force, and their identities."""

    in_force: Mapping[str, Sequence[InForce]]
    identities: Mapping[str, tuple[str, RenewalPlan]]


class FleetView:
    """Reads the fleet."""

    def __init__(
        self,
        *,
        hub: FleetHub,
        store: _Store,
        plans: ToldPlans,
        policy: PolicySource,
        identities: IdentityLedger,
        circumstances: HostCircumstances,
        places: HostPlaces,
        index: FleetIndex,
        clock: Clock,
        services: ServicePlaces | None = None,
    ) -> None:
        """Reads with the streams of `hub`, this broker's, of others, at their `places`, and where `services` watch."""
        self._hub = hub
        self._places = places
        self._services = services or NoServicePlaces()
        self._index = index
        self._store = store
        self._plans = plans
        self._policy = policy
        self._identities = identities
        self._circumstances = circumstances
        self._clock = clock

    def identity(self, name_or_label: str) -> str:
        """The identity's name of a host that is called by its name or by its label in the policy."""
        policy = self._policy.current
        grant = policy.find_grant(name_or_label) or policy.find_host(name_or_label)
        return grant.name if grant is not None else name_or_label

    def identities(self, name_or_label: str) -> frozenset[str]:
        """The identities of this name or label: of a host, a service, an operator."""
        return self._policy.current.identities_of(name_or_label) or frozenset({name_or_label})

    def hosts_with(self, labels: Iterable[str]) -> frozenset[str]:
        """The identities of the hosts that have one of these labels in the policy, as KEY=VALUE."""
        return self._policy.current.hosts_with(labels)

    def why_none(self, name: str) -> str:
        """Why the identity can't be told to get a new certificate, or gets none; empty if it can and does."""
        return self._circumstances.why_none(name, watches=self._watches(name))

    def _watches(self, service: str) -> bool:
        """Whether a service watches its certificates, at another broker as of a second or two ago."""
        known = self._index.hosts.get(service)
        return self._services.is_here(service) or (known is not None and known.connected)

    def holder_now(self, name: str, record: HostRecord | None) -> HolderNow:
        """What is known of the identity of this name, whose `record` was read, for how far its renewals are."""
        grant = self._policy.current.find_grant(name)
        is_service = grant is not None and grant.kind is IdentityKind.SERVICE
        there = self._watches(name) if is_service else record is not None and self._broker_of(record) is not None
        return HolderNow(record, connected=there, why_none=self.why_none(name), is_service=is_service)

    async def host(self, name_or_label: str) -> HostView:
        """One host, or a service that has certificates or watches them.

        Raises:
            HostNotFoundError: neither the policy nor the store knows it.
            RefusalError: STORE_UNAVAILABLE.
        """
        name = self.identity(name_or_label)
        record = await self._store.get_host(name)
        if record is None:
            service = (await self.read([self._service_name(name)])).get(self._service_name(name))
            if service is not None and service.kind is IdentityKind.SERVICE:
                return service
            grant = self._policy.current.find_grant(name)
            if grant is None or grant.kind is not IdentityKind.HOST:
                raise HostNotFoundError
            record = HostRecord(name, None)
        return self._view(record, (await self._revoked([name]))[name], await self._wanted([record]))

    async def read(self, names: Sequence[str]) -> Mapping[str, HostView]:
        """Hosts and services of the index, by name; those that have gone since are left out.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        indexed = [host for name in names if (host := self._index.hosts.get(name)) is not None]
        services = [host for host in indexed if host.kind is IdentityKind.SERVICE]
        names = [host.name for host in indexed if host.kind is not IdentityKind.SERVICE]
        found = {record.host: record for record in await self._store.list_hosts(hosts=names)}
        expected = self._policy.current
        for name in names:
            if name not in found and expected.find_grant(name) is not None:
                found[name] = HostRecord(name, None)
        records = [*found.values()]
        revoked = await self._revoked([host.name for host in indexed])
        wanted = await self._wanted(records)
        views = {record.host: self._view(record, revoked[record.host], wanted) for record in records}
        watching = await self._services.find([host.name for host in services]) if services else {}
        return views | {
            host.name: self._service(host, revoked[host.name], watching.get(host.name)) for host in services
        }

    def _service_name(self, name_or_label: str) -> str:
        """The identity's name of a service that is called by its label."""
        policy = self._policy.current
        for name in policy.service_names:
            grant = policy.find_grant(name)
            if grant is not None and grant.label == name_or_label:
                return name
        return name_or_label

    def _service(self, host: IndexedHost, revoked: Revoked, place: ServicePlace | None) -> HostView:
        """A service by what was issued to it, and how it watches that: it has no agent that would report."""
        views = [self._of_service(host, one, revoked) for one in host.certificates]
        return HostView(
            record=HostRecord(host.name, None if place is None else place.stream, tuple(view.status for view in views)),
            label=host.label,
            broker=None if place is None else place.broker,
            pending=(),
            displaced_streams=0,
            contested=False,
            health={view.status.name: view.health for view in views},
            kind=IdentityKind.SERVICE,
            blocked=host.blocked,
            word=host.health,
            watch_count=0 if place is None else place.watch_count,
        )

    async def last_known(self, name: str) -> HostView:
        """The identity of this name as it was last known, whatever the policy says; its record may be empty.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        record = await self._store.get_host(name) or HostRecord(name, None)
        return self._view(record, (await self._revoked([name]))[name], await self._wanted([record]))

    async def health(self, host: str, status: CertificateStatus) -> Health:
        """How bad it is with a certificate that the host has just reported.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        revoked = (await self._revoked([host]))[host]
        health = certificate_health(status, self._knowledge(HostRecord(host, None), revoked), self._clock.now())
        return self._since(host, status.name, health)

    async def certificates(self, picked: Sequence[tuple[IndexedHost, IndexedCertificate]]) -> list[CertificateView]:
        """Certificates of the index as their hosts have reported them, and how bad that is, for people.

        In the order of `picked`; one that its host no longer has is left out.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        names = {host.name for host, _ in picked if host.kind is IdentityKind.HOST}
        records = {record.host: record for record in await self._store.list_hosts(hosts=[*names])} if names else {}
        revoked = await self._revoked([*{host.name for host, _ in picked}]) if picked else {}
        found = []
        for host, certificate in picked:
            if host.kind is IdentityKind.SERVICE:
                found.append(self._of_service(host, certificate, revoked[host.name]))
                continue
            record = records.get(host.name) or HostRecord(host.name, None)
            status = next((each for each in record.certificates if each.name == certificate.name), None)
            if status is None:
                continue
            health = certificate_health(status, self._knowledge(record, revoked[host.name]), self._clock.now())
            found.append(CertificateView(host, certificate, status, self._since(host.name, status.name, health)))
        return found

    def _of_service(self, host: IndexedHost, certificate: IndexedCertificate, revoked: Revoked) -> CertificateView:
        status, health = service_status(certificate), Health(HealthWord.OK)
        if certificate.superseded:  # all right whatever becomes of it
            health = Health(HealthWord.OK, "a newer one was issued")
        elif certificate.health is not HealthWord.OK:
            knowledge = self._circumstances.of_service(host.name, revoked)
            health = replace(certificate_health(status, knowledge, self._clock.now()), since=certificate.since)
        return CertificateView(host, certificate, status, health)

    async def count_connected(self, hosts: Collection[str]) -> int:
        """How many of these hosts have a stream, at whichever broker; where the store can't be read, at this one.

        Never raises: it is said of renewals that are durable by then.
        """
        away = [host for host in hosts if host not in self._hub.registry]
        count = len(hosts) - len(away)
        if away and not self._places.others.alone:
            with contextlib.suppress(RefusalError):
                streams = await self._store.find_streams(away)
                records = (HostRecord(found.stream.host, found.stream) for found in streams)
                count += sum(self._broker_of(record) is not None for record in records)
        return count

    async def count_watching(self, identities: Collection[str]) -> int:
        """How many of these are services that watch their certificates, likewise."""
        services = frozenset(identities).intersection(self._policy.current.service_names)
        away = [service for service in services if not self._services.is_here(service)]
        count = len(services) - len(away)
        if away and not self._places.others.alone:
            with contextlib.suppress(RefusalError):
                places = await self._services.find(away)
                count += sum(place.broker is not None for place in places.values())
        return count

    async def hosts(self) -> AsyncGenerator[HostView, None]:
        """All hosts by name: those that had a stream once, and those of the policy that never came."""
        expected, after = self._policy.current.host_names, ""
        while True:
            records = await self._store.list_hosts(after=after, limit=_PAGE)
            is_last = len(records) < _PAGE
            known = {record.host for record in records}
            revoked = await self._revoked([record.host for record in records if record.certificates])
            until = len(expected) if is_last else bisect_right(expected, records[-1].host)
            silent = (HostRecord(name, None) for name in expected[bisect_right(expected, after) : until])
            wanted = await self._wanted(records)
            merged = heapq.merge(
                records, (each for each in silent if each.host not in known), key=lambda each: each.host
            )
            for number, record in enumerate(merged, 1):
                if number % _SLICE == 0:  # the policy may name many that never came
                    await asyncio.sleep(0)
                yield self._view(record, revoked[record.host], wanted)
            if is_last:
                return
            after = records[-1].host

    async def _wanted(self, records: Sequence[HostRecord]) -> _Wanted:
        """Read it of hosts without a stream here; a stream knows what its host doesn't know."""
        away = [one for one in records if one.host not in self._hub.registry]
        holding = [one.host for one in away if one.certificates]
        found: dict[str, list[InForce]] = defaultdict(list)
        if len(holding) == 1:  # whom a watcher is told of, mostly
            found[holding[0]] = [*await self._plans.in_force(holding[0], self._clock.now())]
        elif holding:
            for each in await self._plans.in_force_of(holding, self._clock.now()):
                found[each.host].append(each)
        able = [one.host for one in away if not lacks_identity_renewal(one)]
        identities = await self._plans.identity_renewals(able) if able else ()
        return _Wanted(found, {each[1].host: each for each in identities})

    async def _revoked(self, hosts: Sequence[str] | None) -> Mapping[str, Revoked]:
        """The revoked certificates of these hosts, or of all."""
        found: dict[str, dict[str, RevokedCertificate]] = defaultdict(dict)
        for each in await self._store.list_revoked(self._clock.now(), hosts):
            found[each.host][each.serial_number] = each
        return found

    def _knowledge(self, record: HostRecord, revoked: Revoked) -> HostKnowledge:
        connected = self._broker_of(record) is not None
        presence = None if record.stream is None else Presence.of(record.stream)
        return self._circumstances.of(record.host, presence, revoked, connected=connected)

    def _broker_of(self, record: HostRecord) -> StreamBroker | None:
        return self._places.broker_of(record.host, record.stream)

    def _health(self, record: HostRecord, revoked: Revoked) -> Sequence[Health]:
        host, now = self._knowledge(record, revoked), self._clock.now()
        return [
            self._since(record.host, each.name, certificate_health(each, host, now)) for each in record.certificates
        ]

    def _since(self, host: str, name: str, health: Health) -> Health:
        """The health with since when it is so, as far as the index knows better: a report tells of the last failure."""
        indexed = self._index.hosts.get(host)
        known = None if indexed is None else next((each for each in indexed.certificates if each.name == name), None)
        if known is None or known.since is None or (known.health, known.cause) != (health.word, health.cause):
            return health
        return replace(health, since=known.since)

    def _pending(self, record: HostRecord, wanted: _Wanted) -> tuple[RenewalPlan, ...]:
        stream = self._hub.registry.place_of(record.host)
        if stream is not None:
            return stream.session.pending_renewals()
        pending = unknown_plans(wanted.in_force.get(record.host, ()), record.certificates)
        identity = unknown_identity_plan(wanted.identities.get(record.host), record)
        return (*pending, *(() if identity is None else (identity,)))

    def _view(self, record: HostRecord, revoked: Revoked, wanted: _Wanted) -> HostView:
        grant = self._policy.current.find_grant(record.host)
        known = self._identities.known(record.host)
        block = self._circumstances.block(record.host)
        host, now = self._knowledge(record, revoked), self._clock.now()
        health = dict(zip((each.name for each in record.certificates), self._health(record, revoked), strict=True))
        word = min((each.word for each in health.values()), key=lambda each: each.rank, default=HealthWord.OK)
        return HostView(
            blocked="" if block is None else block.text,
            word=HealthWord.UNHEARD if word is HealthWord.OK and host.is_unheard(now) else word,
            record=record,
            label="" if grant is None else grant.label,
            labels={} if grant is None else grant.labels,
            broker=self._broker_of(record),
            pending=self._pending(record, wanted),
            displaced_streams=0 if known is None else known.displaced_count,
            contested=known is not None and known.contest is not None,
            health=health,
        )
