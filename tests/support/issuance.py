"""A whole registration authority on fakes, and the world around it that outlives a crash."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from unittest import mock

from certplane.broker.audit import RepeatCoalescer
from certplane.broker.audit.fallback import FailureMode
from certplane.broker.budget.model import IssuerLimits
from certplane.broker.events import AuditEventType
from certplane.broker.issuance import order_context
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuance.commands import IssueCommand
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.epoch import RetryEpoch
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.members.ports import LastingLease, Lease
from certplane.broker.model import (
    Caller,
    Grant,
    IdentityKind,
    IdentityUse,
    IssuerOrderStatus,
    KnownIdentity,
    Order,
    OrderState,
    Profile,
)
from certplane.broker.ports import EventRecorder
from certplane.broker.renewal.plans import RenewalPlans
from certplane.errors import Reason, RefusalError
from certplane.pki.csr import build_csr, parse_csr
from certplane.pki.keys import KeyType, PrivateKey, generate_private_key
from tests.fakes.audit import FakeDenialRecorder, FakeEventRecorder, FakeMeter
from tests.fakes.clock import ManualClock
from tests.fakes.dns import FakeChallengeSolver, FakeDns, FakePreflight
from tests.fakes.issuer import FakeCa, FakeIssuer, FakeRevoker
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.support.memory_store import MemoryDatabase, MemoryStores

NAMES = ("*.shop.test", "shop.test")
NO_WAIT = timedelta()

running: list[RegistrationAuthority] = []
"""Those that were started and not killed yet: a task whose owner is forgotten would be collected while it waits."""


async def kill_all() -> None:
    """End every authority as a kill does: nothing is finished, nothing parked."""
    supervisors = [authority._dispatcher._supervisor for authority in running]
    running.clear()
    for supervisor in filter(None, supervisors):
        supervisor.cancel()
        await asyncio.wait({supervisor})


_SHOP = Profile("shop", "mixed", NAMES, hash="shop-hash")
_MAIL = Profile("mail", "multi_san", ("mail.test",), hash="mail-hash")


def key(name: str = "one") -> PrivateKey:
    """The key of this name, the same one each time."""
    return _key(name)


def csr(name: str = "one", names: tuple[str, ...] = NAMES) -> str:
    """A CSR of the key of this name."""
    return _csr(name, names)


@cache
def _key(name: str) -> PrivateKey:
    return generate_private_key(KeyType.EC_P256)


@cache
def _csr(name: str, names: tuple[str, ...]) -> str:
    return build_csr(_key(name), sans=names)


def key_hash(name: str = "one") -> str:
    """The hash of the key of this name."""
    return parse_csr(csr(name)).public_key_sha256


def caller(name: str = "web1.test") -> Caller:
    """A host that was let in."""
    return Caller(
        name=name,
        kind=IdentityKind.HOST,
        label=name,
        profiles=("shop",),
        roles=(),
        serial_number="a1",
        issuer="CN=Test CA",
        provisioner="JWK",
        not_after=ManualClock().now() + timedelta(days=1),
        source_ip="192.0.2.7",
        user_agent="test/1",
        anchor="anchor",
    )


def policy(*, shop: Profile | None = _SHOP, hosts: tuple[str, ...] = ("web1.test", "web2.test")) -> FakePolicy:
    """Two hosts that may have `shop` and `mail`."""
    profiles = [profile for profile in (shop, _MAIL) if profile is not None]
    names = tuple(profile.name for profile in profiles)
    return FakePolicy.of([Grant(host, IdentityKind.HOST, host, names) for host in hosts], profiles)


def unavailable(reason: Reason = Reason.ISSUER_UNAVAILABLE, retry_after: timedelta | None = None) -> RefusalError:
    """What a port raises when something outside is away."""
    return RefusalError(reason, "out of order", retry_after=retry_after)


async def settle(turns: int = 400) -> None:
    """Let everything run that can run without time passing."""
    for _ in range(turns):
        await asyncio.sleep(0)


_processes = itertools.count(1)
"""Each names its events and certificates otherwise, as processes do: the store takes no id twice."""


@dataclass
class World:
    """What a crash of the broker doesn't touch: time, policy, the database's disk, the CA and the DNS."""

    clock: ManualClock = field(default_factory=ManualClock)
    failure_mode: FailureMode = "fail_closed"
    settings: IssuanceSettings = field(default_factory=IssuanceSettings)
    policies: FakePolicySource = field(default_factory=lambda: FakePolicySource(policy()))
    budgets: dict[str, IssuerLimits] = field(default_factory=dict)
    """The CAs' limits by issuer."""
    coalesces: bool = False
    """Whether repeated events are counted together, as a broker does, or each is written."""

    def __post_init__(self) -> None:
        self.database = MemoryDatabase(self.clock, failure_mode=self.failure_mode)
        self.dns = FakeDns()
        self.ca = FakeCa(self.clock, self.dns)
        self.connect()

    def connect(self) -> None:
        """New ports to the world, as a new process has them."""
        self.stores = MemoryStores.over(self.database)
        self.issuer = FakeIssuer(self.ca)
        self.revoker = FakeRevoker(self.ca)
        self.anchors: set[str] = {"anchor"}
        """The internal CAs that are trusted."""
        self.others: list[FakeIssuer] = []
        """Issuers beside it."""
        self.solver = FakeChallengeSolver(self.dns)
        self.preflight = FakePreflight()
        self.plans = RenewalPlans(self.stores.renewal_plans)
        self.meter = FakeMeter()
        self.denials = FakeDenialRecorder(self.stores.audit)
        self.repeats: EventRecorder = FakeEventRecorder(self.stores.audit)
        if self.coalesces:
            numbers = itertools.count(1)
            self.repeats = RepeatCoalescer(
                self.stores.audit, self.stores.repeats, self.clock, lambda: f"count-{next(numbers):06d}"
            )
        self._ids = itertools.count(1)
        self._prefix = f"id{next(_processes):06x}"
        self.epoch = RetryEpoch(self.clock, lambda: f"{self._prefix}-{next(self._ids):06d}")

    def fork(self) -> World:
        """The world as a process finds it that starts after this moment's power cut."""
        other = World(self.clock, self.failure_mode, self.settings, self.policies, self.budgets, self.coalesces)
        other.database = self.database.fork()
        other.dns = self.dns.fork()
        other.ca = self.ca.fork(other.dns)
        other.connect()
        return other

    def authority(self, *, lease: Lease | None = None) -> RegistrationAuthority:
        """A broker's registration authority in this world."""
        ports = IssuancePorts(
            policies=self.policies,
            orders=self.stores.orders,
            shared_orders=self.stores.shared_orders,
            certificates=self.stores.certificates,
            keys=self.stores.keys,
            identities=self.stores.identities,
            deny_list=self.stores.deny_list,
            trust=self,
            audit=self.stores.audit,
            denials=self.denials,
            repeats=self.repeats,
            issuers={issuer.name: issuer for issuer in (self.issuer, *self.others)},
            revokers={self.issuer.name: self.revoker},
            solver=self.solver,
            holds=self.stores.holds,
            ledger=self.stores.budget,
            budgets=self.budgets,
            conditions=self.stores.conditions,
            preflight=self.preflight,
            lease=lease or LastingLease(),
            epoch=self.epoch,
            clock=self.clock,
            renewals=self.plans,
            meter=self.meter,
            rng=random.Random(7),
            new_id=lambda: f"{self._prefix}-{next(self._ids):06d}",
        )
        return RegistrationAuthority(ports, self.settings)

    async def started(self) -> RegistrationAuthority:
        """A registration authority that is running."""
        authority = self.authority()
        await authority.start(list(self.policies.policy.profiles))
        running.append(authority)
        return authority

    def trusts(self, anchor: str) -> bool:
        """`IdentityTrust`."""
        return anchor in self.anchors

    def contest(self, name: str = "web1.test") -> None:
        """Somebody else has used a retired certificate of this identity."""
        now = self.clock.now()
        active, retired = (IdentityUse("CN=Test CA", serial, now, now, "192.0.2.9") for serial in ("a1", "b2"))
        self.database.put_identity(KnownIdentity(name, active, now, (retired,), contest=retired))

    def change_profile(self, **changes: object) -> None:
        """Reload policy with another `shop`."""
        self.policies.policy = policy(shop=replace(_SHOP, **changes))  # type: ignore[arg-type] # fields by name

    @property
    def orders(self) -> list[Order]:
        """All orders, oldest first."""
        return list(self.database.orders.values())

    @property
    def order(self) -> Order:
        """The only order."""
        (order,) = self.database.orders.values()
        return order

    def kinds(self) -> list[str]:
        """The audit log's event types, oldest first."""
        return [event.event_type.value for event in self.database.events]

    def logged(self, event_type: AuditEventType) -> int:
        """How many events of this type the audit log has."""
        return sum(event.event_type is event_type for event in self.database.events)

    async def run_on(self, step: timedelta = timedelta(seconds=20), turns: int = 200) -> None:
        """Let time pass until no order is open any more."""
        for _ in range(turns):
            await settle(60)
            if all(not order.state.is_open for order in self.orders):
                await settle()
                return
            self.clock.advance(step)
        raise AssertionError(f"orders are still open: {[order.state for order in self.orders]}")

    @contextmanager
    def at_failpoints(self, hook: Callable[[str], None]) -> Iterator[None]:
        """Call `hook` at each failpoint that an order passes."""
        with mock.patch.object(order_context, "failpoint", hook):  # the one seam that a crash needs
            yield


def issue(
    name: str = "one", *, wait: timedelta = timedelta(minutes=1), replaces: str = "", **more: str
) -> IssueCommand:
    """A request of the key of this name for `shop`."""
    return IssueCommand(
        request_id=more.get("request_id", "req-1"),
        profile=more.get("profile", "shop"),
        csr_pem=more.get("csr_pem", csr(name)),
        wait=wait,
        replaces_certificate_id=replaces,
    )


async def lose_order(world: World, status: IssuerOrderStatus | None = None) -> str:
    """Have the CA lose an order before its CSR is sent, or `status` for it; all runs on to the end. Its URL."""
    gate = world.issuer.faults.hold("answer_challenges")
    world.issuer.faults.fail("answer_challenges", unavailable())
    authority = await world.started()
    await authority.issue(caller(), issue(wait=NO_WAIT))
    await settle()
    (url,) = world.ca.orders
    if status is None:
        world.ca.orders["https://ca.test/order/0"] = replace(world.ca.orders[url], url="https://ca.test/order/0")
        world.ca.forget(url)
    else:
        world.ca.set_status(url, status)
    gate.set()
    await world.run_on()
    return url


def ended(order: Order) -> bool:
    """Whether an order is in a final state with what belongs to it."""
    if order.state is OrderState.ISSUED:
        return bool(order.certificate_id) and order.error is None
    return order.state is OrderState.FAILED and order.error is not None and order.retry_time is not None
