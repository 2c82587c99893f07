"""Hosts' status streams over real mTLS gRPC: what is acknowledged, what is told, and how each misuse ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from certplane.broker import metrics
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.identity.allowances import AllowanceSettings
from certplane.broker.model import CertificateRecord, DenyEntry, RevocationReason
from certplane.broker.renewal.model import HostActivation, RenewalPlan
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
from certplane.rpc.status import status_from_refusal
from certplane.v1 import enrollment_pb2, enrollment_pb2_grpc, renewal_pb2_grpc
from certplane.v1 import renewal_pb2 as pb
from tests.fakes.policy import FakePolicy
from tests.support.ca import PrivateCa
from tests.support.calls import Refused, refused
from tests.support.edge import GENEROUS, HOST, OPERATOR, EdgeServer, serve_edge, trust_of
from tests.support.logs import of_certplane
from tests.support.stores import NO_LIMITS, certificate, draft
from tests.support.streams import HostStreamClient, report
from tests.support.waiting import HANG, PATIENCE, until

pytestmark = pytest.mark.integration

TICK = timedelta(milliseconds=50)
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


@pytest.fixture
def streams() -> StreamSettings:
    """The limits of streams; a test overrides them by parametrizing."""
    return StreamSettings(tick=TICK)


@pytest.fixture
def allowances() -> AllowanceSettings:
    """What an identity may do; a test overrides it by parametrizing."""
    return GENEROUS


@pytest.fixture
async def edge(ca: PrivateCa, streams: StreamSettings, allowances: AllowanceSettings) -> AsyncIterator[EdgeServer]:
    async with serve_edge(ca, streams=streams, allowances=allowances) as server:
        yield server


@pytest.fixture
async def host(edge: EdgeServer) -> AsyncIterator[HostStreamClient]:
    """A stream of the host that has said nothing yet."""
    async with edge.host() as channel:
        yield HostStreamClient(channel)


async def ended(host: HostStreamClient) -> Refused:
    return await refused(host.end())


def plan(certificate_id: str = "certificate-1", minutes: int = 0, **facts: Any) -> RenewalPlan:
    cause = RenewalCause.OPERATOR
    return RenewalPlan(certificate_id, HOST, NOW + timedelta(minutes=minutes), cause, reason="drill", **facts)


# --- the story --------------------------------------------------------------------------------------------------------


async def test_a_stream_from_hello_to_hanging_up(edge: EdgeServer, host: HostStreamClient) -> None:
    """Hello is answered, reports are acknowledged once they are durable, heartbeats are answered."""
    welcome = await host.hello(reports=[report(1), report(2, state="DUE")])
    assert welcome.acknowledged_sequence == 2
    assert welcome.heartbeat_interval.ToTimedelta() == timedelta(minutes=1)
    assert welcome.policy_hash == edge.policy.current.hash
    assert welcome.trust_bundle_hash == edge.trust.current.bundle.hash
    assert welcome.retry_epoch == "epoch-1"
    await host.say(report=report(5, state="REQUESTING"))
    assert (await host.read()).acknowledgement.sequence == 5
    await host.heartbeat()
    assert (await host.read()).HasField("heartbeat")
    record = await edge.stores.fleet.get_host(HOST)
    assert record is not None
    assert record.stream is not None
    assert (record.acknowledged_sequence, record.stream.end_time) == (5, None)
    await host.call.done_writing()
    await host.end()
    await until(lambda: not len(edge.hub.registry))

    async def recorded() -> bool:  # in the background: nobody waits for it
        record = await edge.stores.fleet.get_host(HOST)
        return record is not None and record.stream is not None and record.stream.end_time is not None

    await until(recorded, what="the stream's end on record")


async def test_reports_that_come_with_hanging_up_are_acknowledged(host: HostStreamClient) -> None:
    """A host that says all it has and hangs up hears of it before the stream ends."""
    await host.hello()
    for _ in range(20):
        await host.report()
    await host.call.done_writing()
    await host.acknowledged(20)
    await host.end()


async def test_hosts_are_told_that_what_waits_may_be_asked_for_again(edge: EdgeServer, host: HostStreamClient) -> None:
    """A new retry epoch is told to connected hosts, once; it is all that differs."""
    welcome = await host.hello()
    edge.retry_epoch = "epoch-2"
    told = await host.directive()
    assert (told.retry_epoch, told.policy_hash, list(told.renewals)) == ("epoch-2", welcome.policy_hash, [])
    await host.answer(told.nonce)
    await host.report()
    await host.acknowledged(1)


async def test_a_stream_outlives_the_policy_and_the_trust_of_its_beginning(
    edge: EdgeServer, host: HostStreamClient
) -> None:
    """Fault 27: a new policy, server certificate and CA bundle end no stream; the host is told their hashes, once each."""
    await host.hello()
    grants = edge.policy.current.grants.values()  # type: ignore[attr-defined]  # the fake's
    edge.policy.policy = FakePolicy.of([*grants], [])
    edge.policy.policy.grants["other.example"] = next(iter(grants))
    told = await host.directive()
    assert (told.policy_hash, list(told.renewals)) == (edge.policy.current.hash, [])
    await host.answer(told.nonce)
    edge.trust.replace(trust_of(edge.ca.issue_server(["localhost"]), edge.ca, PrivateCa("next")), datetime.now(UTC))
    told = await host.directive()
    assert told.trust_bundle_hash == edge.trust.current.bundle.hash
    await host.answer(told.nonce)
    await host.report()
    await host.acknowledged(1)
    assert len(edge.hub.registry) == 1


async def test_a_host_is_told_when_to_renew(edge: EdgeServer, host: HostStreamClient) -> None:
    """A plan reaches its host with cause, reason and the request's id; other hosts' plans don't."""
    await host.hello()
    edge.hub.plans_changed([plan(renewal_request_id="r-1", explanation_url="https://ca.example/why")])
    told = await host.directive()
    (renewal,) = told.renewals
    assert renewal.certificate_id == "certificate-1"
    assert renewal.renew_time.ToDatetime(UTC) == NOW
    assert (renewal.cause, renewal.reason) == (pb.Renewal.CAUSE_OPERATOR, "drill")
    assert (renewal.renewal_request_id, renewal.explanation_url) == ("r-1", "https://ca.example/why")


async def issue(edge: EdgeServer, **values: Any) -> CertificateRecord:
    """A certificate of the host's, in the store."""
    order = (await edge.stores.orders.open_order(draft(identity=HOST, **values), NO_LIMITS, [])).order
    record = certificate(order, f"certificate-{order.order_id}", edge.clock.now(), timedelta(days=90))
    await edge.stores.orders.finish_order(order, record, [])
    return record


async def test_a_host_that_comes_is_told_what_was_planned_meanwhile(edge: EdgeServer, host: HostStreamClient) -> None:
    """From durable state: the plan of a certificate that it holds; not again once it means to renew by then."""
    record = await issue(edge)
    early = edge.clock.now().replace(microsecond=0) + timedelta(hours=1)
    await edge.plans.set_plans([RenewalPlan(record.certificate_id, HOST, early, RenewalCause.ISSUER, "incident")])
    holds = {"certificate_id": record.certificate_id, "renew_time": record.renew_time}
    await host.hello(reports=[report(1, **holds)])
    (renewal,) = (await host.directive()).renewals
    assert (renewal.certificate_id, renewal.reason) == (record.certificate_id, "incident")
    assert renewal.renew_time.ToDatetime(UTC) == early
    async with edge.host() as channel:
        again = HostStreamClient(channel)
        await again.hello(reports=[report(2, **{**holds, "renew_time": early})])
        await again.heartbeat()
        assert (await again.read()).WhichOneof("message") == "heartbeat"


async def test_a_rollout_s_renewal_is_told_to_who_can_hold_it(edge: EdgeServer, host: HostStreamClient) -> None:
    """With all that it asks for; an agent that can't hold a certificate back hears nothing of it, also when it comes."""
    record = await issue(edge)
    now = edge.clock.now().replace(microsecond=0)
    by = now + timedelta(days=3)
    wanted = plan(record.certificate_id, rollout_id="r1", hold_activation=True, activate_by_time=by, new_key=True)
    await host.hello(reports=[report(1, certificate_id=record.certificate_id)])
    await edge.plans.set_plans([wanted])
    await host.heartbeat()
    assert (await host.read()).WhichOneof("message") == "heartbeat"
    async with edge.host() as channel:
        able = HostStreamClient(channel)
        await able.hello(features=["identity", "rollout"])
        (renewal,) = (await able.directive()).renewals
        assert (renewal.certificate_id, renewal.rollout_id) == (record.certificate_id, "r1")
        assert (renewal.hold_activation, renewal.new_key) == (True, True)
        assert renewal.activate_by_time.ToDatetime(UTC) == by


async def test_a_host_is_told_what_it_may_use_until_its_report_shows_that_it_knows(
    edge: EdgeServer, host: HostStreamClient
) -> None:
    """At once, and on a new stream although it had answered; what it doesn't say it holds it isn't told."""
    held = pb.CertificateStatus.Held(certificate_id="c1", serial_number="1f")
    await host.hello(features=["rollout"])
    await host.report(state="ISSUED", issued=held, held_by_rollout_id="r1")
    await host.acknowledged(1)
    edge.activations.released = [HostActivation(HOST, name, "r1", abandoned=name == "c1") for name in ("c1", "c2")]
    edge.hub.activations_wanted([HOST])
    told = await host.directive()
    assert list(told.activations) == [pb.Activation(certificate_id="c1", rollout_id="r1", abandoned=True)]
    await host.answer(told.nonce)
    async with edge.host() as channel:
        again = HostStreamClient(channel)
        again.sequences = itertools.count(2)
        await again.hello(features=["rollout"])
        told = await again.directive()
        assert [each.certificate_id for each in told.activations] == ["c1"]
        await again.answer(told.nonce)
        await again.report(state="ISSUED", issued=held)
        await again.acknowledged(2)
        edge.hub.activations_wanted([HOST])
        await until(lambda: len(edge.activations.reads) > 2)
        await again.heartbeat()
        assert (await again.read()).WhichOneof("message") == "heartbeat"


async def test_a_revoked_certificate_is_renewed_now(edge: EdgeServer, host: HostStreamClient) -> None:
    """Its holder is told at once, or when it comes; nobody else is, whatever it says that it holds."""
    record = await issue(edge)
    time = edge.clock.now()
    holds = {"certificate_id": record.certificate_id}
    await host.hello(reports=[report(1, **holds)])
    revoked = await edge.stores.certificates.mark_revoked(
        record.certificate_id, RevocationReason.KEY_COMPROMISE, time, []
    )
    edge.hub.certificate_revoked(revoked)
    (renewal,) = (await host.directive()).renewals
    assert (renewal.cause, renewal.reason) == (pb.Renewal.CAUSE_REVOKED, "it was revoked: keyCompromise")
    async with edge.host() as channel, edge.channel(edge.ca.issue(["web2.example"])) as other:
        again, liar = HostStreamClient(channel), HostStreamClient(other)
        await again.hello()
        assert [each.certificate_id for each in (await again.directive()).renewals] == [record.certificate_id]
        await liar.hello(reports=[report(1, **holds)])
        await liar.heartbeat()
        assert (await liar.read()).WhichOneof("message") == "heartbeat"


async def test_a_second_stream_takes_the_place_of_the_first(edge: EdgeServer) -> None:
    """The first ends with STREAM_DISPLACED; it is counted if it lives and has the same certificate, not a rotated one."""
    identity, renewed = edge.ca.issue([HOST]), edge.ca.issue([HOST])
    async with edge.channel(identity) as one, edge.channel(identity) as other, edge.channel(renewed) as third:
        first, second, last = HostStreamClient(one), HostStreamClient(other), HostStreamClient(third)
        await first.hello()
        await second.hello()
        await first.answer((await first.directive()).nonce)
        assert (await ended(first)).reason is Reason.STREAM_DISPLACED
        await until(lambda: edge.stores.identities.known(HOST).displaced_count == 1)  # type: ignore[union-attr]
        await last.hello()
        assert (await ended(second)).reason is Reason.STREAM_DISPLACED
        await last.report()
        await last.acknowledged(1)
    known = edge.stores.identities.known(HOST)
    assert known is not None
    assert known.displaced_count == 1


# --- the end of the identity ------------------------------------------------------------------------------------------


async def test_row_40_a_denied_identity_loses_its_stream(edge: EdgeServer, host: HostStreamClient) -> None:
    """An idle stream ends UNAUTHENTICATED soon after an operator has denied its identity."""
    await host.hello()
    await edge.stores.deny_list.deny(DenyEntry(name=HOST), [])
    assert (await ended(host)).reason is Reason.IDENTITY_REVOKED


async def test_row_40_a_renamed_identity_loses_its_stream(edge: EdgeServer, host: HostStreamClient) -> None:
    """An identity that policy no longer knows is told that, and nothing of the policy."""
    await host.hello()
    edge.policy.policy = FakePolicy.of()
    assert (await ended(host)).reason is Reason.IDENTITY_UNKNOWN


async def test_row_44_a_stream_ends_with_its_certificate(edge: EdgeServer) -> None:
    """TLS would keep the connection; the stream ends at the certificate's last moment."""
    not_after = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3 * PATIENCE)
    async with edge.host(not_after=not_after) as channel:
        host = HostStreamClient(channel)
        await host.hello()
        assert (await ended(host)).reason is Reason.IDENTITY_EXPIRED
    assert datetime.now(UTC) > not_after


async def test_only_hosts_have_streams(edge: EdgeServer) -> None:
    """An operator is told so."""
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        stream = HostStreamClient(channel)
        await stream.say_hello()
        assert (await ended(stream)).reason is Reason.ROLE_REQUIRED


# --- misuse -----------------------------------------------------------------------------------------------------------

Held = pb.CertificateStatus.Held


@pytest.mark.parametrize(
    ("field", "hello"),
    [
        pytest.param("hello.agent_version", {"agent_version": ""}, id="no-version"),
        pytest.param("hello.agent_version", {"agent_version": "9" * 65}, id="long-version"),
        pytest.param("hello.epoch", {"epoch": ""}, id="no-epoch"),
        pytest.param("hello.epoch", {"epoch": "a b"}, id="odd-epoch"),
        pytest.param("hello.certificate_names", {"certificate_names": ["a/b"]}, id="odd-name"),
        pytest.param("hello.certificate_names", {"certificate_names": ["a", "a"]}, id="name-twice"),
        pytest.param(
            "hello.certificate_names", {"certificate_names": [f"n{n}" for n in range(1001)]}, id="too-many-names"
        ),
        pytest.param("hello.host_time", {"host_time": None}, id="no-time"),
        pytest.param("request_id", {"request_id": "a b"}, id="odd-request-id"),
        pytest.param("hello.reports[0].sequence", {"reports": [report(0)]}, id="sequence-zero"),
        pytest.param("hello.reports[0].sequence", {"reports": [report(-1)]}, id="negative-sequence"),
        pytest.param("hello.reports[0].certificate.name", {"reports": [report(1, "mail")]}, id="not-named"),
        pytest.param(
            "hello.reports[0].certificate.state", {"reports": [report(1, state="UNSPECIFIED")]}, id="no-state"
        ),
        pytest.param(
            "hello.reports[0].certificate.dns_names", {"reports": [report(1, dns_names=["UPPER.example"])]}, id="case"
        ),
        pytest.param(
            "hello.reports[0].certificate.last_error", {"reports": [report(1, last_error="x" * 2001)]}, id="long-error"
        ),
        pytest.param(
            "hello.reports[0].certificate.issued.serial_number",
            {"reports": [report(1, issued=Held(serial_number="03E7"))]},
            id="serial",
        ),
        pytest.param(
            "hello.reports[0].certificate.issued.version",
            {"reports": [report(1, issued=Held(serial_number="1", version=-1))]},
            id="version",
        ),
    ],
)
async def test_a_hello_that_can_not_be(
    edge: EdgeServer, host: HostStreamClient, field: str, hello: dict[str, Any]
) -> None:
    """REQUEST_INVALID with the field; nothing is kept of it."""
    await host.say_hello(**hello)
    answer = await ended(host)
    assert (answer.reason, answer.fields) == (Reason.REQUEST_INVALID, [field])
    assert await edge.stores.fleet.get_host(HOST) is None


async def test_something_else_than_hello_comes_first(host: HostStreamClient) -> None:
    """Nobody reports before it has said what it has."""
    await host.report()
    answer = await ended(host)
    assert (answer.reason, answer.fields) == (Reason.REQUEST_INVALID, ["hello"])


async def test_hello_twice(host: HostStreamClient) -> None:
    """It is the first message, and only the first."""
    await host.hello()
    await host.say_hello()
    assert (await ended(host)).reason is Reason.REQUEST_INVALID


async def test_an_empty_message(host: HostStreamClient) -> None:
    """A message that says nothing that this broker knows is refused, not passed over."""
    await host.say()
    answer = await ended(host)
    assert (answer.reason, answer.fields) == (Reason.REQUEST_INVALID, ["message"])


@pytest.mark.parametrize("streams", [StreamSettings(tick=TICK, hello_timeout=timedelta(milliseconds=200))])
async def test_no_hello(host: HostStreamClient) -> None:
    """Fault 25: a stream that says nothing is ended."""
    answer = await ended(host)
    assert (answer.reason, answer.fields) == (Reason.REQUEST_INVALID, ["hello"])


async def test_a_host_that_falls_silent(edge: EdgeServer, host: HostStreamClient) -> None:
    """Three heartbeats late, the stream is ended, and another one may begin."""
    await host.hello()
    for _ in range(3):
        edge.clock.lapse += 2 * edge.streams.heartbeat_interval
        await host.heartbeat()
        await host.read()
    assert len(edge.hub.registry) == 1
    edge.clock.lapse += 3 * edge.streams.heartbeat_interval
    assert (await ended(host)).reason is Reason.STREAM_TIMED_OUT


@pytest.mark.parametrize(
    "allowances", [replace(GENEROUS, messages_burst=100, messages_per_second=0.01, message_seconds=60)]
)
async def test_an_agent_that_floods_reports(edge: EdgeServer, host: HostStreamClient) -> None:
    """It is cut off with a time to come back; what was acknowledged is durable, others are served meanwhile."""
    await host.hello()
    async with edge.channel(edge.ca.issue(["web2.example"])) as channel:
        other = HostStreamClient(channel)
        await other.hello()

        for _ in range(100):  # no more: a write that is under way at the end hides the reason from grpc's client
            await host.report()
        acknowledged = 0
        with contextlib.suppress(grpc.aio.AioRpcError):
            while (message := await host.call.read()) is not grpc.aio.EOF:
                acknowledged = max(acknowledged, message.acknowledgement.sequence)
        answer = await ended(host)
        assert answer.reason is Reason.RATE_LIMITED
        assert answer.fields == ["messages_per_identity"]
        assert answer.refusal.retry_after
        await other.report()
        await other.acknowledged(1)
    record = await edge.stores.fleet.get_host(HOST)
    assert record is not None
    assert acknowledged <= record.acknowledged_sequence <= 100


@pytest.mark.parametrize(
    "allowances", [replace(GENEROUS, messages_burst=20, messages_per_second=0.01, message_seconds=60)]
)
async def test_reports_in_hello_are_counted(edge: EdgeServer, host: HostStreamClient) -> None:
    """A hello is as many messages as it has reports: refused before they are read, and nothing of it is kept."""
    await host.say_hello(reports=[report(number) for number in range(1, 31)])
    answer = await ended(host)
    assert answer.reason is Reason.RATE_LIMITED
    assert answer.fields == ["messages_per_identity"]
    assert await edge.stores.fleet.get_host(HOST) is None


async def test_a_hello_with_all_that_fits(edge: EdgeServer, host: HostStreamClient) -> None:
    """What a host with hundreds of certificates has to say after an outage is durable before it is welcome."""
    welcome = await host.hello(reports=[report(number) for number in range(1, 601)])
    assert welcome.acknowledged_sequence == 600


@pytest.mark.parametrize("allowances", [replace(GENEROUS, messages_pace=0.5, messages_at_once=10)])
async def test_a_flood_waits_at_the_host(edge: EdgeServer, host: HostStreamClient) -> None:
    """What isn't read yet isn't received: a host that floods is stopped by flow control, whatever it has to say."""
    await host.hello()
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await host.report(last_error="x" * 1900)
            sent += 1

    flooding = asyncio.create_task(flood())
    before = -1
    while before != sent:  # until nothing more goes out for as long as a hundred other calls take
        before = sent
        async with edge.channel(edge.ca.issue(["web2.example"])) as channel:
            for _ in range(100):
                await enrollment_pb2_grpc.EnrollmentServiceStub(channel).GetIdentity(
                    enrollment_pb2.GetIdentityRequest(), timeout=HANG
                )
    assert sent < 200  # some 64 KiB on either side; grpc's own windows would have taken thousands
    assert not flooding.done()
    flooding.cancel()


async def test_a_refusal_while_a_message_goes_out(edge: EdgeServer, caplog: pytest.LogCaptureFixture) -> None:
    """The host learns the reason though the welcome is on its way in the same moment, and no traceback is logged."""
    async with edge.host() as channel:
        for _ in range(40):
            stream = HostStreamClient(channel)
            await stream.say_hello()
            await stream.say(report=pb.StreamRenewalStatusRequest.Report())
            answer = await ended(stream)
            assert answer.reason is Reason.REQUEST_INVALID
            assert answer.fields == ["report.sequence"]
    assert not [record for record in of_certplane(caplog) if record.exc_info]


async def test_sequences_that_skip_and_go_back(edge: EdgeServer, host: HostStreamClient) -> None:
    """Gaps are no matter; what was said before is acknowledged again, and counted once."""
    await host.hello()
    await host.say(report=report(3, state="DUE"))
    await host.acknowledged(3)
    await host.say(report=report(900, state="REQUESTING"))
    await host.acknowledged(900)
    for _ in range(2):
        await host.say(report=report(3, state="DUE"))
        assert (await host.read()).acknowledgement.sequence == 900
    record = await edge.stores.fleet.get_host(HOST)
    assert record is not None
    assert [each.state for each in record.certificates] == ["requesting"]
    counts = edge.meter.counts
    assert counts[metrics.REPORTS, (("result", "durable"),)] == 2
    assert counts[metrics.REPORTS, (("result", "repeated"),)] == 2


async def test_wrong_and_replayed_nonces(edge: EdgeServer, host: HostStreamClient) -> None:
    """They are ignored and counted; who goes on is ended."""
    await host.hello()
    edge.hub.plans_changed([plan()])
    told = await host.directive()
    await host.answer("never-sent")
    await host.answer(told.nonce)
    for _ in range(7):
        await host.answer(told.nonce)
    await host.report()
    await host.acknowledged(1)
    assert edge.meter.counts[metrics.STREAM_MISUSES, ()] == 8
    await host.answer(told.nonce)
    answer = await ended(host)
    assert (answer.reason, answer.fields) == (Reason.REQUEST_INVALID, ["directive_result.nonce"])


async def test_a_report_that_names_what_is_another_host_s(edge: EdgeServer, host: HostStreamClient) -> None:
    """A host can say of itself what it likes: it is kept as its own, and nothing of the other host changes or leaks."""
    async with edge.channel(edge.ca.issue(["web2.example"])) as channel:
        other = HostStreamClient(channel)
        await other.hello()
        await other.say(report=report(1, certificate_id="certificate-of-web2", serial="abc"))
        await other.acknowledged(1)
        before = await edge.stores.fleet.get_host("web2.example")
        await host.hello()
        await host.say(report=report(1, certificate_id="certificate-of-web2", serial="abc", dns_names=["web2.example"]))
        await host.acknowledged(1)
        edge.hub.plans_changed([RenewalPlan("certificate-of-web2", "web2.example", NOW, RenewalCause.OPERATOR)])
        told = await other.directive()
        assert [renewal.certificate_id for renewal in told.renewals] == ["certificate-of-web2"]
        await host.heartbeat()
        assert (await host.read()).WhichOneof("message") == "heartbeat"
        assert await edge.stores.fleet.get_host("web2.example") == before


async def test_ten_thousand_directives_to_one_slow_agent(edge: EdgeServer, host: HostStreamClient) -> None:
    """While it thinks about the first, all others are one: the latest of each certificate."""
    await host.hello()
    edge.hub.plans_changed([plan(minutes=-1)])
    first = await host.directive()
    for minute in range(10_000):
        edge.hub.plans_changed([plan(f"certificate-{minute % 3}", minutes=minute)])
    stream = edge.hub.registry.place_of(HOST)
    assert stream is not None
    assert len(stream.session.pending_renewals()) == 3
    await host.answer(first.nonce)
    second = await host.directive()
    assert {renewal.certificate_id: renewal.renew_time.ToDatetime(UTC) for renewal in second.renewals} == {
        f"certificate-{minute % 3}": NOW + timedelta(minutes=minute) for minute in (9997, 9998, 9999)
    }
    await host.answer(second.nonce)
    await host.heartbeat()
    assert (await host.read()).WhichOneof("message") == "heartbeat"
    assert edge.meter.counts[metrics.DIRECTIVES, (("result", "sent"),)] == 2


async def test_more_than_a_hundred_renewals_come_in_turn(edge: EdgeServer, host: HostStreamClient) -> None:
    """The soonest first, a hundred at a time."""
    await host.hello()
    edge.hub.plans_changed([plan(f"certificate-{number}", minutes=number) for number in range(250)])
    counts = []
    while sum(counts) < 250:
        told = await host.directive()
        counts.append(len(told.renewals))
        assert told.ByteSize() < 64 * 1024
        await host.answer(told.nonce)
    assert counts[-1] == 50


async def test_a_refused_directive_is_not_sent_again_until_it_changes(edge: EdgeServer, host: HostStreamClient) -> None:
    """Neither on this stream nor on the next one; the refusal is kept for the operator to see."""
    await host.hello()
    edge.hub.plans_changed([plan()])
    told = await host.directive()
    await host.answer(told.nonce, status_from_refusal(RefusalError(Reason.REQUEST_INVALID, "no such one").refusal))
    edge.hub.plans_changed([plan()])
    await host.heartbeat()
    assert (await host.read()).WhichOneof("message") == "heartbeat"
    record = await edge.stores.fleet.get_host(HOST)
    assert record is not None
    assert record.directive_error is not None
    assert record.directive_error.message == "no such one"
    edge.hub.plans_changed([plan(minutes=-5)])
    told = await host.directive()
    await host.answer(told.nonce)
    await host.heartbeat()
    await host.read()
    record = await edge.stores.fleet.get_host(HOST)
    assert record is not None
    assert record.directive_error is None


async def test_an_unanswered_directive_ends_the_stream(edge: EdgeServer, host: HostStreamClient) -> None:
    """Heartbeats alone don't keep a host that answers nothing."""
    await host.hello()
    edge.hub.plans_changed([plan()])
    await host.directive()
    edge.clock.lapse += 2 * edge.streams.heartbeat_interval
    await host.heartbeat()
    await host.read()
    edge.clock.lapse += 2 * edge.streams.heartbeat_interval
    answer = await ended(host)
    assert answer.reason is Reason.STREAM_TIMED_OUT
    assert "directive" in answer.refusal.message


# --- faults -----------------------------------------------------------------------------------------------------------


async def test_a_store_that_fails_gets_no_acknowledgement(edge: EdgeServer, host: HostStreamClient) -> None:
    """Fault 26: reports wait, the stream stays; they are durable and acknowledged once the store is back."""
    await host.hello()
    edge.stores.database.down = True
    await host.report()
    await host.heartbeat()
    assert (await host.read()).WhichOneof("message") == "heartbeat"
    edge.stores.database.down = False
    await host.acknowledged(1)
    assert edge.meter.counts[metrics.REPORTS, (("result", "failed"),)] >= 1


@pytest.mark.parametrize("streams", [StreamSettings(tick=TICK, backlog=8)])
async def test_a_store_that_fails_for_long_sends_hosts_away(edge: EdgeServer, host: HostStreamClient) -> None:
    """No more than a bounded number of reports is kept; the host keeps what wasn't acknowledged, and says it again."""
    await host.hello()
    edge.stores.database.audit_down = True
    for _ in range(9):
        await host.report()
    assert (await ended(host)).reason is Reason.AUDIT_UNAVAILABLE
    edge.stores.database.audit_down = False
    async with edge.host() as channel:
        again = HostStreamClient(channel)
        welcome = await again.hello(reports=[report(sequence) for sequence in range(1, 10)])
        assert welcome.acknowledged_sequence == 9
    assert len([event for event in edge.stores.database.events if event.event_type == "renewal_reported"]) == 1


async def test_hello_while_the_store_fails(edge: EdgeServer, host: HostStreamClient) -> None:
    """The broker can't say what it has: come back."""
    edge.stores.database.down = True
    await host.say_hello()
    answer = await ended(host)
    assert answer.reason is Reason.STORE_UNAVAILABLE
    assert answer.refusal.retry_after
    edge.stores.database.down = False


async def test_goodbye(edge: EdgeServer, host: HostStreamClient) -> None:
    """A broker that stops says when to come back, ends the streams well, and takes no new ones."""
    await host.hello()
    await edge.hub.drain()
    goodbye = (await host.read()).goodbye
    assert timedelta(seconds=1) <= goodbye.reconnect_delay.ToTimedelta() <= timedelta(seconds=2)
    assert await host.call.read() is grpc.aio.EOF
    await host.end()
    async with edge.host() as channel:
        late = HostStreamClient(channel)
        answer = await ended(late)
    assert answer.reason is Reason.DRAINING


async def test_rapid_resets_leave_nothing(edge: EdgeServer) -> None:
    """Fault 25: streams that are opened and reset at once, hundreds of them, cost nobody else anything for long."""
    async with edge.host() as channel, edge.channel(edge.ca.issue(["web2.example"])) as quiet:
        other = HostStreamClient(quiet)
        await other.hello()
        for _ in range(300):
            HostStreamClient(channel).call.cancel()
        await other.report()
        await other.acknowledged(1)
        await until(lambda: len(list(edge.hub.registry)) == 1)
        await until(lambda: edge.meter.watched[metrics.RPC_IN_FLIGHT]() == 1)


# --- those who watch --------------------------------------------------------------------------------------------------


def watch(channel: grpc.aio.Channel, **fields: Any) -> Any:
    return renewal_pb2_grpc.RenewalServiceStub(channel).WatchRenewals(pb.WatchRenewalsRequest(**fields), timeout=HANG)


async def test_a_watcher_sees_the_fleet_and_then_each_change(edge: EdgeServer, host: HostStreamClient) -> None:
    """First the hosts as they are, then what they report, who comes, who leaves, and what a host no longer has."""
    await host.hello("web", "old", reports=[report(1, "web"), report(2, "old")])
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        call = watch(channel)
        snapshot = (await call.read()).host
        assert (snapshot.name, snapshot.label, snapshot.connected) == (HOST, "web1", True)
        assert [each.name for each in snapshot.certificates] == ["old", "web"]
        never_came = (await call.read()).host
        assert (never_came.name, never_came.connected) == ("web2.example", False)
        assert (await call.read()).snapshot_end.host_count == 2
        await host.say(report=report(3, "web", "FAILED", failed_step=pb.CertificateStatus.STEP_RELOAD))
        change = (await call.read()).certificate_change
        assert (change.host, change.certificate.state) == (HOST, pb.CertificateStatus.STATE_FAILED)
        async with edge.host() as second:
            again = HostStreamClient(second)
            await again.hello("web")
            change = (await call.read()).certificate_change
            assert (change.certificate.name, change.removed) == ("old", True)
            arrived = (await call.read()).host
            assert (arrived.connected, len(arrived.certificates)) == (True, 1)
        left = (await call.read()).host
        while left.connected:
            left = (await call.read()).host
        assert left.name == HOST


async def test_a_slow_watcher_gets_the_latest(edge: EdgeServer, host: HostStreamClient) -> None:
    """What it has not read yet is kept by certificate, not by report."""
    await host.hello()
    with edge.hub.watchers.watching(lambda _host: True) as watcher:
        for sequence in range(1, 501):
            await host.say(report=report(sequence, "web", "DUE" if sequence % 2 else "REQUESTING"))
        await host.acknowledged(500)
        assert len(watcher) == 1
        change = await watcher.next_change()
    assert getattr(change, "certificate").state == "requesting"  # noqa: B009 - whichever kind it is


@pytest.mark.parametrize("streams", [StreamSettings(tick=TICK, write_timeout=timedelta(milliseconds=300))])
async def test_a_watcher_that_never_reads_is_ended(edge: EdgeServer) -> None:
    """At the write time limit, however much the fleet has to say; the broker's memory of it goes with it."""
    names = [f"n{number}" for number in range(400)]
    async with edge.host() as channel:
        host = HostStreamClient(channel)
        await host.hello(*names)
        for sequence, name in enumerate(names, 1):
            await host.say(report=report(sequence, name, last_error="x" * 2000))
        await host.acknowledged(len(names))
        async with edge.channel(edge.ca.issue([OPERATOR])) as watching:
            call = watch(watching)
            await until(lambda: len(edge.hub.watchers) == 1)
            sequence = len(names)
            for _ in range(40):
                for name in names:
                    sequence += 1
                    await host.say(report=report(sequence, name, "DUE", last_error="y" * 2000))
                await host.acknowledged(sequence)
                if not len(edge.hub.watchers):
                    break
            await until(lambda: not len(edge.hub.watchers))
            await until(
                lambda: edge.meter.watched[metrics.RPC_IN_FLIGHT]() == 1
            )  # the host's stream: the call has ended too
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert await call.code() is not grpc.StatusCode.OK


async def test_a_host_with_more_than_fits_into_a_message(edge: EdgeServer, host: HostStreamClient) -> None:
    """A thousand certificates: messages stay under 64 KiB, and nothing is left out."""
    names = [f"certificate-{number:04d}" for number in range(1000)]
    await host.hello(*names)
    for sequence, name in enumerate(names, 1):
        await host.say(report=report(sequence, name, dns_names=["www.example.org"], last_error="x" * 200))
    await host.acknowledged(1000)
    seen: set[str] = set()
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        call = watch(channel)
        while not (event := await call.read()).HasField("snapshot_end"):
            seen |= {each.name for each in event.host.certificates}
            if event.HasField("certificate_change"):
                seen.add(event.certificate_change.certificate.name)
        call.cancel()
    assert seen == set(names)
