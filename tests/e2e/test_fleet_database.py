"""The database of several brokers that is cut off, gone, read-only or restored: what brokers and hosts do, as programs.

Three brokers reach one PostgreSQL by a cable each; a real agent knows all three.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from certplane.sandbox.deployment import Host
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.pebble import PebbleOptions
from certplane.sandbox.postgres import SUPERUSER, PostgresCluster
from tests.support.cable import Cable
from tests.support.database_servers import DATABASE
from tests.support.deployed_broker import issue
from tests.support.fleet import OPERATOR, Fleet, policy_of
from tests.support.killing import KILLED, assert_issued_once, ended, killing_at, leaf_of
from tests.support.parts import need_part
from tests.support.several_brokers import Broker
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

CALLER, AGENT = "web1.certplane.test", "web2.certplane.test"
PROFILES = ["cut", "gone1", "gone2", "gone3", "read1", "read2", "read3", "yesterday", "refused"]
WEB = {"name": "web", "profile": "web", "dns_names": ["web.certplane.test"]}
READ_ONLY = "ALTER SYSTEM SET default_transaction_read_only = on"
WRITABLE = "ALTER SYSTEM RESET default_transaction_read_only"
RELOAD = "SELECT pg_reload_conf()"
TCP_PATIENCE = timedelta(seconds=20)
"""After which the kernel gives a connection up that nobody acknowledges: `tcp_user_timeout` of `store.servers`."""


class World:
    """The brokers, their cables, the database, and a host whose agent runs."""

    def __init__(self, fleet: Fleet, cluster: PostgresCluster, cables: list[Cable]) -> None:
        self.fleet = fleet
        self.cluster = cluster
        self.cables = cables
        link = {"url": None, "urls": fleet.urls, "timeout": "5s"}
        self.host: Host = fleet.deployment.add_host(AGENT, [WEB], agent={"broker": link})

    async def certificate(self, profile: str, *brokers: Broker) -> x509.Certificate:
        """One of a new key, for whose order is asked at the first broker that can take it."""
        return await self.fleet.certificate(CALLER, profile, self.fleet.csr(f"{profile}.certplane.test"), *brokers)

    async def refusal(self, broker: Broker) -> str:
        """What a broker says to who wants a certificate, in the words of the refusal's details; empty if it doesn't refuse."""
        async with self.fleet.channel(CALLER, broker) as channel:
            try:
                await issue(channel, profile="refused", csr_pem=self.fleet.csr("refused.certplane.test"))
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - it needn't be raised
                return repr(error.trailing_metadata())
        return ""

    async def is_healthy(self, broker: Broker) -> bool:
        """What a load balancer is told."""
        async with self.fleet.channel(OPERATOR, broker) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(service="certplane.v1.CertificateService"))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def until_all_serve(self) -> None:
        """Wait until all brokers have a lease and say so."""
        for broker in self.fleet.brokers:
            if not broker.process.running:
                await broker.start()

            async def serves(broker: Broker = broker) -> bool:
                return await self.is_healthy(broker)

            await until(serves, poll=0.2, what=f"health of the broker at {broker.url}")

    async def until_host_is_known(self, brokers: Sequence[Broker] = ()) -> None:
        """Wait until each of these brokers (all) shows the host as connected, with the certificate that it has."""

        async def known() -> bool:
            serial = format(leaf_of(self.host, "web").serial_number, "x")
            for broker in brokers or self.fleet.brokers:
                host = (await self.fleet.hosts(broker)).get(AGENT)
                held = (
                    [each.installed.serial_number for each in host.certificates if each.name == "web"] if host else []
                )
                if host is None or not host.connected or held != [serial]:
                    return False
            return True

        await until(known, poll=0.3, what="a host that all brokers show as it is")

    async def under_way(self, *profiles: str) -> None:
        """Wait until the orders of these profiles are at the CA, and the database knows where."""
        query = "SELECT profile FROM orders WHERE acme_order_url <> ''"

        async def known() -> bool:
            return {(profile,) for profile in profiles} <= set(await self.fleet.query(query))

        await until(known, what=f"orders of {profiles} at the CA")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    need_part("pebble")
    profiles = {name: [f"{name}.certplane.test"] for name in (*PROFILES, "web")}
    policy = policy_of(profiles, {CALLER: PROFILES, AGENT: ["web"]})
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(PostgresCluster(part=need_part("postgresql")))
        url = await cluster.create_database(DATABASE)
        cables = [await stack.enter_async_context(Cable.to(LOOPBACK, cluster.port)) for _ in range(3)]
        urls = [f"postgresql://{SUPERUSER}@{LOOPBACK}:{cable.port}/{DATABASE}" for cable in cables]
        pebble = PebbleOptions(validation_sleep=timedelta(seconds=1))
        folder = tmp_path_factory.mktemp("fleet-database")
        fleet = await stack.enter_async_context(Fleet.running(folder, policy, urls, commands_url=url, pebble=pebble))
        await fleet.enroll(CALLER, OPERATOR)
        made = World(fleet, cluster, cables)
        for command in (["enroll"], ["run", "--once"]):
            done = await made.host.run(*command)
            assert done.status == 0, done.stderr
        await made.host.start()
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def world(started: World) -> AsyncIterator[World]:
    """All is well, before and after."""
    await started.until_all_serve()
    await started.until_host_is_known()
    yield started
    await started.until_all_serve()
    await started.until_host_is_known()
    started.fleet.assert_no_tracebacks()


async def test_a_broker_that_is_cut_off_from_the_database(world: World) -> None:
    """It says so, refuses, and its order ends at another one; when it reaches the database again it is one of them."""
    fleet = world.fleet
    cut, *others = fleet.brokers
    before = len(fleet.deployment.pebble.log.orders)
    asked = asyncio.create_task(world.certificate("cut", cut, *others))
    await world.under_way("cut")
    world.cables[0].pull(TCP_PATIENCE)
    await cut.until_lost()
    assert "STORE_UNAVAILABLE" in await world.refusal(cut)
    assert not await world.is_healthy(cut)
    leaf = await asked
    assert [await world.is_healthy(broker) for broker in others] == [True, True]
    world.cables[0].plug()
    await cut.until_leased_again()
    await fleet.until_settled()
    await assert_issued_once(fleet.deployment, leaf)
    assert len(fleet.deployment.pebble.log.orders) == before + 1


async def test_a_database_that_is_gone_for_longer_than_every_lease(world: World) -> None:
    """All brokers refuse and wait, hosts keep what they have to say, and all goes on by itself when it is back."""
    fleet = world.fleet
    before = len(fleet.deployment.pebble.log.orders)
    asked = [
        asyncio.create_task(world.certificate(f"gone{number}", broker, *fleet.brokers))
        for number, broker in enumerate(fleet.brokers, start=1)
    ]
    await world.under_way("gone1", "gone2", "gone3")
    await world.cluster.stop()
    await asyncio.gather(*(broker.until_lost() for broker in fleet.brokers))
    for broker in fleet.brokers:
        assert "STORE_UNAVAILABLE" in await world.refusal(broker)
        assert not await world.is_healthy(broker)
    await world.cluster.start()
    await asyncio.gather(*(broker.until_leased_again() for broker in fleet.brokers))
    leaves = await asyncio.gather(*asked)
    await fleet.until_settled()
    for leaf in leaves:
        await assert_issued_once(fleet.deployment, leaf)
    assert len(fleet.deployment.pebble.log.orders) == before + 3


async def test_a_database_that_can_only_be_read(world: World) -> None:
    """What issues is refused with STORE_UNAVAILABLE, what reads is answered; writable again, all brokers issue."""
    fleet = world.fleet
    await world.cluster.execute(READ_ONLY)
    await world.cluster.execute(RELOAD)
    try:
        for broker in fleet.brokers:
            # Sessions of before see the new default with their next transaction; until then one may be written.
            async def refused(broker: Broker = broker) -> bool:
                return "STORE_UNAVAILABLE" in await world.refusal(broker)

            await until(refused, poll=0.2, what="a refusal")
            assert AGENT in await fleet.hosts(broker)
    finally:
        await world.cluster.execute(WRITABLE)
        await world.cluster.execute(RELOAD)
    await world.until_all_serve()
    for number, broker in enumerate(fleet.brokers, start=1):
        await assert_issued_once(fleet.deployment, await world.certificate(f"read{number}", broker))


async def test_a_database_that_is_restored_to_yesterday(world: World) -> None:
    """An order of yesterday that has ended since isn't issued again, and a host that is ahead of the database comes back.

    What was issued since is the CA's and the host's; the database doesn't know it, and the host renews all the same.
    """
    fleet, host = world.fleet, world.host
    dying, *others = fleet.brokers
    await dying.start(killing_at("order.answer.before"))
    asked = asyncio.create_task(world.certificate("yesterday", *fleet.brokers))
    assert await ended(dying.process) == KILLED
    await world.cluster.stop()
    await world.cluster.keep_copy()
    await world.cluster.start()
    leaf = await asked
    renewed = await host.run("renew", "web")
    assert renewed.status == 0, renewed.stderr
    await world.until_host_is_known(others)
    await world.cluster.stop()
    await world.cluster.restore_copy()
    await world.cluster.start()
    await world.until_all_serve()
    await fleet.until_settled()
    await assert_issued_once(fleet.deployment, leaf)
    await world.until_host_is_known()
    again = await host.run("renew", "web")
    assert again.status == 0, again.stderr
