"""An index over real stores in memory, and what hosts have reported there: no network, no streams unless a test has some."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from typing_extensions import override

from certplane.broker.fleet.circumstances import HostCircumstances
from certplane.broker.fleet.elsewhere import ShutOuts
from certplane.broker.fleet.indexing import MemoryIndex
from certplane.broker.fleet.model import HostStream, StreamBroker
from certplane.broker.fleet.places import HostPlaces
from certplane.broker.fleet.registry import StreamRegistry
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.fleet.watching import Watchers
from certplane.broker.members.model import Member
from certplane.broker.members.ports import NoOtherBrokers
from certplane.broker.model import ChangeKind, Grant, IdentityKind, Profile
from certplane.broker.ports import NullMeter
from certplane.fleet_report.model import (
    AgentMode,
    CertificateState,
    CertificateStatus,
    HeldCertificate,
    HostFacts,
    Report,
)
from certplane.runtime.health import HealthWord
from tests.fakes.clock import ManualClock
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.support.memory_store import MemoryStores

DAY, HOUR, MINUTE, SECOND = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
SERVICE = "spiffe://example/service/builder"


def policy_of(*hosts: str, profiles: Sequence[str] = ("web",), names: tuple[str, ...] = ()) -> FakePolicy:
    """A policy that gives these hosts each of the profiles, each with one name, or with `names`; and a service."""
    return FakePolicy.of(
        [
            *(Grant(host, IdentityKind.HOST, host.partition(".")[0], profiles=tuple(profiles)) for host in hosts),
            Grant(SERVICE, IdentityKind.SERVICE, "builder", profiles=tuple(profiles)),
        ],
        [Profile(name, "multi_san", names or (f"{name}.example.test",), name) for name in profiles],
    )


class Others(NoOtherBrokers):
    """Other brokers, as a test says which live."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}

    @override
    def find(self, broker_id: str) -> Member | None:
        return self.members.get(broker_id)


class IndexWorld:
    """An index, and the store that it reads; nobody has a stream here but where `running` of `tests.support.hub`."""

    def __init__(self, *hosts: str) -> None:
        self.clock = ManualClock()
        self.stores = MemoryStores.open(self.clock)
        self.policy = FakePolicySource(policy_of(*hosts))
        self.watchers = Watchers(1, NullMeter())
        self.registry = StreamRegistry(NullMeter())
        self.told: list[str] = []
        self.changed: list[str] = []
        """Hosts whose health something else has changed than their own reports."""
        self.sequences = itertools.count(1)
        self.others = Others()
        self.begin()

    def begin(self) -> None:
        """Start a broker's index anew."""
        here = StreamBroker(self.stores.fleet.broker_id, "machine", "[::]:8443")
        self.index = MemoryIndex(
            store=self.stores.fleet,
            issued=self.stores.issued,
            places=HostPlaces(self.registry, here, self.others),
            policy=self.policy,
            circumstances=HostCircumstances(self.policy, self.stores.identities, self.stores.deny_list, self.clock),
            clock=self.clock,
            settings=StreamSettings(),
            health_changed=self.changed.append,
        )
        self.index.listen(self.told.append)
        self.watchers.listen(self.index)
        for kind in (ChangeKind.DENY_ENTRY, ChangeKind.IDENTITY):
            self.stores.changes.follow(kind, ShutOuts(self.index), what="who gets no certificates")

    def status(
        self, name: str = "web", left: timedelta = 80 * DAY, serial: str = "2", **fields: Any
    ) -> CertificateStatus:
        """A certificate of 90 days of which so much is left, in place and served."""
        end = self.clock.now() + left
        held = HeldCertificate(serial, end - 90 * DAY, end, f"certificate-{serial}", int(serial, 16))
        values = {
            "state": CertificateState.SERVING,
            "profile": name,
            "dns_names": (f"{name}.example.test",),
            "issued": held,
            "installed": held,
            "served": held,
        }
        return CertificateStatus(name, **{**values, "renew_time": end - 30 * DAY, **fields})

    async def record(
        self,
        host: str,
        *certificates: CertificateStatus,
        mode: AgentMode | None = None,
        run_interval: timedelta | None = None,
        **stream: Any,
    ) -> None:
        """The host had a stream, at a broker that is gone, and reported these."""
        now = self.clock.now()
        facts = HostFacts("0.1.0", mode, run_interval)
        values = {"identity_serial_number": "1f", "identity_not_after": now + DAY, "source_ip": "192.0.2.1"}
        values |= {"connect_time": now - HOUR, "last_seen_time": now, "end_time": now, **stream}
        reports = [Report(next(self.sequences), each) for each in certificates]
        names = [each.name for each in certificates]
        await self.stores.fleet.record_reports(
            host, "epoch", reports, names=names, stream=HostStream(host, facts, **values)
        )

    def report(self, host: str, certificate: CertificateStatus) -> None:
        """The host has reported here, durably."""
        self.watchers.certificate_changed(host, certificate, self.clock.now())

    async def pass_time(self, span: timedelta, step: timedelta = SECOND) -> None:
        """Let time pass, with a look each second."""
        while span > timedelta():
            self.clock.advance(min(step, span))
            span -= step
            await self.index.look()
            await asyncio.sleep(0)

    def health(self, host: str, name: str = "web") -> HealthWord:
        """How bad it is with a certificate, by the index."""
        return next(each for each in self.index.hosts[host].certificates if each.name == name).health

    @property
    def counts(self) -> dict[str, int]:
        """Of each health, those with none left out."""
        return {word.value: count for word, count in self.index.counts().items() if count}

    def replaced_policy(self, **changes: Any) -> None:
        """Load a policy."""
        assert isinstance(self.policy.policy, FakePolicy)
        self.policy.policy = replace(self.policy.policy, **changes)
