"""Brokers that share one PostgreSQL, the servers around them, and what must hold of all of them together.

async with Fleet.running(folder, policy, [url] * 3) as fleet:
    first, second, third = fleet.brokers
    leaf = await fleet.certificate("web1.certplane.test", "web", fleet.csr("web"), first)
    ...
    await fleet.assert_issued_once(leaf)

What was issued is counted at Pebble, what is left over in the DNS, and what was told in the audit log: `killing` has the
rest of it, which reads the database by the deployment's own broker.yml.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psycopg
from cryptography import x509

from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key, public_key_sha256
from certplane.sandbox.certificates import Credential
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.fleet_broker import shared
from certplane.sandbox.loopback import steady_port
from certplane.sandbox.pebble import PebbleOptions
from certplane.v1 import certificate_pb2, fleet_pb2_grpc, renewal_pb2
from certplane.v1 import fleet_pb2 as pb
from tests.support.cable import Cable
from tests.support.deployed_broker import DeployedBroker, issue
from tests.support.killing import events, settle_on_a_port
from tests.support.limits import UNLIMITED
from tests.support.several_brokers import Broker
from tests.support.waiting import HANG, until

OPERATOR = "alice.certplane.test"
LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL})
"""How a lost connection is told; the second where a write was under way, which grpc's client reports before the end.
The first is also what a broker says that can't answer now, and another one can."""

_SERVER = {"drain_timeout": "1s", "calls_per_identity_per_second": 10_000, "calls_burst": 10_000}
_AGAIN = 0.2
"""Seconds between two questions of a caller that was refused, which is load and no wait for anything."""
_BUSY = "SELECT order_id, state, holder FROM orders WHERE end_time IS NULL OR txt_records IS NOT NULL"


def policy_of(profiles: Mapping[str, Sequence[str]], hosts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Content of policy.yml: names of each profile, profiles of each host (by its first label), and an operator."""
    return {
        "version": 1,
        "profiles": {name: {"type": "multi_san", "dns_names": list(names)} for name, names in profiles.items()},
        "hosts": {name.partition(".")[0]: {"identity": name, "profiles": list(mine)} for name, mine in hosts.items()},
        "operators": {"alice": {"identity": OPERATOR, "roles": ["operator"]}},
    }


class Fleet:
    """Brokers of one deployment; none runs before `start`."""

    def __init__(self, deployment: Deployment, store_urls: Sequence[str]) -> None:
        """As many brokers as there are URLs, which may lead to the one database by different ways."""
        self.deployment = deployment
        self.brokers = [
            Broker(deployment, number, port=steady_port() if number > 1 else 0, store_url=url)
            for number, url in enumerate(store_urls, start=1)
        ]
        self._asking = DeployedBroker(deployment)

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        folder: Path,
        policy: Mapping[str, Any],
        store_urls: Sequence[str],
        *,
        commands_url: str = "",
        pebble: PebbleOptions | None = None,
        limits: Sequence[Mapping[str, Any]] = (),
    ) -> AsyncIterator[Fleet]:
        """Everything started.

        Args:
            folder: For all files.
            policy: policy.yml, of all brokers.
            store_urls: The database as each broker is told of it.
            commands_url: The same for commands beside, and for tests; the first broker's unless given.
            pebble: How the CA behaves.
            limits: Of the CA, by which the brokers count.
        """
        common, secrets = shared(commands_url or store_urls[0])
        if limits:
            common["issuer"]["acme"]["limits"] = [*limits]
        broker = {**common, "rate_limits": UNLIMITED, "server": _SERVER}
        options = DeploymentOptions(policy, dns_provider="rfc2136", broker=broker, secrets=secrets, pebble=pebble)
        async with Deployment(folder, options) as deployment:
            settle_on_a_port(deployment)
            fleet = cls(deployment, store_urls)
            try:
                await fleet.start()
                yield fleet
            finally:
                await fleet.stop()

    async def start(self) -> None:
        """Start all together: one of them makes the schema and the ACME account, whichever it is."""
        await asyncio.gather(*(broker.start() for broker in self.brokers))

    async def stop(self) -> None:
        """Stop all, those too that stand still."""
        for broker in self.brokers:
            if broker.process.running:
                broker.go_on()
        await asyncio.gather(*(broker.process.stop() for broker in self.brokers))

    @property
    def urls(self) -> list[str]:
        """`broker.urls` of agent.yml."""
        return [broker.url for broker in self.brokers]

    # ---- callers ---------------------------------------------------------------------------------------------------

    def channel(self, name: str, broker: Broker | Cable) -> AbstractAsyncContextManager[grpc.aio.Channel]:
        """A channel to a broker with the identity of this name, which is made at its first use."""
        return self._asking.channel(name, broker.port)

    async def identity(self, name: str) -> Credential:
        """The identity of this name."""
        return await self._asking.identity(name)

    async def enroll(self, *names: str) -> None:
        """Make identities, so that no test waits for them in the midst of it."""
        for name in names:
            await self._asking.identity(name)

    def csr(self, *dns_names: str) -> str:
        """A CSR of a new key."""
        return build_csr(generate_private_key(KeyType.EC_P256), sans=list(dns_names))

    async def certificate(self, host: str, profile: str, csr_pem: str, *brokers: Broker) -> x509.Certificate:
        """What a host does: ask the first broker, and the next one when one doesn't answer, until it is issued."""
        pb_state = certificate_pb2.Order
        for broker in itertools.cycle(brokers or self.brokers):
            try:
                async with self.channel(host, broker) as channel:
                    response = await issue(channel, profile=profile, csr_pem=csr_pem)
            except grpc.aio.AioRpcError as error:
                if error.code() not in LOST:
                    raise
                await asyncio.sleep(_AGAIN)
                continue
            assert response.order.state != pb_state.STATE_FAILED, response.order.error.message
            if response.order.state == pb_state.STATE_ISSUED:
                return x509.load_pem_x509_certificate(response.certificate.certificate_pem.encode())
        raise AssertionError("there are no brokers")

    async def hosts(self, broker: Broker) -> dict[str, Any]:
        """All hosts by name as a broker shows them to an operator."""
        found: dict[str, Any] = {}
        async with self.channel(OPERATOR, broker) as channel:
            stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
            token = ""
            while True:
                request = pb.ListHostsRequest(page_size=100, page_token=token)
                answer = await stub.ListHosts(request, timeout=HANG)
                found |= {host.name: host for host in answer.hosts}
                token = answer.next_page_token
                if not token:
                    return found

    async def connected(self, broker: Broker) -> set[str]:
        """The hosts that a broker shows as connected, at whatever broker."""
        return {name for name, host in (await self.hosts(broker)).items() if host.connected}

    async def ask_for_renewal(self, broker: Broker, **selection: Any) -> pb.RequestRenewalResponse:
        """`RequestRenewal` of an operator; `selection` has the fields of `Selection`."""
        async with self.channel(OPERATOR, broker) as channel:
            stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
            request = pb.RequestRenewalRequest(selection=pb.Selection(**selection), reason="a drill")
            answer: pb.RequestRenewalResponse = await stub.RequestRenewal(request, timeout=HANG)
            return answer

    # ---- the database ----------------------------------------------------------------------------------------------

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of the database, by the way of commands."""
        url = self.deployment.options.broker["store"]["url"]
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            return await (await connection.execute(statement.encode())).fetchall()

    async def until_settled(self) -> None:
        """Wait until every order has ended and taken its TXT records away."""
        left: list[Any] = []

        async def settled() -> bool:
            left[:] = await self.query(_BUSY)
            return not left

        try:
            await until(settled, poll=_AGAIN)
        except AssertionError:
            raise AssertionError(f"orders that nobody ends: {left}") from None

    async def until_leases_end(self, count: int) -> None:
        """Wait until no more than `count` brokers have a lease, by the database's clock."""
        query = "SELECT count(*) FROM brokers WHERE lease_until > extract(epoch FROM clock_timestamp()) * 1000000"

        async def ended() -> bool:
            ((living,),) = await self.query(query)
            return bool(living <= count)

        await until(ended, poll=_AGAIN, what=f"leases of {count} brokers and no more")

    # ---- what must hold --------------------------------------------------------------------------------------------

    async def assert_nothing_doubled(self) -> None:
        """Each certificate of the CA is for a key of its own, by one finalisation, and is in the log once."""
        pebble = self.deployment.pebble
        made = await pebble.issued_certificates()
        keys = Counter(public_key_sha256(certificate.public_key()) for certificate in made)
        assert set(keys.values()) <= {1}, "a second certificate for a key"
        assert set(Counter(pebble.log.finalizations).values()) <= {1}, "a second finalisation of an order"
        issued = await self.query("SELECT public_key_sha256 FROM orders WHERE state = 'ISSUED'")
        assert sorted(keys) == sorted(key for (key,) in issued)
        told = await events(self.deployment, event_type="certificate_issued")
        serials = sorted(format(certificate.serial_number, "x") for certificate in made)
        assert sorted(event["cert_serial_number"] for event in told) == serials

    async def assert_no_records_left(self, *dns_names: str) -> None:
        """No challenge record is left at these names; removals wait for company, some seconds."""
        endpoint = self.deployment.dns.endpoint
        left: list[str] = []

        async def swept() -> bool:
            found = await asyncio.gather(*(endpoint.txt(f"_acme-challenge.{name}") for name in dns_names))
            left[:] = [name for name, values in zip(dns_names, found, strict=True) if values]
            return not left

        try:
            await until(swept, poll=_AGAIN)
        except AssertionError:
            raise AssertionError(f"TXT records are left at {left}") from None

    def assert_no_tracebacks(self) -> None:
        """No broker met a fault that it hadn't expected, since its last start."""
        for broker in self.brokers:
            assert "Traceback" not in broker.log, broker.log[broker.log.index("Traceback") - 500 :][:4000]


def is_waiting(host: Any, name: str) -> bool:
    """Whether a certificate of a host is in use and nothing is under way."""
    state = renewal_pb2.CertificateStatus.STATE_WAITING
    return any(each.name == name and each.state == state for each in host.certificates)
