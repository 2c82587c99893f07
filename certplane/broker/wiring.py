"""Parts of a broker that follow from its settings and from a few others, put together for `app`."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta

from certplane.broker.budget.model import IssuerLimits
from certplane.broker.descriptors import most_connections
from certplane.broker.events import AuditTrail
from certplane.broker.fleet.circumstances import HostCircumstances
from certplane.broker.fleet.elsewhere import ShutOuts
from certplane.broker.fleet.hub import FleetHub
from certplane.broker.fleet.indexing import MemoryIndex
from certplane.broker.fleet.model import StreamBroker
from certplane.broker.fleet.places import HostPlaces
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.fleet.view import FleetView
from certplane.broker.identity.activation import FirstUse
from certplane.broker.identity.admission import AdmissionControl
from certplane.broker.identity.allowances import Allowances, AllowanceSettings
from certplane.broker.identity.authentication import Authenticator
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.epoch import RetryEpoch
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.broker.issuers.dns.settings import propagation_limit
from certplane.broker.issuing.remote import RemoteIssuer
from certplane.broker.members.ports import Lease, OtherBrokers
from certplane.broker.metrics_listener import MetricsListener
from certplane.broker.model import ChangeKind
from certplane.broker.ports import (
    ChallengeSolver,
    DenialRecorder,
    EventRecorder,
    Meter,
    OrderPreflight,
    PolicySource,
    RenewalTimes,
)
from certplane.broker.prepared import Prepared
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.retention import Retention
from certplane.broker.services.interceptors.edge import Edge
from certplane.broker.services.server import BrokerServer, Servicer
from certplane.broker.services.trust import TrustInForce
from certplane.broker.settings import BrokerSettings, StoreDriver
from certplane.broker.store import Stores
from certplane.broker.telemetry import PrometheusMeter
from certplane.broker.watches.desk import WatchDesk
from certplane.broker.watches.elsewhere import follow_watched
from certplane.broker.watches.places import WatchPlaces
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool


@contextmanager
def metrics_listener(settings: BrokerSettings, meter: PrometheusMeter) -> Iterator[MetricsListener | None]:
    """The listener for metrics, where there is to be one."""
    if settings.metrics.address is None:
        yield None
        return
    with closing(MetricsListener(settings.metrics.address, meter.registry)) as listener:
        yield listener


def retention_of(
    settings: BrokerSettings, stores: Stores, files: BlockingPool, *, clock: Clock, meter: Meter
) -> Retention:
    """What keeps the database small, and watches the room that it has."""
    places = {"store": settings.store.path.parent} if settings.store.driver is StoreDriver.SQLITE else {}
    if settings.audit.enabled:
        places["spill"] = settings.spill_path.parent
    return Retention(
        stores.upkeep,
        keep_audit=settings.audit.keep.span,
        keep_ended=settings.store.keep.span,
        places=places,
        clock=clock,
        meter=meter,
        files=files,
    )


def issuance_settings(settings: BrokerSettings, account_keys_sha256: Collection[str]) -> IssuanceSettings:
    """The issuance core's, as broker.yml has them; `account_keys_sha256` are the keys that no certificate may have."""
    defaults = IssuanceSettings()
    # The check ends by itself at its own limit, with the server's name in its error; this one only backs it.
    propagation_timeout = propagation_limit(settings.issuer.acme, settings.dns) + timedelta(seconds=10)
    return IssuanceSettings(
        limits=settings.rate_limits.durable_limits,
        account_keys_sha256=account_keys_sha256,
        propagation_timeout=propagation_timeout,
        order_time_limit=max(defaults.order_time_limit, 2 * propagation_timeout),
        approving_issuers=frozenset(settings.proves_by(ChallengeKind.NONE)),
    )


def admission_control(
    prepared: Prepared,
    trust: TrustInForce,
    stores: Stores,
    *,
    clock: Clock,
    trail: AuditTrail,
    meter: Meter,
) -> AdmissionControl:
    """What every call passes."""
    server = prepared.settings.server
    allowances = AllowanceSettings(
        calls_per_second=server.calls_per_identity_per_second, calls_burst=server.calls_burst
    )
    return AdmissionControl(
        authenticator=Authenticator(
            trust=trust,
            policy=prepared.policy,
            deny_list=stores.deny_list,
            min_tls_version=server.tls.min_version,
            provisioners=server.mtls.accepted_provisioners,
            clock=clock,
        ),
        first_use=FirstUse(ledger=stores.identities, clock=clock, trail=trail, meter=meter),
        allowances=Allowances(allowances, clock),
        clock=clock,
    )


def listening_server(settings: BrokerSettings, trust: TrustInForce, edge: Edge, *servicers: Servicer) -> BrokerServer:
    """The server, which doesn't listen yet."""
    return BrokerServer(
        address=settings.server.address.target,
        reuse_port=settings.server.reuse_port,
        connections=most_connections(),
        tls=trust.tls,
        edge=edge,
        servicers=servicers,
    )


def issuance_ports(
    stores: Stores,
    policies: PolicySource,
    *,
    budgets: Mapping[str, IssuerLimits],
    trust: TrustInForce,
    denials: DenialRecorder,
    repeats: EventRecorder,
    issuers: Mapping[str, RemoteIssuer],
    solver: ChallengeSolver,
    preflight: OrderPreflight,
    lease: Lease,
    epoch: RetryEpoch,
    renewals: RenewalTimes,
    clock: Clock,
    meter: Meter,
    rng: random.Random,
    new_id: Callable[[], str],
) -> IssuancePorts:
    """What the issuance core works through, over the database and the process that does ACME and DNS."""
    return IssuancePorts(
        policies=policies,
        orders=stores.orders,
        shared_orders=stores.shared_orders,
        certificates=stores.certificates,
        keys=stores.keys,
        identities=stores.identities,
        deny_list=stores.deny_list,
        trust=trust,
        audit=stores.audit,
        denials=denials,
        repeats=repeats,
        issuers=issuers,
        revokers=issuers,
        solver=solver,
        preflight=preflight,
        lease=lease,
        holds=stores.holds,
        ledger=stores.budget,
        budgets=budgets,
        conditions=stores.conditions,
        epoch=epoch,
        clock=clock,
        renewals=renewals,
        meter=meter,
        rng=rng,
        new_id=new_id,
    )


def fleet_hub(
    stores: Stores,
    plans: RenewalPlans,
    *,
    hashes: Callable[[], tuple[str, str, str]],
    repeats: EventRecorder,
    stream_age: timedelta | None,
    clock: Clock,
    meter: Meter,
    rng: random.Random,
    trail: AuditTrail,
) -> FleetHub:
    """The hosts' streams; `hashes` are what is in force."""
    return FleetHub(
        store=stores.fleet,
        plans=plans,
        find_certificate=stores.certificates.get_certificate,
        activations=stores.rollouts,
        hashes=hashes,
        count_displacement=stores.identities.count_displacement,
        repeats=repeats,
        clock=clock,
        meter=meter,
        rng=rng,
        trail=trail,
        settings=StreamSettings(age=stream_age),
    )


@dataclass(frozen=True, slots=True)
class FleetParts:
    """What the broker knows of the fleet: in short, in memory; each host as it is recorded; and services that watch."""

    index: MemoryIndex
    view: FleetView
    watches: WatchDesk


def fleet_parts(
    hub: FleetHub,
    stores: Stores,
    plans: RenewalPlans,
    policy: PolicySource,
    *,
    address: str,
    others: OtherBrokers,
    clock: Clock,
    name: str = "",
) -> FleetParts:
    """All, hearing what `hub` hears. The broker's machine is called `name`, and it listens on `address`."""
    circumstances = HostCircumstances(policy, stores.identities, stores.deny_list, clock)
    here = StreamBroker(stores.fleet.broker_id, name or socket.gethostname(), address)
    places = HostPlaces(hub.registry, here, others)
    watches = WatchDesk(
        store=stores.watches,
        held=stores.watches,
        hashes=hub.supervision.hashes,
        settings=hub.context.settings,
        clock=clock,
        meter=hub.context.meter,
        rng=hub.context.rng,
    )
    hub.accompany(watches)
    services = WatchPlaces(watches, stores.watches, here, others)
    index = MemoryIndex(
        store=stores.fleet,
        issued=stores.issued,
        places=places,
        policy=policy,
        circumstances=circumstances,
        clock=clock,
        settings=hub.context.settings,
        health_changed=lambda host: hub.watchers.host_changed(host, clock.now()),
        services=services,
    )
    follow_watched(watches, plans, stores.order_listing, stores.changes, index.service_watches)
    hub.watchers.listen(index)
    # Behind the deny-list and the identities themselves, which follow these first.
    for kind in (ChangeKind.DENY_ENTRY, ChangeKind.IDENTITY):
        stores.changes.follow(kind, ShutOuts(index), what="who gets no certificates, for the index of the fleet")
    stores.identities.on_contested = index.shut_out
    view = FleetView(
        hub=hub,
        store=stores.fleet,
        plans=plans,
        policy=policy,
        identities=stores.identities,
        circumstances=circumstances,
        places=places,
        index=index,
        clock=clock,
        services=services,
    )
    return FleetParts(index, view, watches)
