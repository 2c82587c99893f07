"""The broker's one place where adapters are wired: who gets which clock, store, policy, issuer and key.

A start goes in this order, and ends at the first step that fails: configuration and the files it names (all their
problems at once), the store with its lock, spilled audit events, `broker_started` in the audit log, the issuing process
(which starts beside all that), the port, the orders of the run before, then calls. A stop goes backwards: health says
NOT_SERVING, calls that issue are told to come back, running orders end or are parked, hosts hear goodbye, the port
closes, `broker_stopped` is written, the store closes, the issuing process ends.
`serving.serve` is the program; `background` has what runs beside the calls, `wiring` and `sharing` make single parts.
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from certplane.broker.accounts.in_use import AccountsInUse
from certplane.broker.announced import log_started, start_events, who
from certplane.broker.audit_desk import audit_service, auditing
from certplane.broker.background import check_directories, running, watch_dns_accounts, watch_readiness
from certplane.broker.broker_desk import BrokersDesk
from certplane.broker.budget_desk import budget_service, budget_watch, forecasts_of
from certplane.broker.configured import secret_source
from certplane.broker.enrollment_desk import enrollment_service
from certplane.broker.events import AuditTrail
from certplane.broker.fleet.audience import TrustAudience
from certplane.broker.fleet.elsewhere import follow_others
from certplane.broker.fleet.health_watch import HealthWatch
from certplane.broker.fleet.hub import FleetHub
from certplane.broker.fleet_desk import fleet_service
from certplane.broker.forwarding import copying_audit
from certplane.broker.incident_desk import also_of_incidents, incident_watch
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuance.compromised import CompromisedKeys
from certplane.broker.issuance.epoch import RetryEpoch
from certplane.broker.issuing import messages
from certplane.broker.issuing.accounts import AccountAnswers
from certplane.broker.issuing.measured import MeasuredCalls
from certplane.broker.issuing.remote import RemoteIssuer, RemotePreflight, RemoteRenewalInfo, RemoteSolver
from certplane.broker.issuing.supervision import IssuingProcess
from certplane.broker.joining import among_others, member_of
from certplane.broker.members.ports import LastingLease, NoOtherBrokers
from certplane.broker.members.view import BrokersView
from certplane.broker.metrics_listener import MetricsListener
from certplane.broker.model import ChangeKind
from certplane.broker.notifying import notifying
from certplane.broker.out_of_service import OutOfService
from certplane.broker.own_troubles import own_troubles
from certplane.broker.policy.source import FilePolicySource
from certplane.broker.policy_desk import policy_service
from certplane.broker.prepared import Prepared
from certplane.broker.reload import Reloader
from certplane.broker.renewal.planner import RenewalPlanner
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.rollout_desk import RolloutParts, rollout_parts
from certplane.broker.services.brokers import BrokerServicer
from certplane.broker.services.certificates import CertificateServicer
from certplane.broker.services.incident_forecasts import ForecastsOfIncidents
from certplane.broker.services.incidents import IncidentServicer
from certplane.broker.services.interceptors.edge import Edge
from certplane.broker.services.orders import OrderServicer
from certplane.broker.services.renewal import RenewalServicer
from certplane.broker.services.server import BrokerServer
from certplane.broker.services.trust import TrustInForce
from certplane.broker.settings import BrokerSettings
from certplane.broker.settings_in_force import SettingsInForce
from certplane.broker.sharing import accounts_in_use, membership_of, roles_of, stores_of_a_broker
from certplane.broker.stopping import Stopping
from certplane.broker.store import Stores
from certplane.broker.telemetry import PrometheusMeter, watch_loop
from certplane.broker.wiring import (
    FleetParts,
    admission_control,
    fleet_hub,
    fleet_parts,
    issuance_ports,
    issuance_settings,
    listening_server,
    metrics_listener,
)
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.ids import TimeOrderedIds
from certplane.runtime.pool import BlockingPool


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker."""

    settings: BrokerSettings
    policy: FilePolicySource
    server: BrokerServer
    stores: Stores
    trust: TrustInForce
    reloader: Reloader
    meter: PrometheusMeter
    authority: RegistrationAuthority
    renewal_plans: RenewalPlans
    hub: FleetHub
    fleet: FleetParts
    start_time: datetime
    accounts: AccountsInUse
    desk: BrokersDesk
    rollouts: RolloutParts
    metrics_listener: MetricsListener | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; the configuration's unless that is 0."""
        return self.server.port


@asynccontextmanager
async def open_broker(prepared: Prepared, *, clock: Clock | None = None) -> AsyncIterator[Broker]:
    """A broker that serves for the length of the block, and drains and stops at its end.

    Raises:
        ConfigurationError: what only a start can tell: the account key, the secrets' directory, the DNS provider.
        OperationError: the store is another broker's or can't be opened, or a port can't be listened on.
        RefusalError: STORE_UNAVAILABLE or AUDIT_UNAVAILABLE: the start can't be recorded.
    """
    clock = clock or SystemClock()
    settings = prepared.settings
    rng = random.SystemRandom()
    trail = AuditTrail(clock, new_id := TimeOrderedIds(clock))
    meter = PrometheusMeter()
    async with AsyncExitStack() as stack:
        files = BlockingPool("broker-files", 2)
        stack.callback(files.close)
        epoch = RetryEpoch(clock, new_id)
        secrets = secret_source(settings, files, clock)  # for the database's password; all others are the process's
        issuing = IssuingProcess(
            messages.Begin(settings.source.file, settings.source.text, settings.logging.level),
            meter=meter,
            secret_changed=lambda name: epoch.move(f"the secret {name} has changed"),
            started_again=lambda: epoch.move("the issuing process was started again"),
            accounts=AccountAnswers(awaited=settings.stores_account_keys),
        )
        issuing_started = await stack.enter_async_context(issuing.running())
        stores = await stack.enter_async_context(stores_of_a_broker(settings, secrets, clock, meter))
        denials, repeats, seals = await stack.enter_async_context(
            auditing(settings, stores, secrets, clock=clock, new_id=new_id, meter=meter)
        )
        broker_name = who(settings, stores.members.broker_id)
        await stores.audit.append(start_events(prepared, trail, broker_name))

        plans = RenewalPlans(stores.renewal_plans)
        solver = RemoteSolver(calls := MeasuredCalls(issuing, clock, meter), clock)
        issuers = {name: RemoteIssuer(calls, name, ca.directory_url) for name, ca in settings.cas.items()}
        trust = TrustInForce(prepared.trust, clock.now())
        accounts = await accounts_in_use(settings, stores, issuers, issuing, issuing_started, clock=clock)
        membership = membership_of(settings, stores, lambda: member_of(broker), clock=clock, meter=meter)
        lease = membership or LastingLease()
        authority = RegistrationAuthority(
            issuance_ports(
                stores,
                prepared.policy,
                budgets=settings.budgets,
                trust=trust,
                denials=denials,
                repeats=repeats,
                issuers=issuers,
                solver=solver,
                preflight=RemotePreflight(issuing),
                lease=lease,
                epoch=epoch,
                renewals=plans,
                clock=clock,
                meter=meter,
                rng=rng,
                new_id=new_id,
            ),
            issuance_settings(settings, accounts),
        )
        edge = Edge(
            admission=admission_control(prepared, trust, stores, clock=clock, trail=trail, meter=meter),
            denials=denials,
            meter=meter,
            clock=clock,
            trail=trail,
        )
        hub = fleet_hub(
            stores,
            plans,
            hashes=lambda: (prepared.policy.current.hash, trust.current.bundle.hash, epoch.current),
            repeats=repeats,
            stream_age=settings.server.stream_age.span,
            clock=clock,
            meter=meter,
            rng=rng,
            trail=trail,
        )
        follow_others(hub, plans, stores.certificates, stores.changes, clock)
        await stores.changes.read_first(ChangeKind.PLAN)
        others = membership.known if membership else NoOtherBrokers()
        fleet = fleet_parts(
            hub,
            stores,
            plans,
            prepared.policy,
            address=str(settings.server.address),
            others=others,
            clock=clock,
        )
        reloader = Reloader(
            prepared,
            trust,
            SettingsInForce(settings, take_limits=authority.take_limits, take_level=issuing.set_level),
            audience=TrustAudience(stores.fleet, hub.registry, prepared.policy, others).hosts,
            ask_again=epoch.ask_again,
            audit=stores.audit,
            meter=meter,
            clock=clock,
            trail=trail,
        )
        desk = BrokersDesk(
            trust=trust,
            reloader=reloader,
            service=OutOfService(
                server=lambda: broker.server,
                authority=authority,
                hub=hub,
                membership=membership,
                members=stores.members,
                audit=stores.audit,
                trail=trail,
                called=broker_name,
            ),
            stores=stores,
            new_id=new_id,
            clock=clock,
        )
        rollouts = rollout_parts(
            stores,
            plans,
            hub,
            fleet,
            authority,
            forecasts=(forecasts := forecasts_of(settings, stores, plans, prepared.policy, pool=files, clock=clock)),
            policy=prepared.policy,
            issuers=[*settings.cas],
            lease=lease,
            pool=files,
            clock=clock,
            rng=rng,
            trail=trail,
            meter=meter,
        )
        server = listening_server(
            settings,
            trust,
            edge,
            enrollment_service(
                stores,
                secrets,
                prepared.identity_ca,
                trust=trust,
                policy=prepared.policy,
                repeats=repeats,
                clock=clock,
                trail=trail,
            ),
            CertificateServicer(authority, clock, plans),
            RenewalServicer(hub, fleet.view, fleet.watches),
            OrderServicer(
                orders := authority.overview(
                    stores.order_listing, others.find, left=forecasts.left, name=socket.gethostname()
                )
            ),
            fleet_service(
                settings,
                stores,
                plans,
                hub,
                fleet,
                brokers=BrokersView(stores.members, lambda: member_of(broker), lease),
                authority=authority,
                orders=orders,
                policy=prepared.policy,
                forecasts=forecasts,
                clock=clock,
                trail=trail,
            ),
            rollouts.servicer,
            policy_service(prepared.policy, reloader, stores),
            audit_service(
                settings, stores, secrets, identities=fleet.view.identities, draining=lambda: hub.stopping, clock=clock
            ),
            BrokerServicer(desk),
            IncidentServicer(stores.incidents, ForecastsOfIncidents(forecasts, clock)),
            budget_service(settings, forecasts, orders, fleet, clock),
        )
        listener = stack.enter_context(metrics_listener(settings, meter))
        broker = Broker(
            settings,
            prepared.policy,
            server,
            stores,
            trust,
            reloader,
            meter,
            authority,
            plans,
            hub,
            fleet,
            clock.now(),
            accounts,
            desk,
            rollouts,
            listener,
        )
        issuing.in_trouble = lambda: authority.in_trouble
        await stack.enter_async_context(among_others(membership, broker, epoch))
        await authority.start([profile.name for profile in prepared.policy.current.profiles])
        stack.push_async_callback(
            Stopping(
                server,
                authority,
                hub,
                rollouts.watchers,
                stores.audit,
                trail,
                broker_name,
                settings.server.drain_timeout,
            ).stop
        )
        await server.start()
        log_started(prepared, stores.members.broker_id, broker.port)
        await stack.enter_async_context(running(reloader.run(), "reload"))
        asked = {name: RemoteRenewalInfo(calls, name) for name, ca in settings.cas.items() if ca.renewal_info.enabled}
        health = HealthWatch(
            index=fleet.index,
            policy=prepared.policy,
            clock=clock,
            meter=meter,
            settings=hub.context.settings,
            most_hosts=settings.metrics.certificates_up_to_hosts,
            label_keys=settings.metrics.host_labels,
        )
        own = own_troubles(settings, stores, trust, issuing, files, seals=seals, trail=trail, clock=clock, meter=meter)
        roles = roles_of(
            stores,
            membership,
            planner=(
                planner := RenewalPlanner(plans, asked, prepared.policy, clock=clock, rng=rng, trail=trail, meter=meter)
            ),
            health=health,
            incidents=(
                incidents := incident_watch(
                    stores, fleet.index, plans, prepared, rollouts=rollouts.desk, clock=clock, meter=meter, trail=trail
                )
            ),
            rollouts=rollouts.runner,
            compromised=CompromisedKeys(stores.certificates, authority, clock, rng),
            retention=own.retention,
            soundness=own.soundness,
            notifications=await stack.enter_async_context(
                notifying(
                    settings,
                    secrets,
                    stores.outbox,
                    fleet,
                    rollouts.also(also_of_incidents(own, incidents.known), clock),
                    clock=clock,
                    meter=meter,
                )
            ),
            seals=seals,
            forwarding=await stack.enter_async_context(
                copying_audit(settings, secrets, stores, clock=clock, meter=meter)
            ),
            budget=budget_watch(stores, prepared.policy, authority, forecasts, clock=clock, meter=meter),
            clock=clock,
            meter=meter,
        )
        for name, work in (
            ("renewal plans", planner.run()),
            ("streams", hub.supervision.run()),
            ("services that watch", fleet.watches.run()),
            ("index of the fleet", fleet.index.run()),
            (
                "readiness",
                watch_readiness(
                    broker.server, authority, stores, prepared.policy, lease=lease, issuing=issuing, clock=clock
                ),
            ),
            ("event loop", watch_loop(meter, clock)),
            ("roles", roles.run()),
            ("free space", own.retention.watch()),
            ("accounts at the CAs", accounts.run()),
            (
                "DNS accounts",
                watch_dns_accounts(solver, prepared.policy, authority.blocked, epoch.move, clock),
            ),
            ("CA directories", check_directories(issuers.values())),
        ):
            await stack.enter_async_context(running(work, name))
        yield broker
