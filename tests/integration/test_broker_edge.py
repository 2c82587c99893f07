"""The broker's edge over real mTLS gRPC: who gets in, who stays in, and what each refusal looks like from outside."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from certplane.broker import metrics
from certplane.broker.events import AuditDecision
from certplane.broker.identity.access import METHODS
from certplane.broker.identity.allowances import AllowanceSettings
from certplane.broker.issuance.commands import IssueResult
from certplane.broker.model import DenyEntry, Grant, IdentityKind, OrderState, Profile
from certplane.broker.services.calls import CallerGoneError
from certplane.broker.services.server import PortError, server_options
from certplane.errors import ProblemDocument, Reason, Refusal, RefusalError, Violation
from certplane.rpc.channel import target_from_url
from certplane.rpc.credentials import channel_credentials
from certplane.rpc.status import CODES, refusal_from_error, refusal_from_status
from certplane.v1 import certificate_pb2, certificate_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc
from tests.fakes.authority import sample_certificate, sample_order
from tests.fakes.policy import FakePolicy, FakePolicySource
from tests.support.ca import Leaf, PrivateCa
from tests.support.edge import GENEROUS, HOST, OPERATOR, SERVICE, EdgeServer, serve_edge, trust_of
from tests.support.http2 import connect, send_call
from tests.support.logs import of_certplane
from tests.support.waiting import HANG, PATIENCE, no_hang, until

pytestmark = pytest.mark.integration

Channel = grpc.aio.Channel


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


@pytest.fixture
async def edge(ca: PrivateCa) -> AsyncIterator[EdgeServer]:
    async with serve_edge(ca) as server:
        yield server


async def get_identity(channel: Channel, **options: Any) -> enrollment_pb2.GetIdentityResponse:
    stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
    return await stub.GetIdentity(enrollment_pb2.GetIdentityRequest(), timeout=HANG, **options)


async def issue(
    channel: Channel, timeout: float | None = 10, **fields: Any
) -> certificate_pb2.IssueCertificateResponse:
    request = certificate_pb2.IssueCertificateRequest(**{"profile": "web", "csr_pem": "CSR", **fields})
    return await certificate_pb2_grpc.CertificateServiceStub(channel).IssueCertificate(request, timeout=timeout)


def watch(channel: Channel, **options: Any) -> Any:
    request = certificate_pb2.WatchOrderRequest(order_id="order-1")
    return certificate_pb2_grpc.CertificateServiceStub(channel).WatchOrder(request, timeout=HANG, **options)


async def refusal_of(call: Any) -> Refusal:
    """The refusal with which a call ends; its code is the one of the table."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    refusal = refusal_from_error(caught.value)
    assert refusal is not None, caught.value
    assert caught.value.code() is CODES[refusal.reason].code
    return refusal


def calls_served(edge: EdgeServer) -> int:
    """How many calls have reached the edge, whatever became of them."""
    return edge.meter.total(metrics.RPC_CALLS)


# --- the handshake ----------------------------------------------------------------------------------------------------

NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(None, id="without a certificate"),
        pytest.param({"ca": "other"}, id="row-38-from-another-ca"),
        pytest.param({"ca": "internal"}, id="row-38-from-another-ca-of-the-same-name"),
        pytest.param({"not_after": NOW - timedelta(minutes=1)}, id="row-37-expired"),
        pytest.param({"not_before": NOW + timedelta(hours=12)}, id="not yet valid"),
        pytest.param({"usages": (ExtendedKeyUsageOID.SERVER_AUTH,)}, id="for servers only"),
    ],
)
async def test_no_call_gets_past_the_handshake(edge: EdgeServer, changes: dict[str, Any] | None) -> None:
    """A client without a certificate, or with one that isn't valid here and now, reaches no RPC at all."""
    identity = None
    if changes is not None:
        issuer = PrivateCa(changes["ca"]) if "ca" in changes else edge.ca
        identity = issuer.issue([HOST], **{key: value for key, value in changes.items() if key != "ca"})
    async with edge.channel(identity) as channel:
        for call in (get_identity(channel), reflect(channel, "v1"), health(channel)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert calls_served(edge) == 0
    assert edge.denials.events == []


async def test_plain_text_port_does_not_exist(edge: EdgeServer) -> None:
    """The port speaks TLS only."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get_identity(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert calls_served(edge) == 0


async def test_known_identity_is_served(edge: EdgeServer) -> None:
    """A host that policy knows is told who it is."""
    leaf = edge.ca.issue([HOST, "unknown.example"], common_name=HOST)
    before = datetime.now(UTC)
    async with edge.channel(leaf) as channel:
        response = await get_identity(channel)
    after = datetime.now(UTC)
    identity = response.identity
    assert (identity.name, identity.kind, identity.label) == (HOST, enrollment_pb2.Identity.KIND_HOST, "web1")
    assert (identity.serial_number, identity.issuer) == (leaf.serial_number, leaf.issuer)
    assert (identity.provisioner, list(identity.profiles)) == ("JWK/hosts", ["web"])
    assert identity.expire_time.ToDatetime(UTC) == leaf.certificate.not_valid_after_utc
    assert response.policy_hash == edge.policy.current.hash
    assert before <= response.broker_time.ToDatetime(UTC) <= after


async def test_the_names_of_the_callers_profiles_are_told(edge: EdgeServer) -> None:
    """What a CSR must ask for, sorted; nothing of a profile whose names don't fit, nor of another's."""
    many = tuple(f"{number:03}.{'x' * 60}.{'y' * 60}.{'z' * 60}.example" for number in range(300))
    profiles = [
        Profile("web", "multi_san", ("b.example", "a.example"), "1"),
        Profile("large", "multi_san", many, "2"),
        Profile("other", "multi_san", ("c.example",), "3"),
    ]
    grant = Grant(HOST, IdentityKind.HOST, "web1", ("large", "web"))
    edge.policy.policy = FakePolicy.of([grant], profiles)
    async with edge.channel(edge.ca.issue([HOST])) as channel:
        response = await get_identity(channel)
    assert list(response.identity.profiles) == ["large", "web"]
    assert [(each.name, list(each.dns_names)) for each in response.granted_profiles] == [
        ("web", ["a.example", "b.example"])
    ]


# --- who is calling, on every call --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        pytest.param({"names": ["nobody.example"]}, "not one known identity", id="nobody's name"),
        pytest.param({"names": [HOST, "web2.example"]}, "not one known identity", id="two known names"),
        pytest.param({"names": [HOST, SERVICE]}, "not one known identity", id="two known names of two kinds"),
        pytest.param({"common_name": "web2.example"}, "not one known identity", id="CN of another"),
        pytest.param({"common_name": "Web server"}, "not one known identity", id="CN that is no name"),
        pytest.param(
            {"provisioner": ("ACME", "acme")},
            "add ACME to server.mtls.provisioners",
            id="row-39-made-by-an-acme-provisioner",
        ),
        pytest.param(
            {"provisioner": ("OIDC", "people")},
            "add OIDC to server.mtls.provisioners",
            id="row-39-made-by-an-oidc-provisioner",
        ),
        pytest.param(
            {"provisioner": None}, "server.mtls.allow_missing_provisioner: true", id="row-39-provisioner-not-said"
        ),
    ],
)
async def test_verified_certificate_that_is_no_identity(edge: EdgeServer, changes: dict[str, Any], text: str) -> None:
    """The right CA isn't enough: one known name, its CN, and the kind of provisioner must agree. It is audited."""
    options = {"names": [HOST], **changes}
    names = options.pop("names")
    leaf = edge.ca.issue(names, **options)
    async with edge.channel(leaf) as channel:
        refusal = await refusal_of(get_identity(channel))
    assert refusal.reason is Reason.IDENTITY_UNKNOWN
    assert text in refusal.message
    (event,) = edge.denials.events
    assert event.identity == ",".join(names)
    assert leaf.serial_number in event.reason
    assert (event.source_ip, event.reason_code) == ("127.0.0.1", "IDENTITY_UNKNOWN")


async def test_refusal_does_not_tell_which_names_are_known(edge: EdgeServer) -> None:
    """An unknown name, two known ones and a wrong CN get the same words."""
    messages = set()
    for leaf in (
        edge.ca.issue(["nobody.example"]),
        edge.ca.issue([HOST, "web2.example"]),
        edge.ca.issue([HOST], common_name="web2.example"),
    ):
        async with edge.channel(leaf) as channel:
            messages.add((await refusal_of(get_identity(channel))).message)
    assert len(messages) == 1


async def test_provisioner_kinds_are_the_configuration_s(ca: PrivateCa) -> None:
    """Other kinds, and certificates that don't say, are let in where the configuration says so."""
    async with serve_edge(ca, provisioners=("ACME", "")) as edge:
        for provisioner in (("ACME", "acme"), None):
            async with edge.host(provisioner=provisioner) as channel:
                await get_identity(channel)
        async with edge.host(provisioner=("JWK", "hosts")) as channel:
            assert (await refusal_of(get_identity(channel))).reason is Reason.IDENTITY_UNKNOWN


async def test_certificate_that_expires_on_an_open_connection(edge: EdgeServer) -> None:
    """A call after the certificate's end is refused, though the connection was made before it."""
    async with edge.host() as channel:
        await get_identity(channel)
        edge.clock.shift = timedelta(days=2)
        refusal = await refusal_of(get_identity(channel))
    assert refusal.reason is Reason.IDENTITY_EXPIRED
    assert edge.denied == ["IDENTITY_EXPIRED"]


async def test_ca_taken_out_of_the_bundle_while_a_connection_is_open(edge: EdgeServer) -> None:
    """A removed CA's certificates are refused on the next call of an open connection, and at the handshake of a new one."""
    successor = PrivateCa("successor")
    async with edge.host() as old, edge.channel(successor.issue([HOST])) as new:
        await get_identity(old)
        edge.trust.replace(trust_of(edge.server_leaf, edge.ca, successor), datetime.now(UTC))
        await get_identity(old)
        await get_identity(new)
        edge.trust.replace(trust_of(edge.server_leaf, successor), datetime.now(UTC))
        assert (await refusal_of(get_identity(old))).reason is Reason.IDENTITY_UNKNOWN
        await get_identity(new)
    served = calls_served(edge)
    async with edge.host() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get_identity(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert calls_served(edge) == served


@pytest.mark.parametrize("by", ["name", "serial"])
async def test_deny_listed_on_an_open_connection(edge: EdgeServer, by: str) -> None:
    """An operator's denial, of a name or of one certificate, holds from the next call on."""
    leaf, other = edge.ca.issue([HOST]), edge.ca.issue([HOST])
    entry = DenyEntry(name=HOST) if by == "name" else DenyEntry(issuer=leaf.issuer, serial_number=leaf.serial_number)
    async with edge.channel(leaf) as channel, edge.channel(other) as other_channel:
        await get_identity(channel)
        await edge.stores.deny_list.deny(entry, [])
        assert (await refusal_of(get_identity(channel))).reason is Reason.IDENTITY_REVOKED
        if by == "serial":
            await get_identity(other_channel)
        else:
            assert (await refusal_of(get_identity(other_channel))).reason is Reason.IDENTITY_REVOKED
        await edge.stores.deny_list.allow(entry, [])
        await get_identity(channel)


async def test_policy_that_forgets_an_identity(edge: EdgeServer) -> None:
    """Who is taken out of the policy is unknown from the next call on."""
    async with edge.host() as channel:
        await get_identity(channel)
        edge.policy.policy = FakePolicy.of([Grant("web2.example", IdentityKind.HOST, "web2")])
        assert (await refusal_of(get_identity(channel))).reason is Reason.IDENTITY_UNKNOWN


async def test_no_policy_lets_nobody_in(edge: EdgeServer) -> None:
    """Without a policy every call ends with POLICY_UNAVAILABLE and when to come back."""
    edge.policy.policy = None
    async with edge.host() as channel:
        refusal = await refusal_of(get_identity(channel))
    assert refusal.reason is Reason.POLICY_UNAVAILABLE
    assert refusal.retry_after is not None


# --- TLS that gRPC's own client doesn't speak ---------------------------------------------------------------------------


def tls_context(ca: PrivateCa, leaf: Leaf, directory: Path, version: ssl.TLSVersion) -> ssl.SSLContext:
    cert, key = leaf.write(directory, "client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.root_pem.decode())
    context.load_cert_chain(cert, key)
    context.minimum_version = context.maximum_version = version
    return context


TLS_VERSIONS = [pytest.param(ssl.TLSVersion.TLSv1_2, id="1.2"), pytest.param(ssl.TLSVersion.TLSv1_3, id="1.3")]


async def in_thread(function: Any, *arguments: Any) -> Any:
    """Run a blocking TLS client beside the server's loop."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def run() -> None:
        try:
            result = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            loop.call_soon_threadsafe(future.set_exception, error)
        else:
            loop.call_soon_threadsafe(future.set_result, result)

    threading.Thread(target=run, daemon=True).start()
    return await future


def resume(context: ssl.SSLContext, port: int) -> bool:
    """Whether a second connection with the first one's session is resumed; makes a call on it."""
    with connect(context, port) as first:
        send_call(first, "/certplane.v1.EnrollmentService/GetIdentity")
        session = first.session
    assert session is not None
    with connect(context, port, session) as second:
        reused = bool(second.session_reused)
        send_call(second, "/certplane.v1.EnrollmentService/GetIdentity")
    return reused


@pytest.mark.parametrize("version", TLS_VERSIONS)
async def test_call_on_a_resumed_session_is_refused(edge: EdgeServer, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A client that comes back with a session ticket skips the certificate check, so no call of it is served."""
    context = tls_context(edge.ca, edge.ca.issue([HOST]), tmp_path, version)
    assert await in_thread(resume, context, edge.port) is True
    (event,) = edge.denials.events
    assert event.reason_code == "IDENTITY_UNKNOWN"
    assert "resumed" in event.reason
    await until(lambda: calls_served(edge) == 2)


@pytest.mark.parametrize("version", TLS_VERSIONS)
async def test_expired_certificate_does_not_come_back_by_a_ticket(
    edge: EdgeServer, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """The hole: a ticket lets a certificate in that has expired meanwhile. Its call reaches no handler."""
    not_after = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2 * PATIENCE)
    leaf = edge.ca.issue([HOST], not_after=not_after)
    context = tls_context(edge.ca, leaf, tmp_path, version)
    path = "/certplane.v1.CertificateService/GetOrder"
    order = certificate_pb2.GetOrderRequest(order_id="order-1").SerializeToString()

    def first() -> ssl.SSLSession | None:
        with connect(context, edge.port) as connection:
            send_call(connection, path, order)
            return connection.session

    def second() -> bool:
        with connect(context, edge.port, session) as connection:
            send_call(connection, path, order)
            return bool(connection.session_reused)

    session = await in_thread(first)
    assert len(edge.authority.asked) == 1
    await asyncio.sleep((not_after - datetime.now(UTC)).total_seconds() + 1)
    assert await in_thread(second) is True
    assert len(edge.authority.asked) == 1
    assert edge.denied == ["IDENTITY_UNKNOWN"]
    session = None
    with pytest.raises((ssl.SSLError, EOFError, ConnectionError)):
        await in_thread(second)


async def test_replaced_trust_voids_tickets(edge: EdgeServer, tmp_path: Path) -> None:
    """After the pair or the bundle was replaced no older session can be resumed: a removed CA's clients lose theirs."""
    context = tls_context(edge.ca, edge.ca.issue([HOST]), tmp_path, ssl.TLSVersion.TLSv1_3)

    def session_of(connection: ssl.SSLSocket) -> ssl.SSLSession | None:
        with connection:
            send_call(connection, "/certplane.v1.EnrollmentService/GetIdentity")
            return connection.session

    session = await in_thread(lambda: session_of(connect(context, edge.port)))
    edge.trust.replace(trust_of(edge.server_leaf, edge.ca, PrivateCa("successor")), datetime.now(UTC))

    def again() -> bool:
        with connect(context, edge.port, session) as connection:
            send_call(connection, "/certplane.v1.EnrollmentService/GetIdentity")
            return bool(connection.session_reused)

    assert await in_thread(again) is False
    assert edge.denied == []


async def test_tls_below_the_configured_version(ca: PrivateCa, tmp_path: Path) -> None:
    """With min_version 1.3 a TLS 1.2 connection gets no call served; with TLS 1.3 it does."""
    async with serve_edge(ca, min_tls_version="1.3") as edge:
        context = tls_context(ca, ca.issue([HOST]), tmp_path, ssl.TLSVersion.TLSv1_2)

        def call() -> None:
            with connect(context, edge.port) as connection:
                send_call(connection, "/certplane.v1.EnrollmentService/GetIdentity")

        await in_thread(call)
        (event,) = edge.denials.events
        assert event.reason_code == "IDENTITY_UNKNOWN"
        assert "older than 1.3" in event.reason
        async with edge.host() as channel:
            await get_identity(channel)


# --- streams ------------------------------------------------------------------------------------------------------------


def follow(edge: EdgeServer) -> None:
    """Make WatchOrder send one message and then wait for the test."""
    edge.authority.results = [
        IssueResult(sample_order()),
        IssueResult(sample_order(state=OrderState.ISSUED), sample_certificate(), "order"),
    ]
    edge.authority.watch_gate = asyncio.Event()


async def test_watch_follows_an_order(edge: EdgeServer) -> None:
    """WatchOrder sends the order now and after each change, and ends with the last."""
    follow(edge)
    async with edge.host() as channel:
        call = watch(channel)
        first = await call.read()
        edge.authority.watch_gate.set()
        rest = [await call.read()]
        assert await call.read() is grpc.aio.EOF
        trailing = dict(await call.trailing_metadata())
    assert first.order.state == certificate_pb2.Order.STATE_PENDING
    assert not first.HasField("certificate")
    assert [message.certificate.certificate_id for message in rest] == ["certificate-1"]
    assert trailing["x-request-id"]


async def test_stream_ends_with_its_certificate(edge: EdgeServer) -> None:
    """An open stream that nothing is sent on ends UNAUTHENTICATED at the certificate's end, by a timer."""
    follow(edge)
    not_after = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3 * PATIENCE)
    edge.edge._open_streams._every = timedelta(days=1)
    async with edge.host(not_after=not_after) as channel:
        call = watch(channel)
        await call.read()
        refusal = await refusal_of(call.read())
    assert refusal.reason is Reason.IDENTITY_EXPIRED
    assert datetime.now(UTC) > not_after
    assert edge.authority.cancelled == 1


async def test_row_40_stream_of_a_denied_identity_is_closed(edge: EdgeServer) -> None:
    """An open stream that nothing is sent on ends soon after its identity was denied."""
    follow(edge)
    async with edge.host() as channel:
        call = watch(channel)
        await call.read()
        await edge.stores.deny_list.deny(DenyEntry(name=HOST), [])
        assert (await refusal_of(call.read())).reason is Reason.IDENTITY_REVOKED
    assert edge.denied == ["IDENTITY_REVOKED"]


async def test_stream_is_checked_before_each_message(edge: EdgeServer) -> None:
    """What a stream would send next isn't sent to a caller that policy no longer knows."""
    follow(edge)
    edge.edge._open_streams._every = timedelta(minutes=5)
    async with edge.host() as channel:
        call = watch(channel)
        await call.read()
        edge.policy.policy = FakePolicy.of()
        edge.authority.watch_gate.set()
        assert (await refusal_of(call.read())).reason is Reason.IDENTITY_UNKNOWN


async def test_stream_of_an_identity_that_became_another(edge: EdgeServer) -> None:
    """A certificate whose other name is the known one after a change of policy doesn't go on with the first one's stream."""
    follow(edge)
    async with edge.channel(edge.ca.issue([HOST, "other.example"])) as channel:
        call = watch(channel)
        await call.read()
        edge.policy.policy = FakePolicy.of([Grant("other.example", IdentityKind.HOST, "other")])
        assert (await refusal_of(call.read())).reason is Reason.IDENTITY_UNKNOWN


async def test_health_watch_is_checked_too(edge: EdgeServer) -> None:
    """Streams of grpc's own services, which write instead of yielding, obey the same rule."""
    async with edge.host() as channel:
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=HANG)
        assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVING
        await edge.stores.deny_list.deny(DenyEntry(name=HOST), [])
        assert (await refusal_of(call.read())).reason is Reason.IDENTITY_REVOKED


async def test_health_watch_is_checked_before_each_message(edge: EdgeServer) -> None:
    """What a handler would write next isn't sent to a caller that was denied meanwhile."""
    edge.edge._open_streams._every = timedelta(minutes=5)
    async with edge.host() as channel:
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=HANG)
        await call.read()
        await edge.stores.deny_list.deny(DenyEntry(name=HOST), [])
        await edge.server.drain(timedelta(seconds=1))
        assert (await refusal_of(call.read())).reason is Reason.IDENTITY_REVOKED


async def test_reflection_stream_is_checked_too(edge: EdgeServer) -> None:
    """A stream both ways ends as well when its caller is denied."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with edge.host() as channel:
        call = reflection_call(channel, "v1")
        await call.write(request)
        await call.read()
        await edge.stores.deny_list.deny(DenyEntry(name=HOST), [])
        assert (await refusal_of(call.read())).reason is Reason.IDENTITY_REVOKED


async def test_long_unary_call_is_checked_again_before_it_answers(edge: EdgeServer) -> None:
    """A caller that was denied while its order took its time doesn't get the certificate."""
    edge.authority.delay.clear()
    async with edge.host() as channel:
        call = asyncio.ensure_future(issue(channel))
        await asyncio.sleep(1.1)
        await edge.stores.deny_list.deny(DenyEntry(name=HOST), [])
        edge.authority.delay.set()
        assert (await refusal_of(call)).reason is Reason.IDENTITY_REVOKED


async def test_caller_that_leaves_cancels_its_handler(edge: EdgeServer) -> None:
    """A cancelled call is cancelled in the story and counted as such."""
    edge.authority.delay.clear()
    async with edge.host() as channel:
        call = asyncio.ensure_future(issue(channel))
        await until(lambda: edge.authority.commands, by=call)
        call.cancel()
        await until(lambda: edge.authority.cancelled)
    assert edge.authority.cancelled == 1
    labels = {
        "method": "/certplane.v1.CertificateService/IssueCertificate",
        "code": "CANCELLED",
        "reason": "",
    }
    assert edge.meter.total(metrics.RPC_CALLS, **labels) == 1


async def test_message_to_a_caller_that_has_gone_is_no_fault(
    ca: PrivateCa, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is sent before the handler hears of it ends the call as that does, and the log has no traceback."""
    from certplane.broker.identity.access import METHODS, Access
    from certplane.broker.services.interceptors import edge as edge_module

    faults = []
    first_is_out = asyncio.Event()

    async def stream(_request: bytes, context: Any) -> None:
        await context.write(b"first")
        first_is_out.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                await context.write(b"second")
            except Exception as error:
                faults.append(error)
                raise

    monkeypatch.setattr(edge_module, "METHODS", {**METHODS, "/x.Service/Method": Access(frozenset(IdentityKind))})
    edge = EdgeServer(ca)
    service = grpc.method_handlers_generic_handler(
        "x.Service", {"Method": grpc.unary_stream_rpc_method_handler(stream)}
    )
    edge.server._server.add_generic_rpc_handlers((service,))
    await edge.server.start()
    try:
        async with edge.channel(ca.issue([HOST])) as channel:
            call = channel.unary_stream("/x.Service/Method")(b"question", timeout=HANG)
            assert await call.read() == b"first"
            async with no_hang():
                await first_is_out.wait()  # what is sent may be read before its sender goes on
            call.cancel()
            labels = {"method": "/x.Service/Method", "code": "CANCELLED", "reason": ""}
            await until(lambda: edge.meter.total(metrics.RPC_CALLS, **labels) == 1)
    finally:
        await edge.server.stop(timedelta())
    (fault,) = faults
    assert isinstance(fault, CallerGoneError)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- who may call what --------------------------------------------------------------------------------------------------


async def health(channel: Channel, service: str = "") -> health_pb2.HealthCheckResponse:
    return await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=HANG)


def reflection_call(channel: Channel, version: str, requests: Any = None) -> Any:
    return channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(requests, timeout=HANG)


async def reflect(channel: Channel, version: str, **request: str) -> reflection_pb2.ServerReflectionResponse:
    asked = reflection_pb2.ServerReflectionRequest(**(request or {"list_services": ""}))
    (response,) = [message async for message in reflection_call(channel, version, iter([asked]))]
    return response


async def channelz(channel: Channel) -> channelz_pb2.GetServersResponse:
    return await channelz_pb2_grpc.ChannelzStub(channel).GetServers(channelz_pb2.GetServersRequest(), timeout=HANG)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_every_service(edge: EdgeServer, version: str) -> None:
    """A known identity can list the services and get the descriptor of each, by either version of the protocol."""
    async with edge.host() as channel:
        listed = await reflect(channel, version)
        names = {service.name for service in listed.list_services_response.service}
        for name in names:
            response = await reflect(channel, version, file_containing_symbol=name)
            assert response.file_descriptor_response.file_descriptor_proto, name
    assert names == {
        "certplane.v1.AuditService",
        "certplane.v1.BrokerService",
        "certplane.v1.BudgetService",
        "certplane.v1.CertificateService",
        "certplane.v1.EnrollmentService",
        "certplane.v1.FleetService",
        "certplane.v1.IncidentService",
        "certplane.v1.OrderService",
        "certplane.v1.PolicyService",
        "certplane.v1.RenewalService",
        "certplane.v1.RolloutService",
        "grpc.channelz.v1.Channelz",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def wait_for_reflection(channel: Channel, version: str) -> None:
    """Read, and ask nothing: a client that still writes when it is refused may take its own failure for the answer."""
    async for _ in reflection_call(channel, version):
        pass


@pytest.mark.parametrize(
    "call",
    [
        lambda channel: wait_for_reflection(channel, "v1"),
        lambda channel: wait_for_reflection(channel, "v1alpha"),
        health,
        channelz,
    ],
)
async def test_grpc_s_own_services_are_not_for_strangers(edge: EdgeServer, call: Any) -> None:
    """Reflection, health and channelz answer known identities only."""
    async with edge.channel(edge.ca.issue(["nobody.example"])) as channel:
        assert (await refusal_of(call(channel))).reason is Reason.IDENTITY_UNKNOWN


async def test_roles(edge: EdgeServer) -> None:
    """Operators don't get certificates, hosts don't see channelz; the answer says who may."""
    async with edge.host() as host, edge.channel(edge.ca.issue([OPERATOR])) as operator:
        refusal = await refusal_of(channelz(host))
        assert (refusal.reason, "only operators" in refusal.message) == (Reason.ROLE_REQUIRED, True)
        assert len((await channelz(operator)).server) >= 1
        assert (await refusal_of(issue(operator))).reason is Reason.ROLE_REQUIRED
        await get_identity(operator)
    assert edge.authority.commands == []
    async with edge.channel(edge.ca.issue([SERVICE])) as service:
        await issue(service)
    assert edge.denied == ["ROLE_REQUIRED", "ROLE_REQUIRED"]


@pytest.mark.parametrize("service", ["Audit", "Broker", "Fleet", "Order", "Policy"])
async def test_each_call_that_is_not_for_a_role_is_audited(ca: PrivateCa, service: str) -> None:
    """A host may call nothing of the operators' services, a viewer nothing that changes; each try is in the audit log."""
    viewer = Grant("viewer.example", IdentityKind.OPERATOR, "viewer", roles=("viewer",))
    policy = FakePolicySource(FakePolicy.of((viewer, Grant(HOST, IdentityKind.HOST, "web1", profiles=("web",)))))
    rows = {method: access for method, access in METHODS.items() if f".{service}Service/" in method}
    assert rows
    async with serve_edge(ca, policy=policy) as edge:
        for name in (HOST, viewer.name):
            refused = [method for method, access in rows.items() if name == HOST or "viewer" not in access.roles]
            async with edge.channel(ca.issue([name])) as channel:
                for method in refused:
                    assert (
                        await refusal_of(channel.unary_unary(method)(b"", timeout=HANG))
                    ).reason is Reason.ROLE_REQUIRED
            told = [(event.identity, event.reason_code, event.decision) for event in edge.denials.events]
            assert told == [(name, "ROLE_REQUIRED", AuditDecision.DENY)] * len(refused)
            edge.denials.events.clear()


async def test_method_that_is_not_served(edge: EdgeServer) -> None:
    """A known caller learns that this broker is older; a stranger learns nothing."""
    for identity, code in (
        (HOST, grpc.StatusCode.UNIMPLEMENTED),
        ("nobody.example", grpc.StatusCode.PERMISSION_DENIED),
    ):
        async with edge.channel(edge.ca.issue([identity])) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/certplane.v1.RenewalService/Future")(b"", timeout=HANG)
        assert caught.value.code() is code


async def test_method_without_a_row_is_nobody_s(ca: PrivateCa) -> None:
    """A method that is served but has no row in the access table is refused to everybody."""

    async def forgotten(_request: bytes, _context: object) -> bytes:
        return b"served"

    edge = EdgeServer(ca)
    handlers = {"Forgotten": grpc.unary_unary_rpc_method_handler(forgotten)}
    edge.server._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Service", handlers),))
    await edge.server.start()
    try:
        for identity in (HOST, OPERATOR):
            async with edge.channel(ca.issue([identity])) as channel:
                refusal = await refusal_of(channel.unary_unary("/x.Service/Forgotten")(b"", timeout=HANG))
            assert refusal.reason is Reason.ROLE_REQUIRED
    finally:
        await edge.server.stop(timedelta())


@pytest.mark.parametrize("streams", [(False, False), (False, True), (True, False), (True, True)], ids=str)
async def test_all_four_kinds_of_handlers_are_wrapped(
    ca: PrivateCa, streams: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever streams a method has, a stranger doesn't reach its handler, and a known caller does."""
    from certplane.broker.identity.access import METHODS, Access
    from certplane.broker.services.interceptors import edge as edge_module

    reached = []

    async def unary(_request: Any, _context: object) -> bytes:
        reached.append(1)
        return b"answer"

    async def stream(_request: Any, _context: object) -> AsyncIterator[bytes]:
        reached.append(1)
        yield b"answer"

    kind = ("stream" if streams[0] else "unary") + "_" + ("stream" if streams[1] else "unary")
    handler = getattr(grpc, f"{kind}_rpc_method_handler")(stream if streams[1] else unary)
    monkeypatch.setattr(edge_module, "METHODS", {**METHODS, "/x.Service/Method": Access(frozenset(IdentityKind))})
    edge = EdgeServer(ca)
    service = grpc.method_handlers_generic_handler("x.Service", {"Method": handler})
    edge.server._server.add_generic_rpc_handlers((service,))
    await edge.server.start()
    try:
        for identity in ("nobody.example", HOST):
            async with edge.channel(ca.issue([identity])) as channel:
                request: Any = iter([b"question"]) if streams[0] else b"question"
                call = getattr(channel, kind)("/x.Service/Method")(request, timeout=HANG)
                answer = call.read() if streams[1] else call
                if identity == HOST:
                    assert await answer == b"answer"
                else:
                    assert (await refusal_of(answer)).reason is Reason.IDENTITY_UNKNOWN
                    assert reached == []
        assert reached == [1]
    finally:
        await edge.server.stop(timedelta())


# --- limits and sizes ---------------------------------------------------------------------------------------------------


async def test_bucket(ca: PrivateCa) -> None:
    """A caller that is too fast is told when to come back; its neighbour isn't held up."""
    # One that comes back after hours, whatever a call costs here: garbage of all tests may be collected in one of them.
    slow = AllowanceSettings(calls_per_second=0.0001, calls_burst=2, call_seconds=HANG)
    async with serve_edge(ca, allowances=slow) as edge, edge.host() as channel:
        await get_identity(channel)
        await get_identity(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get_identity(channel)
        async with edge.channel(ca.issue(["web2.example"])) as other:
            await get_identity(other)
    refusal = refusal_from_error(caught.value)
    assert refusal is not None
    assert refusal.reason is Reason.RATE_LIMITED
    assert refusal.retry_after is not None
    assert timedelta(seconds=5_000) < refusal.retry_after <= timedelta(seconds=10_000)
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]  # has what from_call reads
    assert status is not None
    kinds = [detail.TypeName() for detail in status.details]
    assert kinds == [
        error_details_pb2.ErrorInfo.DESCRIPTOR.full_name,
        error_details_pb2.RetryInfo.DESCRIPTOR.full_name,
        error_details_pb2.QuotaFailure.DESCRIPTOR.full_name,
    ]
    assert edge.denied == ["RATE_LIMITED"]


async def test_work_counts(ca: PrivateCa) -> None:
    """A call that costs the event loop much uses up its caller's allowance, and nobody else's."""
    async with serve_edge(ca, allowances=AllowanceSettings(call_seconds=1e-7)) as edge, edge.host() as channel:
        await get_identity(channel)
        refusal = await refusal_of(get_identity(channel))
        async with edge.channel(ca.issue(["web2.example"])) as other:
            await get_identity(other)
    assert refusal.reason is Reason.RATE_LIMITED
    assert [violation.subject for violation in refusal.violations] == ["work_per_identity"]
    assert refusal.retry_after


async def test_messages_are_counted_over_streams(ca: PrivateCa) -> None:
    """Whoever opens another stream has the same bucket: of messages of any method, before they are read."""
    settings = replace(GENEROUS, messages_burst=5, messages_per_second=0.01, message_seconds=60)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async with serve_edge(ca, allowances=settings) as edge, edge.host() as channel:
        for _ in range(5):
            assert [message async for message in reflection_call(channel, "v1", iter([asked]))]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [message async for message in reflection_call(channel, "v1", iter([asked]))]
        async with edge.channel(ca.issue(["web2.example"])) as other:
            assert [message async for message in reflection_call(other, "v1", iter([asked]))]
    refusal = refusal_from_error(caught.value)
    assert refusal is not None
    assert [violation.subject for violation in refusal.violations] == ["messages_per_identity"]
    assert refusal.retry_after


async def test_streams_in_flight(ca: PrivateCa) -> None:
    """So many streams of one identity are open at once, over all of its connections; one that ends makes room."""
    settings = replace(GENEROUS, streams_in_flight=6)
    leaf = ca.issue([HOST])
    async with serve_edge(ca, allowances=settings) as edge, edge.channel(leaf) as one, edge.channel(leaf) as two:
        watches = [
            health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()) for channel in (one, two) * 3
        ]
        for each in watches:
            await each.read()
        refusal = await refusal_of(health_pb2_grpc.HealthStub(two).Watch(health_pb2.HealthCheckRequest()).read())
        assert [violation.subject for violation in refusal.violations] == ["streams_in_flight_per_identity"]
        await get_identity(two)
        watches[0].cancel()

        async def has_room() -> bool:
            watching = health_pb2_grpc.HealthStub(two).Watch(health_pb2.HealthCheckRequest())
            try:
                return await watching.read() is not grpc.aio.EOF
            except grpc.aio.AioRpcError:
                return False

        await until(has_room)


@pytest.mark.parametrize("names", [["nobody.example"], [HOST]], ids=["unknown", "denied"])
async def test_refused_callers_are_counted(ca: PrivateCa, names: list[str]) -> None:
    """Who isn't let in is told why, some times; then only that it was too often, which costs less and says less."""
    settings = replace(GENEROUS, calls_burst=3, calls_per_second=0.1)
    async with serve_edge(ca, allowances=settings) as edge:
        leaf = ca.issue(names)
        await edge.stores.deny_list.deny(DenyEntry(issuer=leaf.issuer, serial_number=leaf.serial_number), [])
        async with edge.channel(leaf) as channel:
            refusals = await asyncio.gather(*(refusal_of(get_identity(channel)) for _ in range(5)))
        async with edge.channel(ca.issue(["web2.example"])) as other:
            await get_identity(other)
    reasons = [refusal.reason for refusal in refusals]
    assert sorted(reasons) == [Reason.IDENTITY_REVOKED] * 3 + [Reason.RATE_LIMITED] * 2
    refusal = refusals[reasons.index(Reason.RATE_LIMITED)]
    assert [violation.subject for violation in refusal.violations] == ["refused_calls_per_caller"]
    assert refusal.retry_after


@pytest.mark.parametrize(
    "unread", [b"\xa3\x02\x30\x00", b"\xa5\x05\xa1\x03\x0c\x01x"], ids=["x400-address", "edi-party-name"]
)
async def test_names_that_nobody_reads_are_a_refusal(
    edge: EdgeServer, unread: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A certificate of the CA with names of a kind that can't be read is refused and audited, without a traceback."""
    name = HOST.encode()
    value = bytes((0x82, len(name))) + name + unread
    sans = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes((0x30, len(value))) + value)
    leaf = edge.ca.issue([], extra=[sans])
    async with edge.channel(leaf) as channel:
        refusal = await refusal_of(get_identity(channel))
    assert refusal.reason is Reason.IDENTITY_UNKNOWN
    assert edge.denied == ["IDENTITY_UNKNOWN"]
    assert not [record for record in of_certplane(caplog) if record.exc_info]


@pytest.mark.parametrize(
    "size", [pytest.param(17 * 1024, id="row-44-17-kib"), pytest.param(60 * 1024, id="row-44-60-kib")]
)
async def test_metadata_over_16_kib(edge: EdgeServer, size: int) -> None:
    """Metadata over 16 KiB ends the call with RESOURCE_EXHAUSTED before any handler, and the connection lives on."""
    async with edge.host() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get_identity(channel, metadata=(("x-junk", "j" * size),))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert calls_served(edge) == 0
        await get_identity(channel)


async def test_row_05_message_over_64_kib(edge: EdgeServer) -> None:
    """A message over 64 KiB ends the call with RESOURCE_EXHAUSTED before any handler."""
    credentials = channel_credentials(edge.ca.root_pem, edge.ca.issue([HOST]).pair)
    async with grpc.aio.secure_channel(target_from_url(edge.url), credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await issue(channel, csr_pem="x" * 66_000)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert edge.authority.commands == []
        await get_identity(channel)
        await issue(channel, csr_pem="x" * 64_000)


async def test_bytes_that_are_no_message(edge: EdgeServer) -> None:
    """Bytes that can't be read as the method's request are REQUEST_INVALID, not an internal error."""
    async with edge.host() as channel:
        call = channel.unary_unary("/certplane.v1.CertificateService/IssueCertificate")
        refusal = await refusal_of(call(b"\xff\xff\xff", timeout=HANG))
    assert refusal.reason is Reason.REQUEST_INVALID
    assert edge.denied == ["REQUEST_INVALID"]


# --- requests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        pytest.param("IssueCertificate", {"csr_pem": "CSR"}, "profile", id="no profile"),
        pytest.param("IssueCertificate", {"profile": "p" * 300, "csr_pem": "CSR"}, "profile", id="endless profile"),
        pytest.param("IssueCertificate", {"profile": "web"}, "csr_pem", id="no CSR"),
        pytest.param("IssueCertificate", {"profile": "web", "csr_pem": "C", "request_id": "a b"}, "request_id", id="request id with a space"),
        pytest.param("IssueCertificate", {"profile": "web", "csr_pem": "C", "request_id": "a\nb"}, "request_id", id="request id with a line break"),
        pytest.param("IssueCertificate", {"profile": "web", "csr_pem": "C", "request_id": "r" * 65}, "request_id", id="request id of 65"),
        pytest.param("IssueCertificate", {"profile": "web", "csr_pem": "C", "wait_duration": Duration(seconds=-1)}, "wait_duration", id="negative wait"),
        pytest.param("IssueCertificate", {"profile": "web", "csr_pem": "C", "wait_duration": Duration(nanos=-1)}, "wait_duration", id="barely negative wait"),
        pytest.param("IssueCertificate", {"profile": "web", "csr_pem": "C", "wait_duration": Duration(seconds=601)}, "wait_duration", id="wait over ten minutes"),
        pytest.param("IssueCertificate", {"profile": "web", "csr_pem": "C", "wait_duration": Duration(seconds=2**62)}, "wait_duration", id="wait of ages"),
        pytest.param("RenewCertificate", {"profile": "web", "csr_pem": "C"}, "certificate_id", id="renews nothing"),
        pytest.param("GetOrder", {}, "order_id", id="no order"),
        pytest.param("GetOrder", {"order_id": "../../etc"+chr(10)}, "order_id", id="order id with a line break"),
        pytest.param("GetCertificate", {"certificate_id": "c" * 129}, "certificate_id", id="endless certificate id"),
        pytest.param("ListCertificates", {"page_size": -1}, "page_size", id="negative page"),
        pytest.param("ListCertificates", {"page_token": "%%%"}, "page_token", id="token that is none"),
        pytest.param("RevokeCertificate", {"certificate_id": "c", "reason": 2}, "reason", id="reason of CAs only"),
    ],
)  # fmt: skip
async def test_invalid_request(edge: EdgeServer, method: str, fields: dict[str, Any], field: str) -> None:
    """What is wrong with a request is named by field, audited, and never reaches the story."""
    stub = certificate_pb2_grpc.CertificateServiceStub
    request_type = getattr(certificate_pb2, f"{method}Request")
    async with edge.host() as channel:
        refusal = await refusal_of(getattr(stub(channel), method)(request_type(**fields), timeout=HANG))
    assert refusal.reason is Reason.REQUEST_INVALID
    assert [violation.subject for violation in refusal.violations] == [field]
    assert edge.denied == ["REQUEST_INVALID"]
    assert edge.authority.commands == edge.authority.asked == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"identity_serial_number": "1f"}, "agent_version", id="no version"),
        pytest.param({"agent_version": "v" * 65, "identity_serial_number": "1f"}, "agent_version", id="endless version"),
        pytest.param({"agent_version": "1\n2", "identity_serial_number": "1f"}, "agent_version", id="version with a line break"),
        pytest.param({"agent_version": "1"}, "identity_serial_number", id="no serial"),
        pytest.param({"agent_version": "1", "identity_serial_number": "1F"}, "identity_serial_number", id="upper-case serial"),
        pytest.param({"agent_version": "1", "identity_serial_number": "01"}, "identity_serial_number", id="serial with a leading zero"),
        pytest.param({"agent_version": "1", "identity_serial_number": "1f", "host_facts": {f"k{n}": "" for n in range(17)}}, "host_facts", id="17 facts"),
        pytest.param({"agent_version": "1", "identity_serial_number": "1f", "host_facts": {"k" * 65: ""}}, "host_facts", id="endless fact"),
        pytest.param({"agent_version": "1", "identity_serial_number": "1f", "host_facts": {"os": "v" * 257}}, "host_facts[os]", id="endless value"),
    ],
)  # fmt: skip
async def test_invalid_report(edge: EdgeServer, fields: dict[str, Any], field: str) -> None:
    """A report out of bounds is refused and not recorded."""
    async with edge.host() as channel:
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
        refusal = await refusal_of(
            stub.ReportEnrollment(enrollment_pb2.ReportEnrollmentRequest(**fields), timeout=HANG)
        )
    assert refusal.reason is Reason.REQUEST_INVALID
    assert [violation.subject for violation in refusal.violations] == [field]
    assert edge.stores.database.reports == {}


async def test_report_is_recorded_and_audited(edge: EdgeServer) -> None:
    """What an agent reports is stored with its audit event."""
    leaf = edge.ca.issue([HOST])
    request = enrollment_pb2.ReportEnrollmentRequest(
        request_id="r-7", agent_version="0.1.0", host_facts={"os": "Debian 12"}, identity_serial_number="abc"
    )
    async with edge.channel(leaf) as channel:
        response = await enrollment_pb2_grpc.EnrollmentServiceStub(channel).ReportEnrollment(request, timeout=HANG)
    report = edge.stores.database.reports[HOST]
    assert (report.agent_version, report.host_facts) == ("0.1.0", (("os", "Debian 12"),))
    assert report.identity_serial_number == "abc"
    assert response.record_time.ToDatetime(UTC) == report.record_time
    activated, event = edge.stores.database.events
    assert activated.event_type == "identity_activated"
    assert (event.event_type, event.identity, event.request_id) == ("enrollment_reported", HOST, "r-7")
    assert leaf.serial_number in event.reason


async def test_trust_bundle_is_what_is_in_force(edge: EdgeServer) -> None:
    """GetTrustBundle shows the CAs and the chain of this moment."""
    async with edge.host() as channel:
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
        before = await stub.GetTrustBundle(enrollment_pb2.GetTrustBundleRequest(), timeout=HANG)
        renewed = edge.ca.issue_server(["localhost"])
        edge.trust.replace(trust_of(renewed, edge.ca, PrivateCa("successor")), datetime.now(UTC))
        after = await stub.GetTrustBundle(enrollment_pb2.GetTrustBundleRequest(), timeout=HANG)
    assert before.agent_ca_bundle_pem == edge.ca.root_pem.decode()
    assert before.server_certificate_chain_pem == edge.server_leaf.chain_pem.decode()
    assert after.agent_ca_bundle_pem.count("BEGIN CERTIFICATE") == 2
    assert after.server_certificate_chain_pem == renewed.chain_pem.decode()


async def test_issue_hands_the_story_what_was_asked(edge: EdgeServer) -> None:
    """The story gets the caller as authenticated, the request's id and what was asked; its answer comes back whole."""
    async with edge.host() as channel:
        response = await issue(channel, request_id="r-9", wait_duration=Duration(seconds=3))
    ((caller, command),) = edge.authority.commands
    assert (caller.name, caller.kind, caller.source_ip) == (HOST, IdentityKind.HOST, "127.0.0.1")
    assert caller.user_agent.startswith("grpc-python-asyncio/")
    assert (command.request_id, command.profile, command.csr_pem) == ("r-9", "web", "CSR")
    assert (command.wait, command.replaces_certificate_id) == (timedelta(seconds=3), "")
    assert response.source == certificate_pb2.CERTIFICATE_SOURCE_ORDER
    assert response.order.state == certificate_pb2.Order.STATE_ISSUED
    assert (response.certificate.certificate_pem, response.certificate.chain_pem) == ("LEAF\n", "CHAIN\n")


async def test_renew_names_what_it_replaces(edge: EdgeServer) -> None:
    """RenewCertificate is an order that replaces a certificate."""
    request = certificate_pb2.RenewCertificateRequest(certificate_id="c-1", profile="web", csr_pem="CSR")
    async with edge.host() as channel:
        await certificate_pb2_grpc.CertificateServiceStub(channel).RenewCertificate(request, timeout=HANG)
    assert edge.authority.commands[0][1].replaces_certificate_id == "c-1"


@pytest.mark.parametrize(
    ("timeout", "asked", "least", "most"),
    [
        pytest.param(None, None, 30, 30, id="default"),
        pytest.param(5, None, 3, 4, id="a second before the deadline"),
        pytest.param(5, 2, 2, 2, id="as asked"),
        pytest.param(0.9, None, 0, 0, id="deadline too near to wait"),
        pytest.param(None, 0, 0, 0, id="zero answers at once"),
        pytest.param(None, 600, 600, 600, id="ten minutes"),
    ],
)
async def test_wait(edge: EdgeServer, timeout: float | None, asked: int | None, least: int, most: int) -> None:
    """An issuing call waits as asked, but never into the last second before its deadline."""
    fields = {} if asked is None else {"wait_duration": Duration(seconds=asked)}
    async with edge.host() as channel:
        await issue(channel, timeout=timeout, **fields)
    wait = edge.authority.commands[0][1].wait.total_seconds()
    assert least <= wait <= most


async def test_request_id_comes_back(edge: EdgeServer) -> None:
    """The request's id is in the trailing metadata: the request's own, else the header's, else one that is made."""
    stub = enrollment_pb2_grpc.EnrollmentServiceStub
    async with edge.host() as channel:
        ids = []
        for own, header in (("own-1", "header-1"), ("", "header-1"), ("", ""), ("", "not an id")):
            request = enrollment_pb2.GetIdentityRequest(request_id=own)
            call = stub(channel).GetIdentity(request, timeout=HANG, metadata=(("x-request-id", header),))
            await call
            ids.append(dict(await call.trailing_metadata())["x-request-id"])
    assert ids[:2] == ["own-1", "header-1"]
    assert len(ids[2]) == len(ids[3]) == 16


async def test_pages(edge: EdgeServer) -> None:
    """Lists come in pages without PEM; the token of one leads to the next, and the last has none."""
    edge.authority.certificates = [sample_certificate(certificate_id=f"c-{n}") for n in range(5)]
    stub = certificate_pb2_grpc.CertificateServiceStub
    pages, token = [], ""
    async with edge.host() as channel:
        while True:
            request = certificate_pb2.ListCertificatesRequest(page_size=2, page_token=token)
            response = await stub(channel).ListCertificates(request, timeout=HANG)
            pages.append([certificate.certificate_id for certificate in response.certificates])
            assert all(not certificate.certificate_pem for certificate in response.certificates)
            token = response.next_page_token
            if not token:
                break
    assert pages == [["c-0", "c-1"], ["c-2", "c-3"], ["c-4"]]
    query = edge.authority.asked[0][2]
    assert query.identity == HOST
    assert query.usable_at is not None


async def test_page_of_large_certificates_fits_into_a_message(edge: EdgeServer) -> None:
    """A page ends before it outgrows a message, however many certificates were asked for; none is lost."""
    names = tuple(f"{'n' * 60}.{'m' * 60}.{number}.example" for number in range(100))
    edge.authority.certificates = [sample_certificate(certificate_id=f"c-{n}", dns_names=names) for n in range(20)]
    stub = certificate_pb2_grpc.CertificateServiceStub
    seen, token = [], ""
    async with edge.host() as channel:
        while True:
            request = certificate_pb2.ListCertificatesRequest(page_size=500, page_token=token, include_unusable=True)
            response = await stub(channel).ListCertificates(request, timeout=HANG)
            assert response.ByteSize() < 64 * 1024
            seen += [certificate.certificate_id for certificate in response.certificates]
            token = response.next_page_token
            if not token:
                break
    assert seen == [f"c-{n}" for n in range(20)]
    assert edge.authority.asked[0][2].usable_at is None


async def test_no_more_is_read_than_has_room_in_a_page(edge: EdgeServer) -> None:
    """Whoever asks for the largest pages again and again has the store read what is sent; none is lost."""
    edge.authority.certificates = [sample_certificate(certificate_id=f"c-{n:03}") for n in range(450)]
    stub = certificate_pb2_grpc.CertificateServiceStub
    seen, token = [], ""
    async with edge.host() as channel:
        while token or not seen:
            request = certificate_pb2.ListCertificatesRequest(page_size=500, page_token=token)
            response = await stub(channel).ListCertificates(request, timeout=HANG)
            seen += [certificate.certificate_id for certificate in response.certificates]
            token = response.next_page_token
    assert seen == [f"c-{n:03}" for n in range(450)]
    assert max(asked[2].limit for asked in edge.authority.asked) <= 201


# --- refusals of the story ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", list(Reason))
async def test_every_reason_over_a_real_connection(edge: EdgeServer, reason: Reason) -> None:
    """A refusal of the story arrives whole, with the code of the table; the edge doesn't audit it again."""
    edge.authority.error = RefusalError(
        reason,
        "Ümlaut and a very plain reason",
        retry_after=timedelta(seconds=90),
        violations=[Violation("csr_pem", "has no names")],
        problems=[ProblemDocument("urn:ietf:params:acme:error:dns", "SERVFAIL", 400, "a.example")],
    )
    async with edge.host() as channel:
        refusal = await refusal_of(issue(channel))
    assert refusal == edge.authority.error.refusal
    assert edge.denials.events == []


async def test_largest_refusal_arrives(edge: EdgeServer) -> None:
    """However much a CA has to say, the refusal fits into what a gRPC client accepts."""
    edge.authority.error = RefusalError(
        Reason.ISSUER_REJECTED,
        "ü" * 5000,
        violations=[Violation(f"names[{n}]", "ä" * 500) for n in range(100)],
        problems=[ProblemDocument("urn:" + "t" * 300, "é" * 500, 400, "n" * 300) for _ in range(100)],
    )
    async with edge.host() as channel:
        for _ in range(20):  # above the soft limit a client refuses at random
            refusal = await refusal_of(issue(channel))
    assert refusal.reason is Reason.ISSUER_REJECTED
    assert refusal.problems


async def test_failed_order_carries_its_refusal(edge: EdgeServer) -> None:
    """A failed order is an OK answer whose error is the status that a refused call would have had."""
    refusal = Refusal(Reason.DNS_UNAVAILABLE, "ns1.example lacks the record", timedelta(minutes=5))
    retry_time = datetime(2026, 11, 23, 13, tzinfo=UTC)
    failed = sample_order(state=OrderState.FAILED, error=refusal, retry_time=retry_time)
    edge.authority.results = [IssueResult(failed)]
    async with edge.host() as channel:
        response = await issue(channel)
    assert response.order.state == certificate_pb2.Order.STATE_FAILED
    assert refusal_from_status(response.order.error) == refusal
    assert response.order.retry_time.ToDatetime(UTC) == retry_time
    assert not response.HasField("certificate")


async def test_unexpected_fault_says_nothing(edge: EdgeServer, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected fault is INTERNAL with the request's id and nothing else; the log has the traceback."""
    edge.authority.error = ValueError("password=hunter2")
    with caplog.at_level(logging.ERROR):
        async with edge.host() as channel:
            for call in (issue(channel, request_id="r-13"), watch(channel).read()):
                refusal = await refusal_of(call)
                assert refusal.reason is Reason.INTERNAL
                assert re.fullmatch(
                    r"internal error; the broker's log has it as request [a-z0-9.-]{4,16}", refusal.message
                )
                assert refusal == Refusal(Reason.INTERNAL, refusal.message)
    tracebacks = [record for record in of_certplane(caplog) if record.exc_info]
    assert len(tracebacks) == 2
    assert all("hunter2" in str(record.exc_info) for record in tracebacks)


async def test_denial_that_cannot_be_audited_is_still_a_denial(
    edge: EdgeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken audit log doesn't let anybody in, and the log says what was not recorded."""

    async def broken(_event: object) -> None:
        raise RefusalError(Reason.AUDIT_UNAVAILABLE, "disk full")

    edge.denials.record = broken  # type: ignore[method-assign]  # a fault
    async with edge.channel(edge.ca.issue(["nobody.example"])) as channel:
        assert (await refusal_of(get_identity(channel))).reason is Reason.IDENTITY_UNKNOWN
    assert "could not be audited" in caplog.text


# --- running it ---------------------------------------------------------------------------------------------------------


async def test_drain(edge: EdgeServer) -> None:
    """While it drains, health says so, calls that issue come back later, and those that read are still served."""
    async with edge.host() as channel:
        assert (await health(channel)).status == health_pb2.HealthCheckResponse.SERVING
        assert (
            await health(channel, "certplane.v1.CertificateService")
        ).status == health_pb2.HealthCheckResponse.SERVING
        await edge.server.drain(timedelta(seconds=7))
        assert (await health(channel)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        refusal = await refusal_of(issue(channel))
        assert (refusal.reason, refusal.retry_after) == (Reason.DRAINING, timedelta(seconds=7))
        stub = certificate_pb2_grpc.CertificateServiceStub(channel)
        await stub.GetOrder(certificate_pb2.GetOrderRequest(order_id="order-1"), timeout=HANG)


async def test_unknown_service_has_no_health(edge: EdgeServer) -> None:
    """Health of a service that isn't served is NOT_FOUND, as its protocol says."""
    async with edge.host() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(channel, "x.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_taken_port(edge: EdgeServer) -> None:
    """A second broker on the same port fails with one line instead of sharing it."""
    with pytest.raises(PortError, match=r"can't listen on 127\.0\.0\.1"):
        EdgeServer(edge.ca, address=f"127.0.0.1:{edge.port}")


async def test_port_is_not_shared(edge: EdgeServer) -> None:
    """A server with the broker's options can't take half of another's connections (grpc shares ports by default)."""
    other = grpc.aio.server(options=server_options(reuse_port=False))
    with pytest.raises(RuntimeError, match="bind"):
        other.add_insecure_port(f"127.0.0.1:{edge.port}")


async def test_server_certificate_swaps_while_a_connection_is_open(edge: EdgeServer, tmp_path: Path) -> None:
    """A new pair is what the next connection sees; an open one isn't disturbed."""
    context = tls_context(edge.ca, edge.ca.issue([HOST]), tmp_path, ssl.TLSVersion.TLSv1_3)

    def presented() -> bytes | None:
        with connect(context, edge.port) as connection:
            return connection.getpeercert(binary_form=True)

    async with edge.host() as channel:
        await get_identity(channel)
        before = await in_thread(presented)
        renewed = edge.ca.issue_server(["localhost"])
        edge.trust.replace(trust_of(renewed, edge.ca), datetime.now(UTC))
        assert await in_thread(presented) != before
        await get_identity(channel)


async def test_access_log(edge: EdgeServer, caplog: pytest.LogCaptureFixture) -> None:
    """Each call leaves one line with who called what from where, how it ended and how long it took."""
    with caplog.at_level(logging.INFO, logger="certplane.broker.access"):
        async with edge.host() as channel:
            await get_identity(channel)
            await refusal_of(channelz(channel))
            # A caller may have its answer before the line is written.
            await until(lambda: len(caplog.records) == 2, what="a line for each call")
    lines = [record.fields for record in caplog.records if record.name == "certplane.broker.access"]  # type: ignore[attr-defined]
    assert [(line["code"], line["reason"], line["identity"]) for line in lines] == [
        ("OK", "", HOST),
        ("PERMISSION_DENIED", "ROLE_REQUIRED", HOST),
    ]
    assert lines[0]["method"] == "/certplane.v1.EnrollmentService/GetIdentity"
    assert lines[0]["source_ip"] == "127.0.0.1"
    assert lines[0]["ms"] > 0
