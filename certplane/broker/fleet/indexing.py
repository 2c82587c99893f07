"""`FleetIndex`, kept current: by what is told of this broker's hosts, by what others have recorded, and by the time.

What is heard of a host while it is being read is newer than what was read: such a host is read again. Whatever goes
through the whole fleet does so in slices: a policy that is loaded anew changes the health of forty thousand
certificates within a second, and nobody waits for longer than some milliseconds.

Time alone changes a health too. Once a minute the hosts are noted whose `change_time` comes before the next round, and
looked at when it has come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from typing_extensions import override

from certplane.broker.fleet.causes import cause_groups
from certplane.broker.fleet.circumstances import HostCircumstances
from certplane.broker.fleet.index import CauseGroup, FleetIndex, IndexedHost, Picked
from certplane.broker.fleet.issues import IndexedIssues
from certplane.broker.fleet.kept import SLICE, KeptHosts, named
from certplane.broker.fleet.model import HostRecord, RevokedCertificate
from certplane.broker.fleet.places import HostPlaces, NoServicePlaces, ServicePlaces
from certplane.broker.fleet.ports import FleetStore, IssuedCertificates
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.fleet.watching import FleetListener
from certplane.broker.model import IdentityKind
from certplane.broker.ports import Policy, PolicySource
from certplane.errors import RefusalError
from certplane.fleet_report.model import ROLLOUT_FEATURE, CertificateStatus
from certplane.runtime.clock import Clock
from certplane.runtime.health import HealthWord

_logger = logging.getLogger("certplane.broker.fleet")

_PAGE: Final = 64
"""Hosts that are read at once: to make values of their rows takes some milliseconds."""


class MemoryIndex(FleetIndex, FleetListener):
    """The fleet in memory; `run` keeps it current."""

    def __init__(
        self,
        *,
        store: FleetStore,
        issued: IssuedCertificates,
        places: HostPlaces,
        policy: PolicySource,
        circumstances: HostCircumstances,
        clock: Clock,
        settings: StreamSettings,
        health_changed: Callable[[str], None],
        services: ServicePlaces | None = None,
    ) -> None:
        """Empty, until `run` or `settled` reads.

        Args:
            store: What hosts have reported.
            issued: What was issued to whom.
            places: Where hosts' streams are.
            policy: Who is expected.
            circumstances: What else is known of hosts.
            clock: The time.
            settings: How often it is brought up to date.
            health_changed: Told of a host whose health something else has changed than its own report.
            services: Where services watch; None: none does.
        """
        self._store, self._places = store, places
        self._policies, self._circumstances, self._clock, self._settings = policy, circumstances, clock, settings
        self._health_changed = health_changed
        self._kept = KeptHosts(policy, circumstances, places, clock)
        self._issues = IndexedIssues(issued, services or NoServicePlaces(), self._kept, self._judge, clock)
        self._policy: Policy | None = None
        """The one by which all was judged; None before all was read."""
        self._is_stale = True
        """Whether all is to be read."""
        self._unread: dict[str, None] = {}
        """Hosts to be read."""
        self._any_shut_out = False
        """Whether any host may have been shut out, or let in."""
        self._elsewhere: dict[str, str] = {}
        """The broker of each host whose recorded stream hasn't ended, whether that one is known or not."""
        self._touched: set[str] = set()
        """Hosts of which something was heard since a read began."""
        self._next_round = float("-inf")
        self._reading = asyncio.Lock()
        self._judging = asyncio.Lock()

    # What others ask.

    @property
    @override
    def hosts(self) -> Mapping[str, IndexedHost]:
        return self._kept.hosts

    @property
    @override
    def ready(self) -> bool:
        return self._kept.complete

    @property
    @override
    def services(self) -> int:
        return self._kept.service_count

    @override
    def counts(self) -> Mapping[HealthWord, int]:
        return {word: self._kept.counts[word] for word in HealthWord}

    @override
    async def causes(self, picked: Picked | None = None) -> Sequence[CauseGroup]:
        return await cause_groups(self.walk(), picked)

    @override
    def walk(self) -> AsyncIterator[IndexedHost]:
        return self._kept.walk()

    @override
    def listen(self, told: Callable[[str], None]) -> None:
        self._kept.told.append(told)

    @override
    async def settled(self) -> None:
        await self._follow_policy()
        if self._any_shut_out:
            await self._look_who_is_shut_out()
        if self._is_stale or self._unread or self._issues.is_stale():
            await self._read()

    # What is heard.

    @override
    def came(self, host: str) -> None:
        stream = self._places.registry.place_of(host)
        if stream is None:
            return
        facts, connect_time = stream.session.facts, stream.session.connect_time or self._clock.now()
        self._kept.put(
            replace(
                self._touch(host),
                connected=True,
                broker_id=self._places.here.broker_id,
                connect_time=connect_time,
                last_seen_time=connect_time,
                end_time=None,
                agent_version=facts.agent_version,
                mode=facts.agent_mode,
                run_interval=facts.run_interval,
                broker_roots=facts.broker_roots_sha256,
                can_hold=ROLLOUT_FEATURE in facts.features,
            )
        )

    @override
    def left(self, host: str) -> None:
        now = self._clock.now()
        self._kept.put(replace(self._touch(host), connected=False, broker_id="", last_seen_time=now, end_time=now))

    @override
    def reported(self, host: str, certificate: CertificateStatus) -> None:
        known = self._touch(host)
        certificates = {each.name: each for each in known.certificates}
        after = self._kept.certificate(host, certificate, certificates.get(certificate.name))
        self._issues.note_host(host, [after])
        certificates[after.name] = after
        self._kept.put(replace(known, certificates=tuple(certificates[name] for name in sorted(certificates))))

    @override
    def removed(self, host: str, name: str) -> None:
        known = self._touch(host)
        self._kept.put(replace(known, certificates=tuple(each for each in known.certificates if each.name != name)))

    @override
    def revoked(self, certificate: RevokedCertificate) -> None:
        self._kept.note_revoked(certificate)
        known = self._kept.hosts.get(certificate.host)
        if known is not None:
            if known.kind is IdentityKind.SERVICE:
                self._issues.services_changed()
            self._kept.put(known)

    @override
    def recorded_elsewhere(self, host: str) -> None:
        self._touched.add(host)
        self._unread[host] = None

    @override
    def brokers_changed(self, broker_ids: Collection[str]) -> None:
        for name, broker_id in self._elsewhere.items():
            if broker_id in broker_ids:
                self.recorded_elsewhere(name)

    @override
    def missed(self) -> None:
        self._is_stale = True

    def service_watches(self, service: str) -> None:
        """The service watches where it didn't, or doesn't any more."""
        if service in self._policies.current.service_names or service in self._kept.hosts:
            self._issues.services_changed()

    def shut_out(self, host: str) -> None:
        """The host may have been shut out, or let in."""
        known = self._kept.hosts.get(host)
        if known is not None and self._policy is not None:
            self._judge(known)

    def any_shut_out(self) -> None:
        """Any host may have been."""
        self._any_shut_out = True

    def _touch(self, host: str) -> IndexedHost:
        """What is known of a host of which something is heard."""
        self._touched.add(host)
        if host not in self._kept.hosts:
            self._unread[host] = None  # should the store know more
        return self._kept.known(host)

    # What is done all the time.

    async def run(self) -> None:
        """Keep it current until cancelled."""
        said = ""
        while True:
            try:
                await self.look()
            except RefusalError as error:
                if str(error) != said:
                    _logger.warning("could not read the fleet for its index; will retry: %s", error)
                said = str(error)
            except Exception as error:
                if repr(error) != said:
                    _logger.exception("keeping the index of the fleet failed; will retry")
                said = repr(error)
            else:
                said = ""
            await self._clock.sleep(self._settings.tick)

    async def look(self) -> None:
        """Take in what has changed by now.

        Raises:
            RefusalError: STORE_UNAVAILABLE. Time and policy are taken in all the same.
        """
        await self._follow_policy()
        if self._clock.monotonic() >= self._next_round:
            await self._round()
        elif self._any_shut_out:
            await self._look_who_is_shut_out()
        await self._pass_time()
        await self._read()

    async def _pass_time(self) -> None:
        now, due = self._clock.now(), self._kept.due
        looked_at = 0
        for name in [name for name, moment in due.items() if moment <= now]:
            if due.get(name, now) > now or due.pop(name, None) is None:
                continue  # something else has had it judged meanwhile
            if (host := self._kept.hosts.get(name)) is not None:
                self._judge(host)
                looked_at += 1 + len(host.certificates)
            if looked_at >= SLICE:  # all hosts of a broker that was killed fall silent at one moment
                looked_at = 0
                await asyncio.sleep(0)

    def _judge(self, host: IndexedHost, *, times: bool = True) -> None:
        """Judge a host that has said nothing: others are told if it is another health."""
        if self._kept.put(host, times=times):
            self._health_changed(host.name)

    async def _round(self) -> None:
        """Note whose health time will change before the next round; look who has been shut out, or let in."""
        kept, interval = self._kept, self._settings.figures_interval
        self._next_round = self._clock.monotonic() + interval.total_seconds()
        kept.horizon = self._clock.now() + 2 * interval  # the next round may come late
        self._issues.services_changed()
        async for host in kept.walk():
            if host.change_time is not None and host.change_time <= kept.horizon:
                kept.due[host.name] = host.change_time
        await self._look_who_is_shut_out()

    async def _look_who_is_shut_out(self) -> None:
        self._any_shut_out = False
        try:
            async for host in self._kept.walk():
                if self._kept.is_shut_out_otherwise(host):
                    self._judge(host)
        except BaseException:
            self._any_shut_out = True
            raise

    async def _follow_policy(self) -> None:
        async with self._judging:  # whoever asks meanwhile waits for all of it
            policy = self._policies.current
            if self._policy is None or policy is self._policy:
                return
            self._issues.services_changed()
            async for host in self._kept.walk():
                self._judge(named(host, policy), times=False)
            await self._expect(policy)
            self._policy = policy  # not before: a call that asks for it may be given up meanwhile

    async def _expect(self, policy: Policy) -> None:
        """See that the hosts of the policy are there, and those that only a former one had are not."""
        for number, name in enumerate(policy.host_names):
            if name not in self._kept.hosts:
                self._kept.put(self._kept.unknown(name))
            if number % SLICE == 0:
                await asyncio.sleep(0)
        async for host in self._kept.walk():
            if host.connect_time is None and not host.certificates and policy.find_grant(host.name) is None:
                self._kept.drop(host.name)

    # What is read.

    async def _read(self) -> None:
        async with self._reading:
            if self._is_stale:
                self._is_stale = False
                try:
                    await self._read_all()
                except BaseException:
                    self._is_stale = True
                    raise
            while self._unread:
                await self._read_some(tuple(islice(self._unread, _PAGE)))
            await self._issues.read(self._policies.current.service_names)

    async def _read_all(self) -> None:
        for revoked in await self._store.list_revoked(self._clock.now()):
            self._kept.note_revoked(revoked)
        after, heard = "", []
        seen: set[str] = set()
        while True:
            self._touched.clear()
            records = await self._store.list_hosts(after=after, limit=_PAGE)
            if not records:
                break
            after = records[-1].host
            seen.update(record.host for record in records)
            heard += [max(stream.end_time or stream.last_seen_time for record in records if (stream := record.stream))]
            await self._take(records)
        policy = self._policies.current
        for name in [name for name in self._kept.names() if name not in seen and name not in self._touched]:
            if not self._kept.hosts[name].connected:
                self._gone(name)
        if self._policy is None:
            if heard:
                self._circumstances.note_heard(max(heard))
            async for host in self._kept.walk():
                self._kept.put(named(host, policy))
            await self._expect(policy)
            self._policy = policy
            self._kept.complete = True

    async def _read_some(self, hosts: Sequence[str]) -> None:
        self._touched.clear()
        records = await self._store.list_hosts(hosts=hosts)
        await self._take(records)
        for name in {*hosts}.difference(record.host for record in records) - self._touched:
            self._gone(name)
        for name in {*hosts} - self._touched:
            self._unread.pop(name, None)

    async def _take(self, records: Iterable[HostRecord]) -> None:
        """Take in what was read, of all hosts of which nothing was heard meanwhile."""
        looked_at = 0
        for record in records:
            if record.host in self._touched:
                self._unread[record.host] = None
                continue
            known = self._kept.known(record.host)
            before = {each.name: each for each in known.certificates}
            certificates = tuple(
                self._kept.certificate(record.host, each, before.get(each.name)) for each in record.certificates
            )
            self._issues.note_host(record.host, certificates)
            # Whoever said that it is to be read has told those who watch.
            host = self._kept.present(replace(known, certificates=certificates), record.stream)
            self._elsewhere.pop(record.host, None)
            if record.stream is not None and record.stream.end_time is None:
                self._elsewhere[record.host] = record.stream.broker_id
            self._kept.put(host, judged=self._policy is not None)  # at first when it is known how long nobody was heard
            looked_at += 1 + len(certificates)
            if looked_at >= SLICE:
                looked_at = 0
                await asyncio.sleep(0)

    def _gone(self, name: str) -> None:
        """The store knows nothing of a host."""
        host = self._kept.hosts.get(name)
        if host is not None and host.kind is IdentityKind.HOST:
            if host.label:
                self._kept.put(self._kept.unknown(name))
            else:
                self._kept.drop(name)
