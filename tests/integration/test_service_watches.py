"""Services that watch their certificates, over real mTLS: what they are told, and how operators see them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
import pytest_asyncio

from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.model import DenyEntry, RevocationReason
from certplane.broker.renewal.model import RenewalPlan
from certplane.errors import Reason
from certplane.fleet_report.model import RenewalCause
from certplane.rpc.status import refusal_from_error
from certplane.v1 import certificate_pb2, fleet_pb2, fleet_pb2_grpc, renewal_pb2
from tests.support.ca import PrivateCa
from tests.support.edge import HOST, OPERATOR, SERVICE, EdgeServer, serve_edge, serve_two_edges
from tests.support.service_watch import ServiceWatch, issue_to, watching
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.integration

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


@pytest_asyncio.fixture
async def edge(ca: PrivateCa) -> AsyncIterator[EdgeServer]:
    async with serve_edge(ca) as server:
        yield server


@pytest_asyncio.fixture
async def fleet(edge: EdgeServer) -> AsyncIterator[Any]:
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        yield fleet_pb2_grpc.FleetServiceStub(channel)


async def ended(watch: ServiceWatch) -> Any:
    """Why the call has ended."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await watch.until(lambda _: False)
    return refusal_from_error(raised.value)


async def test_what_there_is_comes_first(edge: EdgeServer) -> None:
    """A service hears the newest certificate of each key, with when to renew it, and then that it listens."""
    await issue_to(edge, public_key_sha256="a" * 64)
    newer = await issue_to(edge, public_key_sha256="a" * 64)
    other = await issue_to(edge, public_key_sha256="b" * 64)
    await issue_to(edge, HOST)
    async with edge.channel(edge.ca.issue([SERVICE])) as channel:
        found = await ServiceWatch(channel).until_listening()
    assert [each.certificate_id for each in found] == [newer.certificate_id, other.certificate_id]
    assert found[0].renew_time.ToDatetime(newer.renew_time.tzinfo) == newer.renew_time
    assert found[0].public_key_sha256 == "a" * 64
    assert found[0].renew_cause == renewal_pb2.Renewal.CAUSE_LIFETIME


async def test_an_operators_request_is_told(edge: EdgeServer, fleet: Any) -> None:
    """RequestRenewal counts a watching service as connected, holds nothing up, and is told at once with its id."""
    record = await issue_to(edge)
    async with watching(edge) as watch:
        selection = fleet_pb2.Selection(hosts=[SERVICE])
        request = fleet_pb2.RequestRenewalRequest(request_id="drill-1", selection=selection, reason="drill")
        answer = await fleet.RequestRenewal(request, timeout=HANG)
        assert (answer.connected_service_count, answer.connected_host_count, answer.held_up_count) == (1, 0, 0)
        news = await watch.news()
        assert (news.certificate_id, news.renewal_request_id) == (record.certificate_id, "drill-1")
        assert (news.renew_cause, news.renew_reason) == (renewal_pb2.Renewal.CAUSE_OPERATOR, "drill")
        assert news.renew_time.ToDatetime(record.create_time.tzinfo) <= edge.clock.now()
        progress = await fleet.GetRenewalRequest(
            fleet_pb2.GetRenewalRequestRequest(renewal_request_id="drill-1"), timeout=HANG
        )
        assert "was told to renew" in progress.items[0].reason
        shown = (await fleet.GetHost(fleet_pb2.GetHostRequest(host=SERVICE), timeout=HANG)).host
        assert shown.connected
        successor = await issue_to(edge, replaces_certificate_id=record.certificate_id)
        assert (await watch.news()).certificate_id == successor.certificate_id


async def test_a_service_that_does_not_listen_holds_a_request_up(edge: EdgeServer, fleet: Any) -> None:
    """Of one that doesn't watch the answer of RequestRenewal says that it isn't told."""
    await issue_to(edge)
    selection = fleet_pb2.Selection(hosts=[SERVICE])
    request = fleet_pb2.RequestRenewalRequest(selection=selection, reason="drill", dry_run=True)
    answer = await fleet.RequestRenewal(request, timeout=HANG)
    assert (answer.connected_service_count, answer.held_up_count) == (0, 1)
    assert "isn't listening" in answer.held_up[0].reason


@pytest.mark.parametrize("reason", list(RevocationReason))
async def test_a_revocation_is_told(edge: EdgeServer, reason: RevocationReason) -> None:
    """A service hears at once that its certificate was revoked and why; of a compromised key that it needs a new one."""
    record = await issue_to(edge)
    async with watching(edge) as watch:
        revoked = await edge.stores.certificates.mark_revoked(record.certificate_id, reason, edge.clock.now(), [])
        edge.plans.note_revoked(revoked)
        news = await watch.news()
        assert news.certificate_id == record.certificate_id
        assert news.HasField("revoke_time")
        assert news.renew_cause == renewal_pb2.Renewal.CAUSE_REVOKED
        assert certificate_pb2.RevocationReason.Name(news.revocation_reason) == f"REVOCATION_REASON_{reason.name}"
        assert news.new_key is (reason is RevocationReason.KEY_COMPROMISE)


async def test_a_moved_window_is_told(edge: EdgeServer) -> None:
    """What the CA moves its window to (ACME Renewal Information) reaches the service."""
    record = await issue_to(edge)
    async with watching(edge) as watch:
        time = edge.clock.now() + DAY
        plan = RenewalPlan(record.certificate_id, SERVICE, time, RenewalCause.ISSUER, "the CA asks for it")
        assert await edge.plans.replace_plan(None, plan)
        news = await watch.news()
        assert news.renew_cause == renewal_pb2.Renewal.CAUSE_ISSUER
        assert news.renew_time.ToDatetime(time.tzinfo) == time


async def test_another_policy_and_another_retry_epoch_are_told(edge: EdgeServer) -> None:
    """As hosts are, services are told when what was refused may be allowed, and what failed may succeed."""
    async with edge.channel(edge.ca.issue([SERVICE])) as channel:
        watch = ServiceWatch(channel)
        listening = (await watch.until(lambda message: message.HasField("listening"))).listening
        assert listening.in_force.policy_hash == edge.policy.current.hash
        assert listening.in_force.retry_epoch == "epoch-1"
        assert listening.heartbeat_interval.ToTimedelta() == edge.streams.heartbeat_interval
        edge.retry_epoch = "epoch-2"
        told = (await watch.until(lambda message: message.HasField("in_force"))).in_force
        assert (told.policy_hash, told.retry_epoch) == (edge.policy.current.hash, "epoch-2")


async def test_a_service_is_in_the_fleet(edge: EdgeServer, fleet: Any) -> None:
    """One that watches is connected in list, host and summary, without a certificate too, and away once it ends."""
    request = fleet_pb2.GetHostRequest(host="builder")

    async def host() -> Any:
        listed = await fleet.ListHosts(fleet_pb2.ListHostsRequest(filter=fleet_pb2.FleetFilter(hosts=[SERVICE])))
        if not listed.hosts:
            return None
        return (await fleet.GetHost(request, timeout=HANG)).host

    leaf = edge.ca.issue([SERVICE])
    async with watching(edge, leaf, client_version="api/1.2"), watching(edge, leaf, client_version="api/1.2"):
        shown = await until(host)
        assert shown.connected
        assert shown.watch_count == 2
        assert (shown.kind, shown.agent_version) == (renewal_pb2.HOST_KIND_SERVICE, "api/1.2")
        assert (shown.source_ip, shown.broker_name) == ("127.0.0.1", "machine")
        summary = await fleet.SummarizeFleet(fleet_pb2.SummarizeFleetRequest(), timeout=HANG)
        assert (summary.service_count, summary.connected_service_count) == (1, 1)

    async def gone() -> Any:
        found = await host()
        return found if not found.connected else None

    left = await until(gone)
    assert left.HasField("disconnect_time")
    assert left.watch_count == 0


async def test_a_silent_broker_sends_heartbeats(ca: PrivateCa) -> None:
    """A service that has nothing to hear hears that the broker is there."""
    settings = StreamSettings(tick=timedelta(milliseconds=20), heartbeat_interval=timedelta(milliseconds=50))
    async with serve_edge(ca, streams=settings) as edge, watching(edge) as watch:
        for _ in range(2):
            await watch.until(lambda message: message.HasField("heartbeat"))


async def test_a_broker_that_stops_says_goodbye(edge: EdgeServer) -> None:
    """The last message says when to come back, the call ends well, and another one is refused."""
    leaf = edge.ca.issue([SERVICE])
    async with watching(edge, leaf) as watch, edge.channel(leaf) as channel:
        await edge.hub.drain()
        goodbye = (await watch.until(lambda message: message.HasField("goodbye"))).goodbye
        assert goodbye.reconnect_delay.ToTimedelta() >= timedelta(seconds=1)
        assert await watch.read() is grpc.aio.EOF
        assert (await ended(ServiceWatch(channel))).reason is Reason.DRAINING


async def test_it_ends_when_its_identity_is_denied(edge: EdgeServer) -> None:
    """A service that is denied is told no more: the call ends with UNAUTHENTICATED and why."""
    async with watching(edge) as watch:
        await edge.stores.deny_list.deny(DenyEntry(name=SERVICE, reason="stolen"), [])
        assert (await ended(watch)).reason is Reason.IDENTITY_REVOKED


async def test_it_ends_when_its_identity_expires(edge: EdgeServer) -> None:
    """The moment the identity's certificate ends, the call does."""
    async with edge.channel(edge.ca.issue([SERVICE], not_after=edge.clock.now() + timedelta(seconds=2))) as channel:
        watch = ServiceWatch(channel)
        await watch.until_listening()
        assert (await ended(watch)).reason is Reason.IDENTITY_EXPIRED


@pytest.mark.parametrize("version", ["x" * 65, "\u00e4" * 40, "a\nb"], ids=["long", "long in bytes", "two lines"])
async def test_a_bad_version_is_refused(edge: EdgeServer, version: str) -> None:
    """What a service says of itself is short and printable, or refused with the field's name."""
    async with edge.channel(edge.ca.issue([SERVICE])) as channel:
        refusal = await ended(ServiceWatch(channel, client_version=version))
        assert refusal.reason is Reason.REQUEST_INVALID
        assert refusal.violations[0].subject == "client_version"
    assert not len(edge.watches)


async def test_hosts_and_operators_have_calls_of_their_own(edge: EdgeServer) -> None:
    """Nobody but a service may call it."""
    for name in (HOST, OPERATOR):
        async with edge.channel(edge.ca.issue([name])) as channel:
            assert (await ended(ServiceWatch(channel))).reason is Reason.ROLE_REQUIRED


async def test_one_identity_has_so_many_calls(ca: PrivateCa) -> None:
    """One more than the limit is refused, and says of which limit; when one ends there is room again."""
    async with serve_edge(ca, streams=StreamSettings(watches_of_one=1)) as edge:
        leaf = edge.ca.issue([SERVICE])
        async with watching(edge, leaf), edge.channel(leaf) as channel:
            refusal = await ended(ServiceWatch(channel))
            assert refusal.reason is Reason.RATE_LIMITED
            assert refusal.violations[0].subject == "watches_of_one"
        await until(lambda: not len(edge.watches))
        async with watching(edge, leaf):
            pass


async def test_a_store_that_is_away_is_said(edge: EdgeServer) -> None:
    """Who can't be told what it has is refused with STORE_UNAVAILABLE, and may try another broker."""
    edge.stores.database.down = True
    async with edge.channel(edge.ca.issue([SERVICE])) as channel:
        assert (await ended(ServiceWatch(channel))).reason is Reason.STORE_UNAVAILABLE


@pytest_asyncio.fixture
async def edges(ca: PrivateCa, migrated_url: str) -> AsyncIterator[tuple[EdgeServer, EdgeServer]]:
    async with serve_two_edges(ca, migrated_url) as both:
        yield both


async def test_what_another_broker_does_is_told(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """A request, a revocation and a new certificate of one broker reach a service that watches at the other."""
    here, there = edges
    record = await issue_to(there)
    async with watching(here) as watch:
        plan = RenewalPlan(record.certificate_id, SERVICE, there.clock.now(), RenewalCause.OPERATOR, "drill")
        await there.plans.set_plans([plan])
        assert (await watch.news()).renew_reason == "drill"
        newer = await issue_to(there, told=False)
        assert (await watch.news()).certificate_id == newer.certificate_id
        revoked = await there.stores.certificates.mark_revoked(
            newer.certificate_id, RevocationReason.SUPERSEDED, there.clock.now(), []
        )
        there.plans.note_revoked(revoked)
        assert (await watch.news()).HasField("revoke_time")


async def test_all_brokers_see_who_watches(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """A service that watches at one broker is connected at the other too, with where, until it ends; each call counts."""
    here, there = edges
    async with there.channel(there.ca.issue([OPERATOR])) as channel:
        fleet: Any = fleet_pb2_grpc.FleetServiceStub(channel)

        async def shown(connected: bool, count: int) -> Any:
            listed = await fleet.ListHosts(fleet_pb2.ListHostsRequest(filter=fleet_pb2.FleetFilter(hosts=[SERVICE])))
            found = [host for host in listed.hosts if (host.connected, host.watch_count) == (connected, count)]
            return found[0] if found else None

        leaf = here.ca.issue([SERVICE])
        async with watching(here, leaf):
            host = await until(lambda: shown(True, 1))
            assert (host.broker_id, host.broker_name) == (here.stores.members.broker_id, "machine-1")
            async with watching(there, leaf):
                await until(lambda: shown(True, 2))
        await until(lambda: shown(False, 0))


async def test_a_broker_that_is_gone_has_no_services(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """Of a broker whose lease has ended nobody believes that services watch there; the next one removes what it left."""
    here, there = edges
    row = (here.stores.members.broker_id, SERVICE)
    async with there.channel(there.ca.issue([OPERATOR])) as channel:
        fleet: Any = fleet_pb2_grpc.FleetServiceStub(channel)

        async def connected() -> bool:
            listed = await fleet.ListHosts(fleet_pb2.ListHostsRequest(filter=fleet_pb2.FleetFilter(hosts=[SERVICE])))
            return any(host.connected for host in listed.hosts)

        leaf = here.ca.issue([SERVICE])
        async with watching(here, leaf):
            await until(connected)
            await here.stores.members.leave()

            async def away() -> bool:
                return not await connected()

            await until(away)
            async with watching(there, leaf):
                await until(connected)

                async def removed() -> bool:
                    rows = await there.stores.watches.watches_of([SERVICE])
                    return row not in [(each.broker_id, each.identity) for each in rows]

                await until(removed)


async def test_one_that_does_not_read_is_sent_away(ca: PrivateCa) -> None:
    """A watcher that leaves more unread than its connection takes is ended, and keeps nothing here."""
    label = "x" * 60
    names = tuple(f"{label}.{label}.{label}.{number}.example.org" for number in range(100))  # 20 KB a certificate
    async with serve_edge(ca, streams=StreamSettings(write_timeout=timedelta(milliseconds=300))) as edge:
        for _ in range(300):
            await issue_to(edge, dns_names=names)
        async with edge.channel(edge.ca.issue([SERVICE])) as channel:
            watch = ServiceWatch(channel)
            await until(lambda: len(edge.watches))
            await until(lambda: not len(edge.watches), what="the end of the call")
            assert (await ended(watch)).reason is Reason.STREAM_TIMED_OUT
