"""Many orders at once over a deployed broker: who asks, and what the CA, the DNS and the callers saw of it.

    storm = Storm(200)
    async with storm.deployed(folder, pebble=PebbleOptions(nonce_rejects=20)) as broker:
        ended = await storm.issue(broker)
        assert not left_records(...)

Each order is for names of its own and a key of its own; ten of a host's share its identity and its connection, as ten
certificates on one host do. A caller whose order is still under way when its call ends asks again, as an agent does.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.sandbox import faults
from certplane.sandbox.acme_endpoints import FINALIZE, NEW_ORDER
from certplane.sandbox.cloudflare_api import Fault
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.exchange import Exchange
from certplane.sandbox.fault_proxy import FaultProxy
from certplane.sandbox.pebble import PebbleOptions
from certplane.v1 import certificate_pb2 as pb
from tests.support.deployed_broker import DeployedBroker, issue
from tests.support.limits import UNLIMITED

ZONE = "certplane.test"
_PER_HOST = 10
_CALL_SECONDS = 20.0
_ENDED = frozenset({pb.Order.STATE_ISSUED, pb.Order.STATE_FAILED})


@dataclass(frozen=True, slots=True)
class Ended:
    """One order's end as its caller was told: the state's name, the CA's or our words, seconds since the first call."""

    state: str
    message: str
    seconds: float


@dataclass(frozen=True, slots=True)
class AtCa:
    """What the CA has served of some exchanges.

    Attributes:
        orders: URLs of the orders that it made.
        finalized: paths of the finalisations that it took.
    """

    orders: tuple[str, ...]
    finalized: tuple[str, ...]

    @classmethod
    def served(cls, proxy: FaultProxy, since: int = 0) -> AtCa:
        """From the exchanges that the proxy has seen, after the first `since` of them."""

        def taken(kind: str) -> Iterator[Exchange]:
            for exchange in proxy.seen()[since:]:
                if exchange.kind == kind and exchange.served is not None and 200 <= exchange.served.status < 300:
                    yield exchange

        orders = [e.served.header("Location") for e in taken(NEW_ORDER) if e.served is not None]
        return cls(tuple(orders), tuple(e.path for e in taken(FINALIZE)))


class Storm:
    """So many certificates, each a profile of its own with `names` names in one zone."""

    def __init__(self, orders: int, *, names: int = 2) -> None:
        self.orders = orders
        labels = ("", "www.", "api.", "mail.")[:names]
        self._names = {f"p{n}": [f"{label}p{n}.{ZONE}" for label in labels] for n in range(orders)}
        profiles = sorted(self._names, key=lambda name: int(name[1:]))
        self._hosts = {
            f"storm{number}.{ZONE}": list(mine) for number, mine in enumerate(_chunks(profiles, _PER_HOST), start=1)
        }

    @property
    def policy(self) -> dict[str, Any]:
        """Content of policy.yml."""
        return {
            "version": 1,
            "profiles": {
                profile: {"type": "multi_san", "dns_names": names, "acme": {"challenge": "dns-01"}}
                for profile, names in self._names.items()
            },
            "hosts": {
                host.split(".")[0]: {"identity": host, "profiles": profiles} for host, profiles in self._hosts.items()
            },
        }

    @property
    def host(self) -> str:
        """The identity whose profile is `p0`."""
        return next(iter(self._hosts))

    @property
    def challenge_names(self) -> list[str]:
        """Where TXT records of the orders may stand."""
        return [f"_acme-challenge.{name}" for names in self._names.values() for name in names]

    def names_of(self, profile: str) -> list[str]:
        """A profile's names."""
        return self._names[profile]

    @asynccontextmanager
    async def deployed(
        self, folder: Path, *, pebble: PebbleOptions | None = None, broker: Mapping[str, Any] | None = None
    ) -> AsyncIterator[DeployedBroker]:
        """A deployment whose broker has no limits of its own, behind a fault proxy, started.

        `broker` is laid over those sections of broker.yml that it names.
        """
        settings = {
            "rate_limits": UNLIMITED,
            "server": {"calls_per_identity_per_second": 1_000_000, "calls_burst": 1_000_000},
        }
        options = DeploymentOptions(self.policy, broker={**settings, **(broker or {})}, pebble=pebble, proxied=True)
        async with Deployment(folder, options) as deployment:
            await deployment.start_broker()
            running = DeployedBroker(deployment)
            for host in self._hosts:
                await running.identity(host)
            yield running

    async def issue(
        self, broker: DeployedBroker, profiles: Sequence[str] = (), *, time_limit: float = 300.0
    ) -> list[Ended]:
        """Ask for all certificates (or those of `profiles`) at once, with new keys; returns when every order has ended.

        Raises:
            TimeoutError: some have not in `time_limit` seconds.
        """
        wanted = set(profiles or self._names)
        csrs = {
            profile: build_csr(generate_private_key(KeyType.EC_P256), sans=self._names[profile]) for profile in wanted
        }
        async with AsyncExitStack() as stack:
            asked = [
                (await stack.enter_async_context(broker.channel(host)), [name for name in mine if name in wanted])
                for host, mine in self._hosts.items()
                if wanted.intersection(mine)
            ]
            async with asyncio.timeout(time_limit):
                return await asyncio.gather(
                    *(_ask(channel, profile, csrs[profile]) for channel, mine in asked for profile in mine)
                )


async def _ask(channel: grpc.aio.Channel, profile: str, csr_pem: str) -> Ended:
    begun = time.monotonic()
    while True:
        response = await issue(channel, wait=_CALL_SECONDS, profile=profile, csr_pem=csr_pem)
        if response.order.state in _ENDED:
            state = pb.Order.State.Name(response.order.state).removeprefix("STATE_")
            return Ended(state, response.order.error.message, time.monotonic() - begun)


def trouble(broker: DeployedBroker) -> None:
    """From now on the CA and the DNS API answer 5 % of all calls with 503; nonces are Pebble's to reject.

    The CA's come from in front of it, as a load balancer's do: it hasn't been asked. Of the DNS API's, two in five come
    after it has done what it was asked to.
    """
    deployment = broker.deployment
    assert deployment.proxy is not None
    deployment.proxy.add(faults.answer(503), times=None, probability=0.05)
    deployment.cloudflare.fail_often(Fault(503, 10_000, "Service temporarily unavailable"), 0.03)
    deployment.cloudflare.fail_often(Fault(503, 10_000, "Service temporarily unavailable", after_commit=True), 0.02)


async def records_left(broker: DeployedBroker, names: Sequence[str]) -> list[str]:
    """Those of `names` at which the DNS server still has a TXT record, once it has every change that the API took."""
    await broker.deployment.cloudflare.spread()
    endpoint = broker.deployment.dns.endpoint
    found = await asyncio.gather(*(endpoint.txt(name) for name in names))
    return [name for name, values in zip(names, found, strict=True) if values]


def _chunks(of: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    entries = iter(of)
    while chunk := tuple(itertools.islice(entries, size)):
        yield chunk
