"""The hosts of the index: what each is as it is kept, its health judged whenever something of it changes. No reading.

For the event loop's thread.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import msgspec

from certplane.broker.fleet.circumstances import HostCircumstances, Presence
from certplane.broker.fleet.facts import facts_as
from certplane.broker.fleet.health import WELL, Finding, HostKnowledge, find, next_change
from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.fleet.model import HostStream, IssuedCertificate, RevokedCertificate
from certplane.broker.fleet.places import HostPlaces, ServicePlace
from certplane.broker.model import IdentityKind
from certplane.broker.ports import Policy, PolicySource
from certplane.fleet_report.model import ROLLOUT_FEATURE, CertificateStatus
from certplane.runtime.clock import Clock
from certplane.runtime.health import HealthWord
from certplane.runtime.sharing import SharedTexts

SLICE: Final = 256
"""Certificates, and hosts, that are looked at before others get their turn: two milliseconds."""


class KeptHosts:
    """Hosts and services by name, each with the health that follows from what is known of it.

    Attributes:
        hosts: Those there are.
        counts: Their certificates by health.
        service_count: How many are services.
        horizon: Until when the moments are kept in `due` at which time changes a health.
        due: Those of the hosts that have one before it.
        complete: Whether what is found from now on is news: before, nobody knows since when it is so.
        told: Called with the name of each host that has become another value, or is gone.
    """

    def __init__(
        self, policy: PolicySource, circumstances: HostCircumstances, places: HostPlaces, clock: Clock
    ) -> None:
        """None yet."""
        self._policies, self._circumstances, self._places, self._clock = policy, circumstances, places, clock
        self.hosts: dict[str, IndexedHost] = {}
        self._names: list[str] = []
        """Those of `hosts`, sorted."""
        self._revoked: dict[str, dict[str, RevokedCertificate]] = {}
        self.counts: Counter[HealthWord] = Counter()
        self.service_count = 0
        self.horizon = clock.now()
        self.due: dict[str, datetime] = {}
        self.complete = False
        self.told: list[Callable[[str], None]] = []
        self._texts = SharedTexts()

    def known(self, name: str) -> IndexedHost:
        """The host as it is kept; else all that the policy says of it."""
        return self.hosts.get(name) or self.unknown(name)

    def unknown(self, name: str) -> IndexedHost:
        """A host of which nothing is known but what the policy says."""
        return named(IndexedHost(name), self._policies.current)

    def names(self) -> tuple[str, ...]:
        """All of them at this moment, sorted."""
        return tuple(self._names)

    async def walk(self) -> AsyncIterator[IndexedHost]:
        """See `FleetIndex`."""
        looked_at = 0
        for name in self.names():
            host = self.hosts.get(name)
            if host is None:
                continue
            yield host
            looked_at += 1 + len(host.certificates)
            if looked_at >= SLICE:
                looked_at = 0
                await asyncio.sleep(0)

    def put(self, host: IndexedHost, *, judged: bool = True, times: bool = True) -> bool:
        """Keep a host, judged now; whether the health of one of its certificates is another one than before.

        Args:
            host: With what is known of it.
            judged: Without it the host keeps its health: nothing has changed that decides it, or it is judged later.
            times: Whether something has changed that decides when time will change its health.
        """
        name, before = host.name, self.hosts.get(host.name)
        after = self._judged(host, self._clock.now(), times=times) if judged else host
        if after == before:
            return False
        if before is None:
            bisect.insort(self._names, name)
            self.service_count += host.kind is IdentityKind.SERVICE
        else:
            self.counts.subtract(each.health for each in before.certificates)
        self.counts.update(each.health for each in after.certificates)
        self.hosts[name] = after
        if after.change_time is not None and after.change_time <= self.horizon:
            self.due[name] = after.change_time
        self._tell(name)
        return before is not None and _healths(before) != _healths(after)

    def drop(self, name: str) -> None:
        """Keep a host no more."""
        host = self.hosts.pop(name)
        del self._names[bisect.bisect_left(self._names, name)]
        self.counts.subtract(each.health for each in host.certificates)
        self.service_count -= host.kind is IdentityKind.SERVICE
        self._tell(name)

    def note_revoked(self, revoked: RevokedCertificate) -> None:
        """A certificate was revoked; its holder is to be judged."""
        self._revoked.setdefault(revoked.host, {})[revoked.serial_number] = revoked

    def is_shut_out_otherwise(self, host: IndexedHost) -> bool:
        """Whether the host has been shut out, or let in, since it was judged."""
        block = self._circumstances.block(host.name)
        return host.blocked != ("" if block is None else block.text)

    def _tell(self, name: str) -> None:
        for told in self.told:
            told(name)

    # What is made of what is read and heard.

    def present(self, host: IndexedHost, stream: HostStream | None) -> IndexedHost:
        """The host, with what its recorded stream says."""
        broker = self._places.broker_of(host.name, stream)
        if stream is None:
            return host
        return replace(
            host,
            connected=broker is not None,
            broker_id="" if broker is None else broker.broker_id,
            connect_time=stream.connect_time,
            last_seen_time=max(stream.last_seen_time, host.last_seen_time or stream.last_seen_time),
            end_time=None if broker is not None else stream.end_time or host.end_time,
            agent_version=self._texts.share(stream.facts.agent_version),
            mode=stream.facts.agent_mode,
            run_interval=stream.facts.run_interval,
            broker_roots=tuple(map(self._texts.share, stream.facts.broker_roots_sha256)),
            can_hold=ROLLOUT_FEATURE in stream.facts.features,
        )

    def certificate(
        self, host: str, status: CertificateStatus, before: IndexedCertificate | None
    ) -> IndexedCertificate:
        """What `host` reported of a certificate; judged as it was before, until it is judged."""
        facts = facts_as(IndexedCertificate, status)
        profile = self._policies.current.granted(host, facts.profile)
        changes: dict[str, object] = {
            "name": self._texts.share(facts.name),
            "profile": self._texts.share(facts.profile),
            "error_cause": self._texts.share(facts.error_cause),
        }
        if profile is not None and profile.dns_names == facts.dns_names:
            changes["dns_names"] = profile.dns_names
        if before is not None:
            changes |= {"health": before.health, "cause": before.cause, "actor": before.actor, "since": before.since}
            if before.certificate_id == facts.certificate_id:
                changes |= {"issuer": before.issuer, "public_key_sha256": before.public_key_sha256}
        return msgspec.structs.replace(facts, **changes)

    def issued_by(
        self, certificate: IndexedCertificate, host: str, found: Mapping[str, IssuedCertificate]
    ) -> IndexedCertificate:
        """The certificate with who issued it to this host, if that is among `found`, by id."""
        issued = found.get(certificate.certificate_id)
        if issued is None or issued.identity != host:  # hosts say what they like
            return certificate
        issuer = self._texts.share(issued.issuer)
        return msgspec.structs.replace(certificate, issuer=issuer, public_key_sha256=issued.public_key_sha256)

    def service(
        self, name: str, certificates: Iterable[IssuedCertificate], place: ServicePlace | None = None
    ) -> IndexedHost:
        """A service with what was issued to it, by profile, the newest first; and where it watches, if it ever did."""
        known = self.hosts.get(name) or replace(self.unknown(name), kind=IdentityKind.SERVICE)
        before = {each.name: each for each in known.certificates}
        profiles: set[str] = set()
        found = []
        for each in certificates:
            found.append(_superseded(self._of_issued(each, before), now=each.profile in profiles))
            profiles.add(each.profile)
        known = replace(known, certificates=tuple(found))
        if place is None:
            return known
        return replace(
            known,
            connected=place.broker is not None,
            broker_id="" if place.broker is None else place.broker.broker_id,
            connect_time=place.stream.connect_time,
            last_seen_time=place.stream.connect_time if place.broker is not None else place.stream.last_seen_time,
            end_time=None if place.broker is not None else place.stream.end_time,
            agent_version=self._texts.share(place.stream.facts.agent_version),
        )

    def _of_issued(self, issued: IssuedCertificate, before: Mapping[str, IndexedCertificate]) -> IndexedCertificate:
        known = before.get(issued.certificate_id)
        if known is not None:  # what is issued never changes, but when it is to be renewed does
            if known.superseded or known.renew_time == issued.renew_time:
                return known
            return msgspec.structs.replace(known, renew_time=issued.renew_time)
        return IndexedCertificate(
            name=issued.certificate_id,
            profile=self._texts.share(issued.profile),
            dns_names=issued.dns_names,
            certificate_id=issued.certificate_id,
            serial_number=issued.serial_number,
            issued_serial_number=issued.serial_number,
            not_before=issued.not_before,
            not_after=issued.not_after,
            renew_time=issued.renew_time,
            issuer=self._texts.share(issued.issuer),
            public_key_sha256=issued.public_key_sha256,
        )

    # Health.

    def _judged(self, host: IndexedHost, now: datetime, *, times: bool) -> IndexedHost:
        """The host, with the health of its certificates."""
        knowledge = self._knowledge(host)
        findings = _of_service(host, knowledge, now) if knowledge.is_service else _of_host(host, knowledge, now)
        certificates = tuple(
            _with(each, finding, now if self.complete else None)
            for each, finding in zip(host.certificates, findings, strict=True)
        )
        change_time = host.change_time
        if times or change_time is None or change_time <= now:
            moments = (next_change(each, knowledge, now) for each in certificates)
            change_time = min((each for each in moments if each is not None), default=None)
        blocked = "" if knowledge.block is None else knowledge.block.text
        unheard_since = knowledge.unheard_time if knowledge.is_unheard(now) else None
        found = (certificates, blocked, unheard_since, change_time)
        if found == (host.certificates, host.blocked, host.unheard_since, host.change_time):
            return host
        return replace(
            host, certificates=certificates, blocked=blocked, unheard_since=unheard_since, change_time=change_time
        )

    def _knowledge(self, host: IndexedHost) -> HostKnowledge:
        revoked = self._revoked.get(host.name, {})
        if host.kind is IdentityKind.SERVICE:
            return self._circumstances.of_service(host.name, revoked)
        presence = None
        if host.connect_time is not None and host.last_seen_time is not None:
            presence = Presence(host.connect_time, host.last_seen_time, host.end_time, host.mode, host.run_interval)
        return self._circumstances.of(host.name, presence, revoked, connected=host.connected)


def _of_host(host: IndexedHost, knowledge: HostKnowledge, now: datetime) -> Sequence[Finding]:
    return [find(each, knowledge, now) for each in host.certificates]


def _of_service(host: IndexedHost, knowledge: HostKnowledge, now: datetime) -> Sequence[Finding]:
    """The newest of each profile is judged: whoever uses an older one has a newer one to use."""
    return [WELL if each.superseded else find(each, knowledge, now) for each in host.certificates]


def _superseded(certificate: IndexedCertificate, *, now: bool) -> IndexedCertificate:
    """The certificate, superseded or not: nobody means to renew one that is."""
    if not now or certificate.superseded:
        return certificate
    return msgspec.structs.replace(certificate, superseded=True, renew_time=None)


def named(host: IndexedHost, policy: Policy) -> IndexedHost:
    """The host with its label and its labels in the policy."""
    grant = policy.find_grant(host.name)
    if grant is None:
        return replace(host, label="", labels={}) if host.label or host.labels else host
    if (host.label, host.labels) == (grant.label, grant.labels):
        return host
    return replace(host, label=grant.label, labels=grant.labels)


def _with(certificate: IndexedCertificate, finding: Finding, now: datetime | None) -> IndexedCertificate:
    """The certificate with what was found. As long as word and cause stay, it began when it did.

    Args:
        certificate: As it was.
        finding: What was found.
        now: Since when what has no other beginning is so.
    """
    since = finding.since
    if finding.word is certificate.health and finding.cause == certificate.cause:
        if since is None or (certificate.since is not None and certificate.since <= since):
            return certificate
    elif finding.word is not HealthWord.OK and since is None:
        since = now
    return msgspec.structs.replace(
        certificate, health=finding.word, cause=finding.cause, actor=finding.actor, since=since
    )


def _healths(host: IndexedHost) -> list[HealthWord]:
    return [each.health for each in host.certificates]
