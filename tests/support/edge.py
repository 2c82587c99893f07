"""The broker's edge as it is, on a port of loopback, over a fake story and fake stores."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc

from certplane.broker import metrics
from certplane.broker.budget.model import IssuerLimits
from certplane.broker.enrolling.tokens import IdentityCa
from certplane.broker.enrollment_desk import enrollment_service
from certplane.broker.events import AuditTrail
from certplane.broker.fleet.elsewhere import follow_others
from certplane.broker.fleet.followed import FollowedRequests
from certplane.broker.fleet.forecasting import Forecasts
from certplane.broker.fleet.forgetting import HostForgetting
from certplane.broker.fleet.health_watch import HealthWatch
from certplane.broker.fleet.hub import FleetHub
from certplane.broker.fleet.requests import RenewalRequests
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.fleet.summaries import FleetSummaries
from certplane.broker.identity.activation import FirstUse
from certplane.broker.identity.admission import AdmissionControl
from certplane.broker.identity.allowances import Allowances, AllowanceSettings
from certplane.broker.identity.authentication import Authenticator
from certplane.broker.issuance.overview import OrdersView
from certplane.broker.members.known import KnownMembers
from certplane.broker.members.model import Member
from certplane.broker.members.ports import LastingLease, Lease
from certplane.broker.members.view import BrokersView
from certplane.broker.model import ChangeKind, Grant, IdentityKind
from certplane.broker.proof.checkpoints import Verifier
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.rollout_desk import rollout_parts
from certplane.broker.services.audit import AuditServicer
from certplane.broker.services.brokers import BrokerServicer
from certplane.broker.services.budget import BudgetServicer
from certplane.broker.services.certificates import CertificateServicer
from certplane.broker.services.fleet import FleetServicer
from certplane.broker.services.fleet_lists import FleetLists
from certplane.broker.services.incidents import IncidentServicer
from certplane.broker.services.interceptors.edge import Edge
from certplane.broker.services.orders import OrderServicer
from certplane.broker.services.policy import PolicyServicer
from certplane.broker.services.renewal import RenewalServicer
from certplane.broker.services.server import BrokerServer
from certplane.broker.services.trust import LoadedTrust, TrustInForce
from certplane.broker.store import Stores, open_stores
from certplane.broker.store.audit_records import record_of
from certplane.broker.wiring import fleet_parts
from certplane.pki.chain import leaf_facts
from certplane.pki.trust_bundle import TrustBundle
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import KeyPair, channel_credentials
from certplane.runtime.clock import SystemClock
from certplane.runtime.pool import BlockingPool
from tests.fakes.audit import FakeDenialRecorder, FakeEventRecorder, FakeMeter
from tests.fakes.authority import FakeAuthority
from tests.fakes.broker_desk import FakeBrokerDesk
from tests.fakes.orders import NoOrdersHere
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.fakes.policy_desk import FakePolicyDesk
from tests.fakes.renewal import FakeActivations
from tests.fakes.secrets import FakeSecretSource
from tests.support.ca import Leaf, PrivateCa
from tests.support.memory_store import MemoryStores

HOST = "web1.example"
SERVICE = "spiffe://example/service/builder"
OPERATOR = "admin.example"

GENEROUS = AllowanceSettings(calls_per_second=1000, calls_burst=1000, messages_burst=100_000, messages_pace=100_000)
"""For tests that are about something else."""

_GRANTS = (
    Grant(HOST, IdentityKind.HOST, "web1", profiles=("web",)),
    Grant("web2.example", IdentityKind.HOST, "web2", profiles=("web",)),
    Grant(SERVICE, IdentityKind.SERVICE, "builder", profiles=("web",)),
    Grant(OPERATOR, IdentityKind.OPERATOR, "admin", roles=("admin", "operator")),
)


class ShiftedClock(SystemClock):
    """The machine's clock, its wall time moved by `shift`, and its monotonic one by `lapse`."""

    shift = timedelta()
    lapse = timedelta()

    def now(self) -> datetime:
        return super().now() + self.shift

    def monotonic(self) -> float:
        return super().monotonic() + self.lapse.total_seconds()


async def _no_keys() -> Verifier:
    return Verifier()


@dataclass
class EdgeServer:
    """One running edge and everything behind it."""

    ca: PrivateCa
    clock: ShiftedClock = field(default_factory=ShiftedClock)
    authority: FakeAuthority = field(default_factory=FakeAuthority)
    denials: FakeDenialRecorder = field(default_factory=FakeDenialRecorder)
    policy: FakePolicySource = field(default_factory=lambda: FakePolicySource(FakePolicy.of(_GRANTS)))
    provisioners: Sequence[str] = ("JWK",)
    min_tls_version: str = "1.2"
    allowances: AllowanceSettings = GENEROUS
    recheck: timedelta = timedelta(milliseconds=200)
    address: str = "127.0.0.1:0"
    reuse_port: bool = False
    connections: int | None = None
    streams: StreamSettings = field(default_factory=lambda: StreamSettings(tick=timedelta(milliseconds=50)))
    meter: FakeMeter = field(default_factory=FakeMeter)
    retry_epoch: str = "epoch-1"
    lease: Lease = field(default_factory=LastingLease)
    name: str = "machine"
    stopping: bool = False
    """Whether those who follow the audit log are sent away."""
    identity_ca: IdentityCa | None = None
    """That tokens are made for, with a key of `secrets`."""
    secrets: FakeSecretSource = field(default_factory=FakeSecretSource)
    stores: Any = None
    """Of a database that it shares with others; else it has one in memory."""

    def __post_init__(self) -> None:
        self.stores = self.stores or MemoryStores.open(self.clock)
        self.server_leaf = self.ca.issue_server(["localhost", "127.0.0.1"])
        self.trust = TrustInForce(trust_of(self.server_leaf, self.ca), datetime.now(UTC))
        numbers = itertools.count(1)
        trail = AuditTrail(self.clock, lambda: f"event-{next(numbers)}")
        self.edge = Edge(
            admission=AdmissionControl(
                authenticator=Authenticator(
                    trust=self.trust,
                    policy=self.policy,
                    deny_list=self.stores.deny_list,
                    min_tls_version=self.min_tls_version,
                    provisioners=self.provisioners,
                    clock=self.clock,
                ),
                first_use=FirstUse(
                    ledger=self.stores.identities,
                    clock=self.clock,
                    trail=trail,
                ),
                allowances=Allowances(self.allowances, self.clock),
                clock=self.clock,
            ),
            denials=self.denials,
            meter=self.meter,
            clock=self.clock,
            trail=trail,
            recheck=self.recheck,
        )
        self.plans = RenewalPlans(self.stores.renewal_plans)
        self.activations = FakeActivations()
        self.hub = FleetHub(
            store=self.stores.fleet,
            plans=self.plans,
            find_certificate=self.stores.certificates.get_certificate,
            hashes=lambda: (self.policy.current.hash, self.trust.current.bundle.hash, self.retry_epoch),
            count_displacement=self.stores.identities.count_displacement,
            repeats=FakeEventRecorder(self.stores.audit),
            clock=self.clock,
            meter=self.meter,
            rng=random.Random(),
            trail=trail,
            settings=self.streams,
            activations=self.activations,
        )
        follow_others(self.hub, self.plans, self.stores.certificates, self.stores.changes, self.clock)
        self.known = KnownMembers(self.stores.members, self.me)
        parts = fleet_parts(
            self.hub,
            self.stores,
            self.plans,
            self.policy,
            address="[::]:8443",
            others=self.known,
            clock=self.clock,
            name=self.name,
        )
        self.view, self.index, self.watches = parts.view, parts.index, parts.watches
        self.health = HealthWatch(
            index=self.index,
            policy=self.policy,
            clock=self.clock,
            meter=self.meter,
            settings=self.streams,
            label_keys=("ring",),
        )
        self.orders = OrdersView(
            NoOrdersHere(self.stores.holds),
            self.stores.order_listing,
            self.policy,
            self.known.find,
            self.clock,
            holder=self.stores.orders.holder,
            name=self.name,
        )
        self.pool = BlockingPool("edge", 1)
        budgets = {"default": IssuerLimits("default", "https://ca.test/directory", "none")}
        self.forecasts = Forecasts(
            self.stores.budget, self.plans, self.policy, budgets, pool=self.pool, clock=self.clock
        )
        self.rollouts = rollout_parts(
            self.stores,
            self.plans,
            self.hub,
            parts,
            self.authority,  # type: ignore[arg-type]  # a fake
            forecasts=self.forecasts,
            policy=self.policy,
            issuers=["default"],
            lease=self.lease,
            pool=self.pool,
            clock=self.clock,
            rng=random.Random(),
            trail=trail,
            meter=self.meter,
        )
        self.server = BrokerServer(
            address=self.address,
            reuse_port=self.reuse_port,
            connections=self.connections,
            tls=self.trust.tls,
            edge=self.edge,
            servicers=[
                enrollment_service(
                    self.stores,
                    self.secrets,
                    self.identity_ca,
                    trust=self.trust,
                    policy=self.policy,
                    repeats=FakeEventRecorder(self.stores.audit),
                    clock=self.clock,
                    trail=trail,
                ),
                CertificateServicer(self.authority, self.clock),  # type: ignore[arg-type]  # a fake
                RenewalServicer(self.hub, self.view, parts.watches),
                FleetServicer(
                    self.view,
                    RenewalRequests(
                        self.plans,
                        self.stores.fleet,
                        self.clock,
                        trail,
                        why_none=self.view.why_none,
                    ),
                    BrokersView(self.stores.members, self.me, self.lease),
                    authority=self.authority,  # type: ignore[arg-type]  # a fake
                    followed=FollowedRequests(self.plans, self.stores.fleet, self.clock, self.view.holder_now),
                    lists=FleetLists(self.view, self.index, self.clock),
                    forgetting=HostForgetting(
                        view=self.view,
                        store=self.stores.host_removal,
                        plans=self.plans,
                        policy=self.policy,
                        watchers=self.hub.watchers,
                        clock=self.clock,
                        trail=trail,
                    ),
                    summaries=FleetSummaries(
                        self.index,
                        self.view,
                        audit=self.stores.audit_reader,
                        orders=self.orders,
                        issuers=["default"],
                        clock=self.clock,
                    ),
                ),
                OrderServicer(self.orders),
                AuditServicer(
                    self.stores.audit_reader,
                    self.stores.audit_proof,
                    read=record_of,
                    verifier=_no_keys,
                    identities=self.view.identities,
                    draining=lambda: self.stopping,
                    clock=self.clock,
                ),
                PolicyServicer(FakePolicyDesk()),
                BrokerServicer(FakeBrokerDesk()),
                IncidentServicer(self.stores.incidents),
                self.rollouts.servicer,
                BudgetServicer(self.forecasts, lambda _: None, issuers=["default"], named=self.view, clock=self.clock),
            ],
        )

    @property
    def port(self) -> int:
        return self.server.port

    def me(self) -> Member:
        """What the broker says of itself."""
        return Member(
            broker_id=self.stores.members.broker_id,
            name=self.name,
            address="[::]:8443",
            version="1",
            start_time=datetime(2026, 1, 1, tzinfo=UTC),
            policy_hash=self.policy.current.hash,
            trust_hash=self.trust.current.bundle.hash,
            configuration_hash="configuration",
        )

    @property
    def calls(self) -> int:
        """How many calls have been answered."""
        return sum(count for (metric, _), count in self.meter.counts.items() if metric is metrics.RPC_CALLS)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @asynccontextmanager
    async def channel(self, identity: Leaf | KeyPair | None, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
        """A channel with this identity, as the agent opens it."""
        pair = identity.pair if isinstance(identity, Leaf) else identity
        credentials = channel_credentials(self.ca.root_pem, pair)
        async with open_channel(self.url, credentials, **options) as channel:
            yield channel

    @asynccontextmanager
    async def host(self, **changes: Any) -> AsyncIterator[grpc.aio.Channel]:
        """A channel of the host that policy knows."""
        async with self.channel(self.ca.issue([HOST], **changes)) as channel:
            yield channel

    @property
    def denied(self) -> list[str]:
        """The reasons of the audited denials."""
        return [event.reason_code for event in self.denials.events]


def trust_of(server: Leaf, *cas: PrivateCa) -> LoadedTrust:
    """The server's pair, and the roots of `cas` as the bundle."""
    bundle = TrustBundle.from_pem(b"".join(ca.root_pem for ca in cas))
    return LoadedTrust(server.pair, leaf_facts(server.certificate_pem.decode()), bundle)


@asynccontextmanager
async def serve_edge(ca: PrivateCa | None = None, **options: Any) -> AsyncIterator[EdgeServer]:
    """A started edge; stopped at the end."""
    edge = EdgeServer(ca or PrivateCa("internal"), **options)
    await edge.server.start()
    await edge.stores.changes.look()  # what was there before is known
    works = (edge.hub.supervision.run(), edge.watches.run(), edge.index.run(), edge.health.lead())
    looking = {asyncio.create_task(work) for work in works}
    try:
        yield edge
    finally:
        await edge.server.stop(timedelta())
        for task in looking:
            task.cancel()
        await asyncio.wait(looking)
        edge.pool.close()


@asynccontextmanager
async def serve_two_edges(ca: PrivateCa, postgres_url: str) -> AsyncIterator[tuple[EdgeServer, EdgeServer]]:
    """Two brokers' edges over one database, which know each other."""
    clock = SystemClock()

    def opened(*, exclusive: bool) -> AbstractAsyncContextManager[Stores]:
        return open_stores(driver="postgresql", url=postgres_url, audit=None, exclusive=exclusive, clock=clock)

    async with (
        opened(exclusive=True) as one,
        opened(exclusive=False) as other,
        serve_edge(ca, stores=one, name="machine-1") as first,
        serve_edge(ca, stores=other, name="machine-2") as second,
    ):
        for edge in (first, second):
            edge.stores.changes.follow(ChangeKind.MEMBER, edge.known, what="other brokers")
            await edge.stores.members.renew(edge.me(), timedelta(hours=1))
        for edge in (first, second):
            await edge.known.read()
        yield first, second
