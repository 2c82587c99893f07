"""Two brokers over one PostgreSQL, and real mTLS: what is done at one of them reaches hosts and operators of the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from statistics import median
from time import perf_counter
from typing import Any

import pytest
import pytest_asyncio

from certplane.broker.fleet.model import HostStream
from certplane.broker.model import (
    CertificateRecord,
    DenyEntry,
    Grant,
    IdentityKind,
    IdentityUse,
    Profile,
    RevocationReason,
)
from certplane.broker.renewal.model import RenewalPlan
from certplane.errors import Reason
from certplane.fleet_report.model import HostFacts, RenewalCause
from certplane.v1 import fleet_pb2 as pb
from certplane.v1 import fleet_pb2_grpc, renewal_pb2, renewal_pb2_grpc, rollout_pb2, rollout_pb2_grpc
from tests.fakes.policy import FakePolicy
from tests.support.ca import PrivateCa
from tests.support.edge import HOST, OPERATOR, EdgeServer, serve_two_edges
from tests.support.stores import NO_LIMITS, certificate, draft
from tests.support.streams import HostStreamClient, report
from tests.support.waiting import HANG, no_hang, until

pytestmark = pytest.mark.integration

DAY = timedelta(days=1)
SECOND = 1.0
"""What a directive has to reach a host of another broker; `scripts/bench brokers` measures how many don't need it."""


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


@pytest_asyncio.fixture
async def edges(ca: PrivateCa, migrated_url: str) -> AsyncIterator[tuple[EdgeServer, EdgeServer]]:
    async with serve_two_edges(ca, migrated_url) as both:
        yield both


class Watch:
    """A watch of the fleet at a broker; `read` gives the next message, as far as a test asks for it."""

    def __init__(self, channel: Any, **fields: Any) -> None:
        request = renewal_pb2.WatchRenewalsRequest(**fields)
        self._call = renewal_pb2_grpc.RenewalServiceStub(channel).WatchRenewals(request, timeout=HANG)

    async def read(self) -> Any:
        async with no_hang():
            return await self._call.read()

    async def until(self, seen: Callable[[Any], bool]) -> Any:
        """The first message of which `seen` says yes; others are passed over."""
        while not seen(message := await self.read()):
            pass
        return message


@asynccontextmanager
async def watching(edge: EdgeServer, **fields: Any) -> AsyncIterator[Watch]:
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        watch = Watch(channel, **fields)
        if not fields.get("changes_only"):
            await watch.until(lambda message: message.HasField("snapshot_end"))
        yield watch


async def issue(edge: EdgeServer, number: int = 0) -> CertificateRecord:
    wanted = draft(identity=HOST, dns_names=(f"www{number}.example",), public_key_sha256=f"key-{number}")
    order = (await edge.stores.orders.open_order(wanted, NO_LIMITS, [])).order
    record = certificate(order, f"certificate-{number}", edge.clock.now(), timedelta(days=90))
    await edge.stores.orders.finish_order(order, record, [])
    return record


async def request(edge: EdgeServer, **fields: Any) -> pb.RequestRenewalResponse:
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        call = fleet_pb2_grpc.FleetServiceStub(channel).RequestRenewal
        return await call(pb.RequestRenewalRequest(reason="a drill", **fields), timeout=HANG)


async def test_a_request_at_one_broker_reaches_a_host_of_the_other(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """Within a second, each time; and both know the time that is planned."""
    first, second = edges
    records = [await issue(first, number) for number in range(10)]
    async with second.host() as channel:
        host = HostStreamClient(channel)
        await host.hello()
        waits = []
        for record in records:
            await request(first, selection=pb.Selection(certificate_ids=[record.certificate_id]))
            asked = perf_counter()
            directive = await host.directive()
            waits.append(perf_counter() - asked)
            assert [renewal.certificate_id for renewal in directive.renewals] == [record.certificate_id]
            assert directive.renewals[0].reason == "a drill"
            await host.answer(directive.nonce)
            assert second.plans.renew_time(record) == first.plans.renew_time(record) < record.renew_time
        assert median(waits) < SECOND, waits


async def test_a_request_that_is_repeated_at_the_other_broker_changes_nothing(
    edges: tuple[EdgeServer, EdgeServer],
) -> None:
    """As a client does whose broker ended before it answered."""
    first, second = edges
    await issue(first)
    wanted: dict[str, Any] = {"selection": pb.Selection(all=True), "request_id": "r-1"}
    answers = [await request(edge, **wanted) for edge in (first, second)]
    for answer in answers:
        answer.connected_host_count = 0
    assert answers[0] == answers[1]
    assert answers[0].changed_count == 1


async def test_an_identity_that_is_wanted_at_one_broker_is_told_by_the_other(
    edges: tuple[EdgeServer, EdgeServer],
) -> None:
    """Within a second or so; and both know how far it is."""
    first, second = edges
    async with second.host() as channel:
        host = HostStreamClient(channel)
        await host.hello(features=["identity"])
        answer = await request(first, selection=pb.Selection(hosts=["web1"], identities=True))
        directive = await host.directive()
        assert [(each.identity, each.reason) for each in directive.renewals] == [(True, "a drill")]
        await host.answer(directive.nonce)
        for edge in edges:
            async with edge.channel(edge.ca.issue([OPERATOR])) as operator:
                progress = await fleet_pb2_grpc.FleetServiceStub(operator).GetRenewalRequest(
                    pb.GetRenewalRequestRequest(renewal_request_id=answer.renewal_request_id), timeout=HANG
                )
                assert [each.host for each in progress.items] == [HOST]
                assert not progress.done


async def test_a_host_that_is_forgotten_at_one_broker_is_gone_at_the_other(
    edges: tuple[EdgeServer, EdgeServer],
) -> None:
    """The change feed says so."""
    first, _ = edges
    now = first.clock.now()
    gone = HostStream("old.example", HostFacts("0.1.0"), "1f", now, "192.0.2.1", now, now, now)
    await first.stores.fleet.record_stream(gone)
    first.hub.watchers.host_elsewhere(gone.host, now)  # it was written beside the hub
    await until(lambda: all("old.example" in edge.index.hosts for edge in edges))
    async with first.channel(first.ca.issue([OPERATOR])) as channel:
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        await stub.ForgetHost(pb.ForgetHostRequest(host="old.example", reason="gone"), timeout=HANG)
    await until(lambda: all("old.example" not in edge.index.hosts for edge in edges))


async def test_what_one_broker_revokes_reaches_a_host_of_the_other(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """Whoever revokes there: a caller, or a command beside it."""
    first, second = edges
    record = await issue(first)
    async with second.host() as channel:
        host = HostStreamClient(channel)
        await host.hello()
        now = first.clock.now()
        await first.stores.certificates.mark_revoked(record.certificate_id, RevocationReason.KEY_COMPROMISE, now, [])
        directive = await host.directive()
        assert [renewal.certificate_id for renewal in directive.renewals] == [record.certificate_id]
        assert directive.renewals[0].cause == renewal_pb2.Renewal.CAUSE_REVOKED


async def test_what_was_planned_unheard_is_told(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """A row that the feed has lost is a gap: the host is told what it doesn't know, read from the plans themselves."""
    first, second = edges
    record = await issue(first)
    async with second.host() as channel:
        host = HostStreamClient(channel)
        await host.hello(reports=[report(1, certificate_id=record.certificate_id)])
        plan = RenewalPlan(record.certificate_id, HOST, first.clock.now(), RenewalCause.OPERATOR, "unheard")
        log = first.stores.renewal_plans._changes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(log, "_shared", False)
            await first.plans.set_plans([plan])
        log._number += 1  # of the row that nobody has read
        await first.stores.deny_list.deny(DenyEntry(name="another.example"), [])
        directive = await host.directive()
        assert [renewal.certificate_id for renewal in directive.renewals] == [record.certificate_id]


async def test_who_watches_one_broker_sees_the_hosts_of_the_other(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """A host that comes, what it reports, what it has no more, and that it goes."""
    first, second = edges
    async with watching(first) as watch:
        async with second.host() as channel:
            host = HostStreamClient(channel)
            await host.hello("web", "mail")
            assert (await watch.until(lambda message: message.host.name == HOST)).host.agent_version == "0.1.0"
            for state in ("DUE", "REQUESTING", "SERVING"):
                await host.report("mail", state)
                wanted = renewal_pb2.CertificateStatus.State.Value(f"STATE_{state}")
                change = await watch.until(
                    lambda message, wanted=wanted: message.certificate_change.certificate.state == wanted
                )
                assert (change.certificate_change.host, change.certificate_change.certificate.name) == (HOST, "mail")
                assert change.certificate_change.certificate.health
        await watch.until(lambda message: message.host.name == HOST and not message.host.connected)
        async with second.host() as channel:
            host = HostStreamClient(channel)
            await host.hello("web")
            # One message of its own, or the host without it.
            await watch.until(
                lambda message: (
                    (message.certificate_change.removed and message.certificate_change.certificate.name == "mail")
                    or (message.host.connected and not message.host.certificates)
                )
            )


async def test_a_rollout_at_one_broker_is_run_and_followed_at_the_other(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """The other one has the role: it tells a host of the first what to do, and shows what the first one is told to do."""
    first, second = edges
    grant = Grant(HOST, IdentityKind.HOST, "web1", profiles=("web",))
    operator = Grant(OPERATOR, IdentityKind.OPERATOR, "admin", roles=("operator",))
    policy = FakePolicy.of([grant, operator], [Profile("web", "multi_san", ("www0.example",), "9f86d081")])
    for edge in edges:
        edge.policy.policy = policy
    record = await issue(first)
    running = asyncio.create_task(second.rollouts.runner.run())
    try:
        async with (
            first.host() as channel,
            first.channel(first.ca.issue([OPERATOR])) as here,
            second.channel(second.ca.issue([OPERATOR])) as there,
        ):
            host, stub = HostStreamClient(channel), rollout_pb2_grpc.RolloutServiceStub(here)
            await host.hello(features=["rollout"])
            held = renewal_pb2.CertificateStatus.Held(certificate_id=record.certificate_id, serial_number="1")
            await host.report(installed=held, profile="web")
            spec = rollout_pb2.RolloutSpec(
                selection=pb.Selection(certificate_ids=[record.certificate_id]),
                action=rollout_pb2.RolloutSpec.ACTION_RENEW,
                reason="a drill",
            )
            created = await stub.CreateRollout(rollout_pb2.CreateRolloutRequest(spec=spec), timeout=HANG)
            rollout_id = created.rollout.rollout_id
            asked = rollout_pb2.WatchRolloutRequest(rollout_id=rollout_id)
            watch = rollout_pb2_grpc.RolloutServiceStub(there).WatchRollout(asked, timeout=HANG)
            told: set[str] = set()
            while not told:  # when it is due by its lifetime comes first
                directive = await host.directive()
                await host.answer(directive.nonce)
                told = {each.rollout_id for each in directive.renewals if each.rollout_id}
            assert told == {rollout_id}
            await stub.PauseRollout(
                rollout_pb2.PauseRolloutRequest(rollout_id=rollout_id, reason="a look first"), timeout=HANG
            )
            async with no_hang():
                while (seen := await watch.read()).rollout.state != rollout_pb2.Rollout.STATE_PAUSED:
                    assert seen.rollout.rollout_id == rollout_id
            assert "a look first" in seen.rollout.state_reason
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_report_of_many_certificates_is_one_message_of_the_feed(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """Who watches elsewhere gets the host, with all of them."""
    first, second = edges
    names = [f"c{number:02d}" for number in range(20)]
    async with watching(first, changes_only=True) as watch, second.host() as channel:
        host = HostStreamClient(channel)
        await host.hello(*names, reports=[report(number, name) for number, name in enumerate(names, 1)])
        told = await watch.until(lambda message: len(message.host.certificates) == len(names))
        assert [certificate.name for certificate in told.host.certificates] == names


async def test_a_watch_misses_nothing_that_the_feed_has_lost(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """After a gap it gets the fleet again, as it is."""
    first, second = edges
    async with watching(first, hosts=["web1"]) as watch, second.host() as channel:
        host = HostStreamClient(channel)
        log = second.stores.renewal_plans._changes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(log, "_shared", False)
            await host.hello()
            await host.acknowledged(await host.report("web", "FAILED"))
        log._number += 1  # of rows that nobody has read
        await second.stores.deny_list.deny(DenyEntry(name="another.example"), [])
        told = await watch.until(lambda message: message.host.name == HOST)
        assert [certificate.state for certificate in told.host.certificates] == [
            renewal_pb2.CertificateStatus.STATE_FAILED
        ]


async def test_a_watch_that_begins_while_hosts_report_elsewhere_ends_with_the_last_state(
    edges: tuple[EdgeServer, EdgeServer],
) -> None:
    """Whenever it begins: what came before is in its snapshot, what comes later is told, and nothing is in between."""
    first, second = edges
    states = ("DUE", "REQUESTING", "ISSUED", "WAITING")
    last = renewal_pb2.CertificateStatus.STATE_SERVING

    async def follow(begins: float) -> list[Any]:
        """The states of the certificate, up to the last one of all."""
        await asyncio.sleep(begins)
        seen: list[Any] = []
        async with first.channel(first.ca.issue([OPERATOR])) as channel:
            watch = Watch(channel)
            while not seen or seen[-1] != last:
                message = await watch.read()
                told = [*message.host.certificates, message.certificate_change.certificate]
                seen += [certificate.state for certificate in told if certificate.name == "web"]
        return seen

    async with second.host() as channel:
        host = HostStreamClient(channel)
        await host.hello()
        following = [asyncio.create_task(follow(number / 20)) for number in range(10)]
        for number in range(40):
            await host.acknowledged(await host.report("web", states[number % len(states)]))
            await asyncio.sleep(0.02)
        await host.report("web", "SERVING")
        async with no_hang():
            seen = await asyncio.gather(*following)
        assert max(map(len, seen)) > 2


async def test_each_broker_has_the_whole_fleet_in_memory(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """What a host says to the other one is summed up here too; a new host, its trouble, and that it has gone."""
    first, second = edges

    def known_at_first() -> tuple[bool, list[str], list[str]]:
        host = first.index.hosts[HOST]
        healths = [each.health.value for each in host.certificates]
        return host.connected, healths, [each.cause for each in host.certificates]

    async with second.host() as channel:
        host = HostStreamClient(channel)
        await host.hello(agent_mode=renewal_pb2.AGENT_MODE_DAEMON)
        await until(lambda: known_at_first() == (True, [], []))
        assert first.index.hosts[HOST].broker_id == second.stores.members.broker_id
        error = "DNS_UNAVAILABLE: ns2.example.org lacks the record"
        await host.report("web", "FAILED", last_error=error, request_failures=1)
        await until(lambda: known_at_first() == (True, ["FAILING"], ["DNS_UNAVAILABLE ns2.example.org"]))
        async with first.channel(first.ca.issue([OPERATOR])) as operator:
            summarize = fleet_pb2_grpc.FleetServiceStub(operator).SummarizeFleet
            summary = await summarize(pb.SummarizeFleetRequest(), timeout=HANG)
        assert [(each.cause, each.certificate_count) for each in summary.causes] == [
            ("DNS_UNAVAILABLE ns2.example.org", 1)
        ]
        assert summary.connected_host_count == 1
        host.call.cancel()
        await until(lambda: not first.index.hosts[HOST].connected)
        assert first.index.hosts[HOST].end_time is not None


async def test_who_is_shut_out_at_one_broker_is_so_at_both(edges: tuple[EdgeServer, EdgeServer]) -> None:
    """Denied by whichever program, let in again, contested: in the lists of both within seconds, before any round."""
    first, second = edges

    def causes() -> list[list[str]]:
        return [[each.cause for each in edge.index.hosts[HOST].certificates] for edge in edges]

    async with second.host() as channel:
        host = HostStreamClient(channel)
        await host.hello()
        await host.acknowledged(await host.report("web", "SERVING"))
        await until(lambda: causes() == [[""], [""]])
        rounds = [edge.index._next_round for edge in edges]
        await first.stores.deny_list.deny(DenyEntry(name=HOST), [])
        await until(lambda: causes() == [[Reason.IDENTITY_REVOKED]] * 2)
        await first.stores.deny_list.allow(DenyEntry(name=HOST), [])
        await until(lambda: causes() == [[""], [""]])
    now = second.clock.now()
    newer, copied = (
        IdentityUse("CN=internal", serial, now + age, now + DAY) for serial, age in (("2a", DAY), ("1f", DAY / 2))
    )
    await second.stores.identities.activate(HOST, newer, [])
    await second.stores.identities.contest(HOST, copied, [])
    await until(lambda: causes() == [[Reason.IDENTITY_CONTESTED]] * 2)
    assert [edge.index._next_round for edge in edges] == rounds
