"""The broker's one place where adapters are wired: who gets which clock, store, policy, issuer and key.

A start goes in this order, and ends at the first step that fails: configuration and the files it names (all their
problems at once), the store with its lock, spilled audit events, `broker_started` in the audit log, the issuer, the
port, the orders of the run before, then calls. A stop goes backwards: health says NOT_SERVING, calls that issue are
told to come back, running orders end or are parked, hosts hear goodbye, the port closes, `broker_stopped` is written,
the store closes.

`prepare` and `open_broker` are the steps for those who bring their own loop (tests, bench); `serve` is the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from certplane import __version__
from certplane.broker import adapters
from certplane.broker.audit import DenialCoalescer, RepeatCoalescer, import_spill
from certplane.broker.control import ControlServer, ReloadResult, control_socket
from certplane.broker.database import locating, secret_source
from certplane.broker.database import stores as open_stores
from certplane.broker.descriptors import most_connections, raise_file_limit, too_few
from certplane.broker.fleet.hub import FleetHub
from certplane.broker.fleet.requests import RenewalRequests
from certplane.broker.fleet.supervision import FleetSupervision
from certplane.broker.fleet.view import FleetView
from certplane.broker.identity.activation import FirstUse
from certplane.broker.identity.admission import AdmissionControl
from certplane.broker.identity.allowances import Allowances, AllowanceSettings
from certplane.broker.identity.authentication import Authenticator
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.epoch import RetryEpoch
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.issuers.acme import AcmeIssuer
from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.broker.metrics_listener import MetricsListener
from certplane.broker.model import AuditEvent, AuditEventType, IdentityKind
from certplane.broker.policy.source import FilePolicySource
from certplane.broker.ports import Meter
from certplane.broker.reload import Reloader, trust_fields
from certplane.broker.renewal.planner import RenewalPlanner
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.renewal.revocations import RevocationWatch
from certplane.broker.retention import Retention
from certplane.broker.secrets.watch import watched
from certplane.broker.services.certificates import CertificateServicer
from certplane.broker.services.enrollment import EnrollmentServicer
from certplane.broker.services.fleet import FleetServicer
from certplane.broker.services.interceptors.edge import Edge
from certplane.broker.services.renewal import RenewalServicer
from certplane.broker.services.server import BrokerServer, PortError
from certplane.broker.services.trust import Trust, TrustFiles, TrustInForce, TrustText
from certplane.broker.settings import BrokerSettings, StoreDriver
from certplane.broker.store import Stores
from certplane.broker.telemetry import PrometheusMeter, watch_loop
from certplane.errors import ConfigurationError, ConfigurationProblem, OperationError, RefusalError
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.ids import TimeOrderedIds
from certplane.runtime.notify import ServiceNotifier
from certplane.runtime.pool import BlockingPool

_logger = logging.getLogger("certplane.broker")

_COME_BACK: Final = timedelta(seconds=10)
"""What a caller is told while the broker drains: a restarted one is usually back by then."""

_STOP_GRACE: Final = timedelta(seconds=5)
"""What calls get to end after the orders have: their answers are on the way."""

_ACCOUNT_CHECK: Final = timedelta(seconds=30)
"""For the look at the DNS providers' credentials, beside everything else."""

_READY_INTERVAL: Final = timedelta(seconds=2)
"""Between looks at whether the store can be written."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Settings, and the files that they name as far as they can be read without changing anything."""

    settings: BrokerSettings
    trust_files: TrustFiles
    trust_text: TrustText
    trust: Trust
    policy: FilePolicySource


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker."""

    settings: BrokerSettings
    server: BrokerServer
    stores: Stores
    trust: TrustInForce
    reloader: Reloader
    meter: PrometheusMeter
    authority: RegistrationAuthority
    renewal_plans: RenewalPlans
    hub: FleetHub
    metrics_listener: MetricsListener | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; the configuration's unless that is 0."""
        return self.server.port


def prepare(settings: BrokerSettings) -> Prepared:
    """Read and check all files that the settings name. Blocks; changes nothing.

    Raises:
        ConfigurationError: everything that is wrong with them, at once.
    """
    problems: list[ConfigurationProblem] = []
    files = TrustFiles(
        cert=settings.server.tls.cert,
        key=settings.server.tls.key,
        agent_ca_bundle=settings.server.mtls.agent_ca_bundle,
        locate=lambda key: settings.source.problem(key, ""),
    )
    policy = FilePolicySource(settings.policy.path, settings.cas, settings.private_issuers)
    text = trust = None
    try:
        text = files.read()
        trust = files.check(text)
    except ConfigurationError as error:
        problems += error.problems
    try:
        locating(settings, lambda: policy.reload().check_grants(), key="policy.path")
    except ConfigurationError as error:
        problems += error.problems
    if problems or text is None or trust is None:
        raise ConfigurationError(problems)
    return Prepared(settings, files, text, trust, policy)


def _supervision(
    hub: FleetHub, view: FleetView, policy: FilePolicySource, clock: Clock, meter: Meter
) -> FleetSupervision:
    return FleetSupervision(
        view=view, watchers=hub.watchers, policy=policy, clock=clock, meter=meter, settings=hub.settings
    )


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
    new_event_id = TimeOrderedIds(clock)
    meter = PrometheusMeter()
    async with AsyncExitStack() as stack:
        files = BlockingPool("broker-files", 2)
        stack.callback(files.close)
        epoch = RetryEpoch(clock, new_event_id)
        secrets = watched(
            secret_source(settings, files, clock), lambda name: epoch.move(f"the secret {name} is another one")
        )
        stores = await stack.enter_async_context(open_stores(settings, secrets, clock, meter, exclusive=True))
        if settings.audit.enabled:
            await import_spill(settings.spill_path, stores.audit, clock)
        denials, repeats = await stack.enter_async_context(_coalescing(stores, clock, new_event_id, meter))
        await stores.audit.append(_start_events(prepared, clock, new_event_id))

        plans = RenewalPlans(stores.renewal_plans)
        await plans.refresh(clock.now())
        accounts = await files.run(adapters.account_keys, settings)
        issuers = adapters.issuers(settings, accounts, secrets, clock, rng)
        for issuer in issuers.values():
            stack.callback(issuer.close)
        solver = adapters.solver(settings, secrets, clock, rng)
        stack.push_async_callback(solver.close)
        trust = TrustInForce(prepared.trust, clock.now())
        authority = RegistrationAuthority(
            IssuancePorts(
                policies=prepared.policy,
                orders=stores.orders,
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
                preflight=await stack.enter_async_context(adapters.preflight(settings, solver, issuers, clock)),
                epoch=epoch,
                clock=clock,
                renewals=plans,
                meter=meter,
                rng=rng,
                new_id=new_event_id,
            ),
            _issuance_settings(settings, accounts.values()),
        )
        admission = _admission(prepared, trust, stores, clock=clock, new_event_id=new_event_id, meter=meter)
        edge = Edge(admission=admission, denials=denials, meter=meter, clock=clock, new_event_id=new_event_id)
        hub = FleetHub(
            store=stores.fleet,
            plans=plans,
            find_certificate=stores.certificates.get_certificate,
            hashes=lambda: (prepared.policy.current.hash, trust.current.bundle.hash, epoch.current),
            count_displacement=stores.identities.count_displacement,
            repeats=repeats,
            clock=clock,
            meter=meter,
            rng=rng,
            new_event_id=new_event_id,
        )
        plans.subscribe(hub.plans_changed)
        plans.subscribe_revoked(hub.certificate_revoked)
        view = FleetView(
            hub=hub,
            store=stores.fleet,
            plans=plans,
            policy=prepared.policy,
            identities=stores.identities,
            deny_list=stores.deny_list,
            clock=clock,
        )
        requests = RenewalRequests(plans, stores.fleet, clock, new_event_id, why_none=view.why_none)
        server = _bind(
            settings,
            trust,
            edge,
            EnrollmentServicer(
                trust=trust,
                policy=prepared.policy,
                enrollments=stores.enrollments,
                identities=stores.identities,
                repeats=repeats,
                clock=clock,
                new_event_id=new_event_id,
            ),
            CertificateServicer(authority, clock, plans),
            renewals=RenewalServicer(hub, view),
            fleet=FleetServicer(view, requests, hub),
        )
        listener = None
        if settings.metrics.address is not None:
            listener = MetricsListener(settings.metrics.address, meter.registry)
            stack.callback(listener.close)
        reloader = Reloader(
            trust=trust,
            files=prepared.trust_files,
            loaded=prepared.trust_text,
            policy=prepared.policy,
            watch_policy=settings.policy.watch,
            settings=settings,
            audit=stores.audit,
            meter=meter,
            clock=clock,
            new_event_id=new_event_id,
            ask_again=epoch.ask_again,
            take_limits=authority.take_limits,
        )
        broker = Broker(settings, server, stores, trust, reloader, meter, authority, plans, hub, listener)
        await authority.start([profile.name for profile in prepared.policy.current.profiles])
        stack.push_async_callback(_stop, broker, clock, new_event_id)
        await server.start()
        _log_started(prepared, broker)
        await stack.enter_async_context(_running(reloader.run(), "reload"))
        sources = adapters.renewal_infos(settings, accounts, clock)
        for source in sources.values():
            stack.callback(source.close)
        planner = RenewalPlanner(
            plans, sources, prepared.policy, clock=clock, rng=rng, new_event_id=new_event_id, meter=meter
        )
        retention = _retention(settings, stores, files, clock=clock, meter=meter)
        for name, work in (
            ("renewal plans", planner.run()),
            ("revocations", RevocationWatch(stores.certificates, plans, clock).run()),
            ("streams", hub.run()),
            ("health of the fleet", _supervision(hub, view, prepared.policy, clock, meter).run()),
            ("readiness", _watch_readiness(broker, prepared.policy, clock)),
            ("secrets", secrets.watch(clock, lambda: authority.in_trouble)),
            ("event loop", watch_loop(meter, clock)),
            ("retention", retention.prune()),
            ("free space", retention.watch()),
            ("DNS accounts", _check_dns_accounts(solver, prepared.policy)),
            ("CA directories", _check_directories(issuers.values())),
        ):
            await stack.enter_async_context(_running(work, name))
        yield broker


async def serve(settings: BrokerSettings) -> None:
    """Run the broker until SIGTERM or SIGINT; SIGHUP reads policy, pair and bundle again.

    Raises:
        ConfigurationError: see `prepare` and `open_broker`.
        OperationError: see `open_broker`.
        RefusalError: see `open_broker`.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # before there is anything to reload: not the end of it
    for notice in settings.notices:
        _logger.warning("%s", notice)
    clock = SystemClock()
    prepared = prepare(settings)
    hosts = sum(grant.kind is IdentityKind.HOST for grant in prepared.policy.current.grants)
    if problem := too_few(raise_file_limit(), hosts):
        _logger.warning("%s", problem)
    if not hosts:
        _logger.warning("the policy has no host: none can connect before one is added and the policy is reloaded")
    async with open_broker(prepared, clock=clock) as broker, ServiceNotifier(clock) as notifier:
        reloading = _Reloading(broker, notifier)
        loop.add_signal_handler(signal.SIGHUP, reloading.signalled)
        path = control_socket(settings.spill_path.parent, Path(settings.source.file))
        async with ControlServer(path, reloading.reload):
            notifier.ready(reloading.status)
            await stop.wait()
        _logger.info("stopping", extra={"fields": {"drain_timeout": str(settings.server.drain_timeout)}})


@asynccontextmanager
async def _coalescing(
    stores: Stores, clock: Clock, new_event_id: Callable[[], str], meter: Meter
) -> AsyncIterator[tuple[DenialCoalescer, RepeatCoalescer]]:
    """What counts repeated audit events, after the counts of a broker that was killed have become events."""
    await stores.repeats.recover()
    denials = DenialCoalescer(stores.audit, clock, new_event_id)
    repeats = RepeatCoalescer(stores.audit, stores.repeats, clock, new_event_id, meter=meter)
    async with denials.running(), repeats.running():
        yield denials, repeats


class _Reloading:
    """Reloads, and what the service manager is told of them: `systemctl status` has it while anything is refused."""

    def __init__(self, broker: Broker, notifier: ServiceNotifier) -> None:
        self._broker = broker
        self._notifier = notifier
        self._tasks: set[asyncio.Task[ReloadResult]] = set()
        broker.reloader.on_refused = lambda _: notifier.status(self.status)

    @property
    def status(self) -> str:
        """One line for `systemctl status`."""
        return "; ".join((f"serving on port {self._broker.port}", *self._broker.reloader.refused))

    def signalled(self) -> None:
        """Reload; nobody waits for the result but the log."""
        task = asyncio.create_task(self.reload(), name="reload on SIGHUP")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def reload(self) -> ReloadResult:
        """Reload, and wait for the result."""
        self._notifier.reloading()
        result = await self._broker.reloader.request()
        self._notifier.ready(self.status)
        return result


def _retention(
    settings: BrokerSettings, stores: Stores, files: BlockingPool, *, clock: Clock, meter: Meter
) -> Retention:
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


def _issuance_settings(settings: BrokerSettings, accounts: Iterable[AccountKey]) -> IssuanceSettings:
    defaults = IssuanceSettings()
    # The check ends by itself at its own limit, with the server's name in its error; this one only backs it.
    propagation_timeout = adapters.propagation_limit(settings) + timedelta(seconds=10)
    return IssuanceSettings(
        limits=settings.rate_limits.durable_limits,
        account_keys_sha256=frozenset(account.public_key_sha256 for account in accounts),
        propagation_timeout=propagation_timeout,
        order_time_limit=max(defaults.order_time_limit, 2 * propagation_timeout),
    )


def _admission(
    prepared: Prepared,
    trust: TrustInForce,
    stores: Stores,
    *,
    clock: Clock,
    new_event_id: Callable[[], str],
    meter: Meter,
) -> AdmissionControl:
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
            provisioners=(*server.mtls.provisioners, *([""] if server.mtls.allow_missing_provisioner else [])),
            clock=clock,
        ),
        first_use=FirstUse(ledger=stores.identities, clock=clock, new_event_id=new_event_id, meter=meter),
        allowances=Allowances(allowances, clock),
        clock=clock,
    )


def _bind(
    settings: BrokerSettings,
    trust: TrustInForce,
    edge: Edge,
    enrollment: EnrollmentServicer,
    certificates: CertificateServicer,
    *,
    renewals: RenewalServicer,
    fleet: FleetServicer,
) -> BrokerServer:
    try:
        return BrokerServer(
            address=settings.server.address.target,
            connections=most_connections(),
            tls=trust.tls,
            edge=edge,
            enrollment=enrollment,
            certificates=certificates,
            renewals=renewals,
            fleet=fleet,
        )
    except PortError as error:
        remedy = "stop the other program, or change server.address"
        raise OperationError(str(error), remedy=remedy) from error


def _start_events(prepared: Prepared, clock: Clock, new_event_id: Callable[[], str]) -> list[AuditEvent]:
    policy_hash = prepared.policy.current.hash
    trust = prepared.trust
    started = (
        f"version {__version__}, configuration {prepared.settings.hash}, server certificate "
        f"{trust.server.serial_number}, agent CA bundle {trust.bundle.hash}"
    )
    return [
        AuditEvent(new_event_id(), clock.now(), event_type, policy_hash=policy_hash, reason=reason)
        for event_type, reason in (
            (AuditEventType.BROKER_STARTED, started),
            (AuditEventType.POLICY_LOADED, f"loaded {prepared.policy.path}"),
        )
    ]


def _log_started(prepared: Prepared, broker: Broker) -> None:
    fields = {
        "version": __version__,
        "address": str(broker.settings.server.address),
        "port": broker.port,
        "configuration_hash": broker.settings.hash,
        "policy_hash": prepared.policy.current.hash,
        "issuers": ", ".join(f"{name} {ca.directory_url}" for name, ca in broker.settings.cas.items()),
        "store": broker.settings.store.driver.value,
        **trust_fields(prepared.trust),
    }
    _logger.info("serving", extra={"fields": fields})


async def _stop(broker: Broker, clock: Clock, new_event_id: Callable[[], str]) -> None:
    await broker.server.drain(_COME_BACK)
    await broker.authority.drain(broker.settings.server.drain_timeout)
    await broker.hub.drain()
    await broker.server.stop(_STOP_GRACE)
    event = AuditEvent(new_event_id(), clock.now(), AuditEventType.BROKER_STOPPED)
    try:
        await broker.stores.audit.append([event])
    except RefusalError:
        _logger.exception("the stop could not be audited")
    _logger.info("stopped")


async def _watch_readiness(broker: Broker, policy: FilePolicySource, clock: Clock) -> None:
    """Let health say whether the store can be written: calls that need it would be refused.

    Beside it whether every profile can have certificates, which is for alarms: nobody is kept away for it.
    """
    ready = True
    blocked: Collection[str] = ()
    while True:
        await clock.sleep(_READY_INTERVAL)
        now_blocked = broker.authority.blocked([profile.name for profile in policy.current.profiles])
        if now_blocked != blocked:
            blocked = now_blocked
            names = ", ".join(sorted(blocked)) or "none"
            _logger.log(logging.ERROR if blocked else logging.INFO, "profiles that wait for a person: %s", names)
            await broker.server.set_issuing(well=not blocked)
        now_ready = broker.stores.ready()
        if now_ready != ready:
            ready = now_ready
            _logger.log(logging.INFO if ready else logging.ERROR, "the store is %s", "ready" if ready else "not ready")
            await broker.server.set_ready(ready=ready)


async def _check_directories(issuers: Iterable[AcmeIssuer]) -> None:
    """Say at the start, not at the first order, which CA's directory can't be read. Holds nothing up."""
    async with asyncio.TaskGroup() as group:
        for issuer in issuers:
            group.create_task(issuer.note_directory(_ACCOUNT_CHECK))


async def _check_dns_accounts(solver: DnsSolver, policy: FilePolicySource) -> None:
    """Say at the start, not at the first renewal weeks later, what DNS credentials can't do. Holds nothing up."""
    for finding in await solver.check_accounts(policy.current.profiles, _ACCOUNT_CHECK):
        level = logging.ERROR if finding.fatal else logging.WARNING
        _logger.log(level, "DNS provider: %s", finding.message, extra={"fields": {"remedy": finding.remedy}})


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run `work` beside the block; should it fail, say so in the log and let the block go on."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report_end)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _logger.critical("%s has ended unexpectedly; restart the broker", task.get_name(), exc_info=task.exception())
