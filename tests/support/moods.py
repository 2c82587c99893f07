"""A registration authority whose CA is a real Pebble behind the fault proxy: the real `AcmeIssuer` between them.

Database and DNS are fakes, since neither is what misbehaves here; Pebble must take every challenge for met
(`PebbleOptions.always_valid`). Waits between tries are short, so that a mood costs no more than it has to.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Self

from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuance.commands import IssueCommand
from certplane.broker.issuance.context import IssuancePorts
from certplane.broker.issuance.epoch import RetryEpoch
from certplane.broker.issuance.settings import IssuanceSettings
from certplane.broker.issuers.acme import AcmeIssuer
from certplane.broker.issuers.acme_account import AccountKey, AccountKeyFile
from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.acme_keeping import AccountKeeper, KeptInFile
from certplane.broker.issuers.acme_registration import ExternalAccount
from certplane.broker.model import Caller, Grant, IdentityKind, Order, OrderState, Profile
from certplane.errors import Refusal
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.rpc.status import refusal_from_status, status_from_refusal
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import SystemClock
from certplane.runtime.pool import BlockingPool
from certplane.sandbox.acme_endpoints import FINALIZE, NEW_ORDER
from certplane.sandbox.fault_proxy import FaultProxy
from certplane.sandbox.pebble import Pebble
from tests.fakes.audit import FakeDenialRecorder, FakeEventRecorder, FakeMeter
from tests.fakes.dns import FakeChallengeSolver, FakeDns
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.support.memory_store import MemoryDatabase, MemoryStores
from tests.support.waiting import until

_SHORT = Backoff(timedelta(milliseconds=40), timedelta(milliseconds=200), floor=timedelta(milliseconds=10))
_numbers = itertools.count(1)
SETTINGS = IssuanceSettings(
    retry=_SHORT,
    store_retry=_SHORT,
    call_timeout=timedelta(seconds=10),
    order_time_limit=timedelta(seconds=20),
)


@dataclass
class Moody:
    """One broker's issuance and the CA that it sees."""

    proxy: FaultProxy
    pebble: Pebble
    issuer: AcmeIssuer
    settings: IssuanceSettings
    dns: FakeDns = field(default_factory=FakeDns)
    others: tuple[AcmeIssuer, ...] = ()
    """Issuers that profiles have behind the first."""

    def __post_init__(self) -> None:
        clock = SystemClock()
        self.database = MemoryDatabase(clock)
        self.policies = FakePolicySource(FakePolicy.of())
        self.meter = FakeMeter()
        self._profiles: dict[tuple[str, ...], Profile] = {}
        self._grants: dict[str, Grant] = {}
        self._clock = clock
        self._ids = itertools.count(1)
        self._issuers = {issuer.name: issuer for issuer in (self.issuer, *self.others)}
        self.authority = self._new_authority()

    def _new_authority(self) -> RegistrationAuthority:
        stores = MemoryStores.over(self.database)
        ports = IssuancePorts(
            policies=self.policies,
            orders=stores.orders,
            shared_orders=stores.shared_orders,
            certificates=stores.certificates,
            keys=stores.keys,
            identities=stores.identities,
            deny_list=stores.deny_list,
            trust=self,
            audit=stores.audit,
            denials=FakeDenialRecorder(stores.audit),
            repeats=FakeEventRecorder(stores.audit),
            issuers=self._issuers,
            revokers=self._issuers,
            solver=FakeChallengeSolver(self.dns),
            holds=stores.holds,
            ledger=stores.budget,
            conditions=stores.conditions,
            epoch=RetryEpoch(self._clock, lambda: f"epoch-{next(self._ids):06d}"),
            clock=self._clock,
            meter=self.meter,
            rng=random.Random(5),
            new_id=lambda: f"id-{next(self._ids):06d}",
        )
        return RegistrationAuthority(ports, self.settings)

    def trusts(self, _anchor: str) -> bool:
        """`IdentityTrust`: no CA is ever removed here."""
        return True

    async def issue(self, *names: str, host: str = "web1.test", wait: float = 20.0) -> Order:
        """Ask as `host` for a certificate of these names, with a new key, and return the order as it is told."""
        return await self.ask(self.request(*names, host=host), host=host, wait=wait)

    def request(self, *names: str, host: str = "web1.test") -> IssueCommand:
        """A request with a new key; policy has what it needs afterwards."""
        profile = self._profiles.setdefault(
            names,
            Profile(
                f"p{len(self._profiles)}",
                "mixed",
                tuple(sorted(names)),
                hash=f"h{len(self._profiles)}",
                issuers=tuple(self._issuers),
            ),
        )
        known = self._grants.get(host, Grant(host, IdentityKind.HOST, host))
        profiles = tuple(dict.fromkeys((*known.profiles, profile.name)))
        self._grants[host] = replace(known, profiles=profiles)
        self.policies.policy = FakePolicy.of(self._grants.values(), self._profiles.values())
        csr = build_csr(generate_private_key(KeyType.EC_P256), sans=names)
        return IssueCommand("req", profile.name, csr, timedelta(seconds=20))

    async def ask(self, command: IssueCommand, *, host: str = "web1.test", wait: float = 20.0) -> Order:
        """Send a request, perhaps again."""
        caller = Caller(
            name=host,
            kind=IdentityKind.HOST,
            label=host,
            profiles=self._grants[host].profiles,
            roles=(),
            serial_number="a1",
            issuer="CN=Test",
            provisioner="JWK",
            not_after=self._clock.now() + timedelta(days=1),
        )
        result = await self.authority.issue(caller, replace(command, wait=timedelta(seconds=wait)))
        return result.order

    async def until(self, order: Order, state: OrderState) -> Order:
        """Wait until the order is in a state."""
        await until(lambda: self.database.orders[order.order_id].state is state, what=f"the order's {state}")
        return self.database.orders[order.order_id]

    async def until_tidy(self) -> None:
        """Wait until no TXT record stands any more: they are removed after the order has ended."""
        await until(lambda: not self.dns.records, what="the removal of all TXT records")

    @property
    def at_ca(self) -> tuple[int, int]:
        """Orders that the CA made, and CSRs that it took."""
        return len(self.proxy.served(NEW_ORDER)), len(self.proxy.served(FINALIZE))

    async def __aenter__(self) -> Self:
        await self.authority.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.authority.drain(timedelta())
        for issuer in self._issuers.values():
            await issuer.ca.close()


def told(order: Order) -> Refusal:
    """The order's error as the agent reads it, after its way over gRPC."""
    assert order.error is not None
    refusal = refusal_from_status(status_from_refusal(order.error))
    assert refusal is not None
    return refusal


@asynccontextmanager
async def moody(
    folder: Path,
    pebble: Pebble,
    *,
    settings: IssuanceSettings = SETTINGS,
    repeat_waits: Backoff = _SHORT,
    email: str = "",
    external: ExternalAccount | None = None,
    keeper: AccountKeeper | None = None,
) -> AsyncIterator[Moody]:
    """The world, with a proxy of its own; the account is the folder's, or the keeper's."""
    kept = None if keeper is None else (keeper, await keeper.load())
    behind = _behind_a_proxy(folder, pebble, "pebble", repeat_waits, email=email, external=external, kept=kept)
    with behind as (proxy, issuer):
        async with Moody(proxy, pebble, issuer, settings) as world:
            yield world


@asynccontextmanager
async def two_issuers(folder: Path, pebble: Pebble) -> AsyncIterator[tuple[Moody, FaultProxy]]:
    """The world with a second issuer, which is the same CA behind a proxy of its own, under an account of its own."""
    with (
        _behind_a_proxy(folder / "first", pebble, "first", _SHORT) as (proxy, issuer),
        _behind_a_proxy(folder / "second", pebble, "second", _SHORT) as (other_proxy, other),
    ):
        impatient = replace(SETTINGS, call_timeout=timedelta(seconds=2), failover_after=timedelta(seconds=1))
        async with Moody(proxy, pebble, issuer, impatient, others=(other,)) as world:
            yield world, other_proxy


@contextmanager
def _behind_a_proxy(
    folder: Path,
    pebble: Pebble,
    name: str,
    repeat_waits: Backoff,
    *,
    email: str = "",
    external: ExternalAccount | None = None,
    settling: timedelta = timedelta(seconds=5),
    kept: tuple[AccountKeeper, AccountKey] | None = None,
) -> Iterator[tuple[FaultProxy, AcmeIssuer]]:
    # A folder of its own: worlds that share an account's file don't share the proxy's certificate.
    own = folder / f"proxy-{next(_numbers)}"
    with FaultProxy(own, pebble.directory_url, roots_file=pebble.https_roots_file, seed=11) as proxy:
        files = BlockingPool("files", 1)
        if kept is None:
            key_file = AccountKeyFile(folder / "account.key")
            kept = KeptInFile(key_file, files), key_file.load()
        keeper, key = kept
        yield (
            proxy,
            AcmeIssuer(
                name,
                AcmeCa(AcmeServer(proxy.url, email, ca_bundle=proxy.roots_file), SystemClock()),
                key,
                rng=random.Random(3),
                repeat_waits=repeat_waits,
                keeper=keeper,
                external=external,
                settling=settling,
            ),
        )
        files.close()
