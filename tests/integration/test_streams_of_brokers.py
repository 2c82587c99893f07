"""A host's stream at one of two brokers over one PostgreSQL: each answers for it, and it moves from one to the other."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import perf_counter

import psycopg
import pytest
import pytest_asyncio

from certplane.broker.model import ChangeKind
from certplane.errors import Reason
from certplane.fleet_report.model import CertificateState
from certplane.v1 import fleet_pb2 as pb
from certplane.v1 import fleet_pb2_grpc, renewal_pb2
from tests.support.ca import PrivateCa
from tests.support.calls import refused
from tests.support.edge import HOST, OPERATOR, EdgeServer, serve_two_edges
from tests.support.stores import NO_LIMITS, certificate, draft
from tests.support.stream_host import host_of
from tests.support.streams import HostStreamClient, report
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.integration

SECOND = 1.0


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


@pytest_asyncio.fixture
async def edges(ca: PrivateCa, migrated_url: str) -> AsyncIterator[tuple[EdgeServer, EdgeServer]]:
    async with serve_two_edges(ca, migrated_url) as both:
        yield both


async def host_at(edge: EdgeServer) -> renewal_pb2.Host:
    """The host as operators of the broker see it."""
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        answer = await stub.GetHost(pb.GetHostRequest(host="web1"), timeout=HANG)
    host: renewal_pb2.Host = answer.host
    return host


async def is_away_at(edge: EdgeServer) -> bool:
    """Whether the host is called disconnected in the list there, which is of what the change feed has told."""
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        answer = await stub.ListHosts(pb.ListHostsRequest(disconnected_only=True), timeout=HANG)
    return HOST in [each.name for each in answer.hosts]


async def is_there_at(edge: EdgeServer) -> bool:
    return not await is_away_at(edge)


async def renewed_hosts(edge: EdgeServer) -> int:
    """How many hosts with a stream an operator's request finds there."""
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        call = fleet_pb2_grpc.FleetServiceStub(channel).RequestRenewal
        request = pb.RequestRenewalRequest(reason="a drill", selection=pb.Selection(all=True), dry_run=True)
        answer = await call(request, timeout=HANG)
    count: int = answer.connected_host_count
    return count


def displacements(edge: EdgeServer) -> int:
    known = edge.stores.identities.known(HOST)
    return 0 if known is None else known.displaced_count


async def test_each_broker_answers_for_a_host_of_the_other(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """It is connected, and both say where; once it has hung up, nowhere."""
    first, second = edges
    order = (await first.stores.orders.open_order(draft(identity=HOST), NO_LIMITS, [])).order
    record = certificate(order, "certificate-1", first.clock.now(), timedelta(days=90))
    await first.stores.orders.finish_order(order, record, [])
    async with second.host() as channel:
        stream = HostStreamClient(channel)
        await stream.hello(reports=[report(1)])
        for edge in edges:
            host = await host_at(edge)
            assert (host.connected, host.broker_name, host.broker_address) == (True, "machine-2", "[::]:8443")
            assert host.broker_id == second.stores.members.broker_id
            assert await renewed_hosts(edge) == 1
            await until(partial(is_there_at, edge))

    async def has_gone() -> bool:
        return not (await host_at(first)).connected

    await until(has_gone)
    for edge in edges:
        host = await host_at(edge)
        assert (host.connected, host.broker_id, host.broker_name) == (False, "", "")
        assert await renewed_hosts(edge) == 0
        await until(partial(is_away_at, edge))


async def test_a_broker_that_is_gone_has_no_streams(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """Killed, it has recorded no end: its streams end with its lease."""
    first, second = edges
    async with second.host() as channel:
        stream = HostStreamClient(channel)
        await stream.hello(reports=[report(1)])
        assert (await host_at(first)).connected
        assert await first.stores.members.end(second.stores.members.broker_id)
        await first.known.read()
        host = await host_at(first)
        assert (host.connected, host.broker_name) == (False, "")
        assert host.HasField("last_seen_time")


async def test_a_hello_at_another_broker_ends_the_stream_within_a_second(
    edges: tuple[EdgeServer, EdgeServer],
) -> None:
    """Back and forth; who says nothing more on the stream that was left is no second holder."""
    first, second = edges
    identity = first.ca.issue([HOST])
    waits = []
    async with first.channel(identity) as one, second.channel(identity) as other:
        left = HostStreamClient(one)
        await left.hello()
        for turn in range(4):
            moved = HostStreamClient(one if turn % 2 else other)
            await moved.hello()
            began = perf_counter()
            error = await refused(left.end())
            waits.append(perf_counter() - began)
            assert error.reason is Reason.STREAM_DISPLACED
            await moved.report()
            await moved.acknowledged(1)
            left = moved
    assert min(waits) < SECOND, waits
    assert displacements(first) == displacements(second) == 0


async def test_two_that_use_one_identity_are_counted(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """At whichever broker each of them is: the one whose place was taken still answers."""
    first, second = edges
    identity = first.ca.issue([HOST])
    async with first.channel(identity) as one, second.channel(identity) as other:
        left, copy = HostStreamClient(one), HostStreamClient(other)
        await left.hello()
        await copy.hello()
        await left.answer((await left.directive()).nonce)
        assert (await refused(left.end())).reason is Reason.STREAM_DISPLACED
    await until(lambda: displacements(first) == displacements(second) == 1)


async def test_reports_of_a_stream_that_has_moved_are_not_acknowledged(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """Whether the first broker has heard or not: what the host has said since, at the other one, stands."""
    first, second = edges
    identity = first.ca.issue([HOST])
    async with first.channel(identity) as one, second.channel(identity) as other:
        left, moved = HostStreamClient(one), HostStreamClient(other)
        await left.hello()
        await moved.hello(reports=[report(3, state="WAITING")])
        for sequence in (4, 5):
            await left.say(report=report(sequence, state="DUE"))
        assert (await refused(left.end())).reason is Reason.STREAM_DISPLACED
    record = await first.stores.fleet.get_host(HOST)
    assert record.acknowledged_sequence == 3
    assert [each.state for each in record.certificates] == [CertificateState.WAITING]


async def test_an_agent_that_moves_is_no_second_holder(
    ca: PrivateCa, tmp_path: Path, edges: tuple[EdgeServer, EdgeServer]
) -> None:
    """With a call that another broker has answered, its stream follows while the first one is still open."""
    first, second = edges
    async with host_of(tmp_path, ca, first.url, second.url) as host:
        await host.add(CertificateState.DUE)
        await until(lambda: host.is_at(first))
        await first.server.drain(timedelta(seconds=10))
        with contextlib.suppress(Exception):  # what the other broker says to this CSR isn't what this is about
            await host.link.issue(profile="web", csr_pem="none", replaces_certificate_id="", wait=timedelta())
        await until(lambda: host.is_at(second))
        await host.add(CertificateState.REQUESTING)
        await until(lambda: host.is_at(second))
        await until(lambda: len(first.hub.registry) == 0)
    assert displacements(first) == displacements(second) == 0


async def test_a_database_of_yesterday_is_told_today(
    ca: PrivateCa, tmp_path: Path, edges: tuple[EdgeServer, EdgeServer], migrated_url: str
) -> None:
    """Restored under running brokers: the host is asked to say hello again, and says what it has said since."""
    first, second = edges
    async with host_of(tmp_path, ca, first.url, second.url) as host:
        await host.add(CertificateState.DUE)
        await until(lambda: host.is_at(first))
        with psycopg.connect(migrated_url) as yesterday:
            tables = ("host_streams", "report_sequences", "certificate_statuses")
            kept = {table: yesterday.execute(f"SELECT * FROM {table}".encode()).fetchall() for table in tables}  # noqa: S608 - names of our own tables
        await first.hub.drain()
        await until(lambda: host.is_at(second))
        await host.add(CertificateState.WAITING)
        await until(lambda: host.is_at(second))
        with psycopg.connect(migrated_url) as restoring:
            for table, rows in kept.items():
                restoring.execute(f"DELETE FROM {table}".encode())  # noqa: S608 - names of our own tables
                for row in rows:
                    values = ", ".join(["%s"] * len(row))
                    restoring.execute(f"INSERT INTO {table} VALUES ({values})".encode(), row)  # noqa: S608 - names of our own tables
        first.hub._draining = False  # as another process
        first.hub.stay()
        stale = second.hub.registry.place_of(HOST)
        await second.stores.changes.reread(ChangeKind.STREAM)

        async def is_current() -> bool:
            record = await first.stores.fleet.get_host(HOST)
            (now,) = [each.state for each in record.certificates if each.name == "web"]
            return now is CertificateState.WAITING and (host.is_at(first) or host.is_at(second))

        await until(is_current)
        assert second.hub.registry.place_of(HOST) is not stale
        await host.add(CertificateState.DUE)
        await until(lambda: host.is_at(first) or host.is_at(second))
    assert displacements(first) == displacements(second) == 0
