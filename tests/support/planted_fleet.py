"""A fleet of 200 hosts with troubles planted in it, and what an operator must be shown of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from certplane.broker.fleet.messages import Hello, Outgoing
from certplane.broker.fleet.model import HostStream
from certplane.broker.model import DenyEntry, Grant, IdentityKind, IdentityUse, KnownIdentity, Profile, RevocationReason
from certplane.fleet_report.model import (
    AgentMode,
    CertificateState,
    CertificateStatus,
    HeldCertificate,
    HostFacts,
    RenewalStep,
    Report,
)
from certplane.runtime.health import HealthWord
from tests.fakes.policy import FakePolicy
from tests.support.callers import caller
from tests.support.edge import EdgeServer
from tests.support.stores import NO_LIMITS, certificate, draft

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
HOSTS = 200
OPERATOR, SERVICE, SPARE_SERVICE = "admin.example", "spiffe://example/api", "spiffe://example/spare"
NS2 = "DNS_UNAVAILABLE: the TXT record at _acme-challenge.{name} isn't visible: ns2.example.org (192.0.2.2) lacks the record"
NGINX = "the reload ended with status 1: Job for nginx.service failed. See journalctl -xe"


@dataclass
class Trouble:
    """One kind: which hosts, of which health and cause, and in which of the five questions it is."""

    hosts: list[str]
    health: HealthWord
    cause: str
    hurts: bool = False
    ends: bool = False
    """Within a day, without being over."""
    heals: bool = False
    missing: bool = False


@dataclass
class Planted:
    """All that there is."""

    troubles: dict[str, Trouble] = field(default_factory=dict)
    never_came: list[str] = field(default_factory=list)
    renewing: list[str] = field(default_factory=list)
    """Hosts whose certificates end within a day and are renewed before, as ever."""

    def hosts_of(self, which: str) -> set[str]:
        """Of the troubles for which this is so."""
        return {host for each in self.troubles.values() if getattr(each, which) for host in each.hosts}

    @property
    def causes(self) -> dict[tuple[str, str], int]:
        """How many certificates of each health and cause."""
        found: dict[tuple[str, str], int] = {}
        for each in self.troubles.values():
            key = each.health.value, each.cause
            found[key] = found.get(key, 0) + len(each.hosts)
        return found


@asynccontextmanager
async def planted(edge: EdgeServer) -> AsyncIterator[Planted]:
    """The fleet, its hosts connected for the length of the block, those apart that are to be down."""
    fleet = _Fleet(edge)
    try:
        await fleet.plant()
        yield fleet.planted
    finally:
        await fleet.leave()


class _Fleet:
    def __init__(self, edge: EdgeServer) -> None:
        self.edge = edge
        self.now = edge.clock.now()
        self.planted = Planted()
        self.numbers = iter(range(1, HOSTS + 1))
        self.serials = iter(range(0x1000, 0x10000))
        self.connected: list[asyncio.Task[None]] = []

    async def plant(self) -> None:
        """Everything: who is well last, until there are 200."""
        names = [f"app{number:03d}.example" for number in range(1, HOSTS + 1)]
        grants = [Grant(name, IdentityKind.HOST, name.partition(".")[0], profiles=("web", "shop")) for name in names]
        grants += [
            Grant(name, IdentityKind.SERVICE, name[-5:].strip("/"), ("api",)) for name in (SERVICE, SPARE_SERVICE)
        ]
        grants.append(Grant(OPERATOR, IdentityKind.OPERATOR, "admin", roles=("operator", "viewer")))
        profiles = [
            Profile("web", "multi_san", ("web.example.test",), "web"),
            Profile("shop", "multi_san", ("shop.example.test", "store.example.test"), "shop"),
            Profile("api", "multi_san", ("api.example.test",), "api"),
        ]
        gone = self.name()
        self.edge.policy.policy = FakePolicy.of([each for each in grants if each.name != gone], profiles)
        await self.down(
            "retired from the policy", [gone], self.status(), HealthWord.WONT_HEAL, "IDENTITY_UNKNOWN", missing=True
        )
        await self.hurt()
        await self.wont_heal()
        await self.failing()
        await self.silent()
        self.planted.never_came = [self.name() for _ in range(3)]
        self.planted.renewing = await self.up_with(2, lambda: self.status(left=20 * HOUR, life=60 * HOUR))
        await self.up_with(len([*self.numbers]), self.status)

    async def hurt(self) -> None:
        await self.down(
            "expired, its host down",
            self.names(2),
            self.status(left=-13 * HOUR),
            HealthWord.EXPIRED,
            "UNHEARD",
            hurts=True,
            missing=True,
        )
        await self.trouble(
            "expired, a limit before it", 1, lambda: self.status(left=-HOUR, **self.failed("RATE_LIMITED: too many orders were asked for")),
            HealthWord.EXPIRED, "RATE_LIMITED", hurts=True,
        )  # fmt: skip
        await self.trouble(
            "an expired one served",
            1,
            lambda: self.serving(self.held(left=-2 * HOUR)),
            HealthWord.EXPIRED,
            "VERIFY",
            hurts=True,
        )
        name = self.name()
        record = await self.issue(name, "web")
        held = HeldCertificate(record.serial_number, self.now - DAY, self.now + 80 * DAY, record.certificate_id, 1)
        await self.up(name, replace(self.status(), issued=held, installed=held, served=held))
        await self.revoke(record.certificate_id)
        self.planted.troubles["revoked, in use"] = Trouble([name], HealthWord.REVOKED_IN_USE, "REQUEST", hurts=True)
        foreign = replace(self.held(), certificate_id="", version=0)
        await self.trouble(
            "a stranger's served", 2, lambda: self.serving(foreign), HealthWord.FOREIGN_SERVED, "VERIFY", hurts=True
        )
        expired = await self.issue(SERVICE, "api", lasts=90 * DAY, age=91 * DAY)
        self.planted.troubles["a service's expired"] = Trouble([SERVICE], HealthWord.EXPIRED, "REQUEST", hurts=True)
        assert expired.not_after < self.now
        await self.issue(SPARE_SERVICE, "api")

    async def wont_heal(self) -> None:
        (denied,) = await self.trouble("denied", 1, self.status, HealthWord.WONT_HEAL, "IDENTITY_REVOKED", missing=True)
        self.edge.stores.database.shut_out(DenyEntry(name=denied, reason="stolen", create_time=self.now))
        (contested,) = await self.trouble(
            "contested", 1, self.status, HealthWord.WONT_HEAL, "IDENTITY_CONTESTED", missing=True
        )
        use = IdentityUse("CN=internal", "1f", self.now - DAY, self.now)
        self.edge.stores.database.put_identity(KnownIdentity(contested, use, use.not_before, (use,), use))
        await self.trouble(
            "the next try after the end", 2,
            lambda: self.status(left=2 * HOUR, **self.failed("ISSUER_RATE_LIMITED: too many certificates", again=3 * HOUR)),
            HealthWord.WONT_HEAL, "ISSUER_RATE_LIMITED", ends=True,
        )  # fmt: skip
        await self.trouble(
            "refused by the policy", 1, lambda: self.status(**self.failed("PROFILE_NOT_ALLOWED: not for this identity")),
            HealthWord.WONT_HEAL, "PROFILE_NOT_ALLOWED web",
        )  # fmt: skip
        await self.trouble("late", 2, lambda: self.status(left=10 * DAY), HealthWord.OVERDUE, "REQUEST")

    async def failing(self) -> None:
        await self.trouble(
            "a name server", 18, lambda: self.status(**self.failed(NS2.format(name="web.example.test"))),
            HealthWord.FAILING, "DNS_UNAVAILABLE ns2.example.org",
        )  # fmt: skip
        await self.trouble(
            "a name server, ending", 1,
            lambda: self.status(left=20 * HOUR, life=60 * HOUR, **self.failed(NS2.format(name="web.example.test"))),
            HealthWord.FAILING, "DNS_UNAVAILABLE ns2.example.org", ends=True, heals=True,
        )  # fmt: skip
        await self.trouble(
            "a unit", 5,
            lambda: self.status(**self.failed(NGINX, step=RenewalStep.RELOAD, state=CertificateState.DEGRADED)),
            HealthWord.FAILING, "RELOAD nginx.service",
        )  # fmt: skip
        await self.trouble(
            "an older one served", 3, lambda: self.serving(self.held()), HealthWord.STALE_SERVED, "VERIFY"
        )
        await self.trouble(
            "the policy has another name", 2, lambda: self.status("shop", names=("shop.example.test",)),
            HealthWord.MISMATCHED, "NAMES_NOT_ALLOWED shop",
        )  # fmt: skip

    async def silent(self) -> None:
        await self.down("a silent daemon", self.names(4), self.status(), HealthWord.UNHEARD, "UNHEARD", missing=True)
        await self.down(
            "a silent timer", self.names(2), self.status(), HealthWord.UNHEARD, "UNHEARD", missing=True,
            mode=AgentMode.TIMER, interval=HOUR,
        )  # fmt: skip
        for name in self.names(3):  # well: their next run comes
            await self.recorded(name, self.status(), mode=AgentMode.TIMER, interval=HOUR, ago=30 * MINUTE)

    # What a host has.

    def name(self) -> str:
        return f"app{next(self.numbers):03d}.example"

    def names(self, count: int) -> list[str]:
        return [self.name() for _ in range(count)]

    def held(self, left: timedelta = 80 * DAY, life: timedelta = 90 * DAY) -> HeldCertificate:
        end = self.now + left
        return HeldCertificate(f"{next(self.serials):x}", end - life, end, "", 1)

    def status(
        self,
        name: str = "web",
        *,
        left: timedelta = 80 * DAY,
        life: timedelta = 90 * DAY,
        names: tuple[str, ...] = (),
        **fields: Any,
    ) -> CertificateStatus:
        held = self.held(left, life)
        known = {"web": ("web.example.test",), "shop": ("shop.example.test", "store.example.test")}
        values = {"state": CertificateState.SERVING, "issued": held, "installed": held, "served": held}
        values |= {"renew_time": self.now + left - life / 3, "update_time": self.now - HOUR, **fields}
        return CertificateStatus(name, profile=name, dns_names=names or known[name], **values)

    def serving(self, served: HeldCertificate) -> CertificateStatus:
        return replace(self.status(), served=served)

    def failed(
        self,
        error: str,
        *,
        again: timedelta = HOUR,
        step: RenewalStep = RenewalStep.REQUEST,
        state: CertificateState = CertificateState.FAILED,
    ) -> dict[str, Any]:
        which = "request_failures" if step is RenewalStep.REQUEST else "activation_failures"
        return {
            "state": state,
            "failed_step": step,
            "last_error": error,
            which: 3,
            "next_attempt_time": self.now + again,
        }

    async def issue(self, identity: str, profile: str, lasts: timedelta = 90 * DAY, age: timedelta = DAY) -> Any:
        names = (f"{profile}.example.test",)
        wanted = draft(
            identity=identity, profile=profile, dns_names=names, public_key_sha256=f"key-{identity}", issuer="default"
        )
        order = (await self.edge.stores.orders.open_order(wanted, NO_LIMITS, [])).order
        record = certificate(order, f"certificate-{order.order_id}", self.now - age, lasts)
        await self.edge.stores.orders.finish_order(order, record, [])
        return record

    async def revoke(self, certificate_id: str) -> None:

        record = await self.edge.stores.certificates.mark_revoked(
            certificate_id, RevocationReason.KEY_COMPROMISE, self.now, []
        )
        self.edge.hub.certificate_revoked(record)

    # Where it is.

    async def trouble(
        self, what: str, count: int, make: Any, health: HealthWord, cause: str, **questions: bool
    ) -> list[str]:
        """Hosts that are connected."""
        hosts = await self.up_with(count, make)
        self.planted.troubles[what] = Trouble(hosts, health, cause, **questions)
        return hosts

    async def down(
        self,
        what: str,
        hosts: list[str],
        status: CertificateStatus,
        health: HealthWord,
        cause: str,
        *,
        mode: AgentMode | None = None,
        interval: timedelta | None = None,
        **questions: bool,
    ) -> None:
        """Hosts that were heard half a day ago."""
        for host in hosts:
            await self.recorded(host, status, mode=mode, interval=interval, ago=12 * HOUR)
        self.planted.troubles[what] = Trouble(hosts, health, cause, **questions)

    async def recorded(
        self,
        host: str,
        status: CertificateStatus,
        *,
        mode: AgentMode | None,
        interval: timedelta | None,
        ago: timedelta,
    ) -> None:
        then = self.now - ago
        facts = HostFacts("1.0.0", mode, interval)
        stream = HostStream(host, facts, "1f", self.now + DAY, "192.0.2.1", then - HOUR, then, then)
        await self.edge.stores.fleet.record_reports(host, "e", [Report(1, status)], names=[status.name], stream=stream)
        self.edge.hub.watchers.host_elsewhere(host, self.now)

    async def up_with(self, count: int, make: Any) -> list[str]:
        hosts = (
            self.names(count)
            if count < HOSTS / 2
            else [f"app{n:03d}.example" for n in range(HOSTS - count + 1, HOSTS + 1)]
        )
        for host in hosts:
            await self.up(host, make())
        return hosts

    async def up(self, host: str, status: CertificateStatus) -> None:
        told = asyncio.Event()
        self.connected.append(asyncio.create_task(self._stay(host, status, told), name=host))
        await told.wait()

    async def _stay(self, host: str, status: CertificateStatus, told: asyncio.Event) -> None:
        hub = self.edge.hub

        async def write(_message: Outgoing) -> None:
            pass

        stream = hub.attach(caller(name=host, not_after=self.now + DAY), "r", write)
        try:
            facts = HostFacts("1.1.0", AgentMode.DAEMON)
            await hub.hello(stream, Hello(facts, "e", (status.name,), (Report(1, status),), self.edge.clock.now()))
            told.set()
            await asyncio.Event().wait()
        finally:
            told.set()
            hub.detach(stream)

    async def leave(self) -> None:
        for each in self.connected:
            each.cancel()
        if self.connected:
            await asyncio.wait(self.connected)


def shown(hosts: Iterable[Any]) -> set[str]:
    """The names of messages about hosts."""
    return {each.host for each in hosts}
