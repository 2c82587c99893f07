"""Every reason of docs/errors.md by its real cause, over a real connection to a whole broker.

A reason before there is an order refuses the call; a later one is `Order.error` of an OK answer. Either way its code
and its details are those that docs/errors.md promises (`tests.support.calls`). The public CA is a scripted one where it
must misbehave, and Pebble where it says no by itself; the DNS API is Cloudflare's, played by the sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from grpc_health.v1 import health_pb2, health_pb2_grpc

from certplane.broker.app import Broker, open_broker
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.identity_commands import deny_identity, identity_entry
from certplane.broker.prepared import prepare
from certplane.broker.settings import load_settings
from certplane.errors import ProblemDocument, Reason
from certplane.pki.csr import build_csr
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import channel_credentials
from certplane.rpc.status import CODES
from certplane.sandbox.cloudflare_api import CloudflareApi, Fault
from certplane.sandbox.pebble import Pebble, PebbleOptions
from certplane.sandbox.ports import DnsServer
from certplane.v1 import certificate_pb2 as pb
from certplane.v1 import enrollment_pb2, enrollment_pb2_grpc, fleet_pb2, fleet_pb2_grpc
from tests.support.broker_files import BrokerFiles
from tests.support.ca import Leaf
from tests.support.calls import Refused, refused, refused_order
from tests.support.csr import craft, pem, rsa_key
from tests.support.deployed_broker import certificates, get_identity, issue
from tests.support.limits import UNLIMITED
from tests.support.logs import of_certplane
from tests.support.parts import need_part
from tests.support.scripted_acme import Answer, ScriptedAcme, problem
from tests.support.streams import HostStreamClient
from tests.support.waiting import HANG, PATIENCE, until

pytestmark = pytest.mark.integration

NAMES = ("a.certplane.test", "b.certplane.test")
HOST, OTHER, OPERATOR = "web1.certplane.test", "web2.certplane.test", "admin.certplane.test"
POLICY = """\
version: 1
profiles:
  web: {type: multi_san, dns_names: [a.certplane.test, b.certplane.test], acme: {credentials: cloudflare/api-token}}
  other: {type: multi_san, dns_names: [c.certplane.test]}
hosts:
  web1: {identity: web1.certplane.test, profiles: [web]}
  web2: {identity: web2.certplane.test, profiles: [web, other]}
operators:
  admin: {identity: admin.certplane.test, roles: [guest, viewer]}
  owner: {identity: owner.certplane.test, roles: [admin]}
"""
HOUR = timedelta(hours=1)
LATER = (("Retry-After", "3600"),)


class Scene:
    """A broker's files, what surrounds it, and the broker once a test has started it."""

    def __init__(self, files: BrokerFiles, acme: ScriptedAcme, api: CloudflareApi, dns: DnsServer) -> None:
        self.files = files
        self.acme = acme
        self.api = api
        self.broker: Broker
        self._stack = contextlib.AsyncExitStack()
        files.settings["issuer"]["acme"] = {
            "directory_url": acme.directory_url,
            "account_key": str(files.directory / "account.key"),
            "ca_bundle": str(acme.roots_file),
            "dns_provider": "cloudflare",
            "cloudflare": {"base_url": api.base_url},
            "propagation": {"nameservers": [dns.endpoint.host_port], "interval": "50ms", "timeout": "10s"},
        }
        files.settings["audit"] = {"failure_mode": "fail_closed"}

    async def start(self, **sections: dict[str, Any]) -> None:
        """Start the broker; `sections` are laid over those of broker.yml."""
        for name, section in sections.items():
            self.files.settings.setdefault(name, {}).update(section)
        self.files.write()
        self.files.policy.write_text(POLICY)
        self.broker = await self._stack.enter_async_context(open_broker(prepare(load_settings(self.files.config))))

    async def stop(self) -> None:
        """Stop it, as a signal does."""
        await self._stack.aclose()

    def identity(self, name: str = HOST, **changes: Any) -> Leaf:
        return self.files.ca.issue([name], **changes)

    @asynccontextmanager
    async def channel(self, identity: str | Leaf = HOST) -> AsyncIterator[grpc.aio.Channel]:
        leaf = self.identity(identity) if isinstance(identity, str) else identity
        credentials = channel_credentials(self.files.ca.root_pem, leaf.pair)
        async with open_channel(f"https://localhost:{self.broker.port}", credentials) as channel:
            yield channel

    async def issue(self, identity: str | Leaf = HOST, **fields: Any) -> pb.IssueCertificateResponse:
        """`IssueCertificate` of the profile `web` for a new key, unless `fields` say otherwise."""
        async with self.channel(identity) as channel:
            return await issue(channel, **{"profile": "web", "csr_pem": csr(), **fields})

    async def renew(self, identity: Leaf, certificate_id: str) -> pb.RenewCertificateResponse:
        """`RenewCertificate` of the profile `web` with a new key."""
        request = pb.RenewCertificateRequest(profile="web", csr_pem=csr(), certificate_id=certificate_id)
        async with self.channel(identity) as channel:
            return await certificates(channel).RenewCertificate(request, timeout=HANG)

    async def failed(self) -> tuple[Refused, pb.Order]:
        """How an order fails; until its time comes, asking again gets the same order and asks nobody else."""
        wanted = csr()
        before = datetime.now(UTC)
        order = (await self.issue(csr_pem=wanted)).order
        assert order.state == pb.Order.STATE_FAILED
        answer = refused_order(order.error)
        asked = len(self.acme.asked)
        again = (await self.issue(csr_pem=wanted)).order
        assert (again.order_id, again.error) == (order.order_id, order.error)
        assert len(self.acme.asked) == asked
        assert order.retry_time.ToDatetime(UTC) > before
        return answer, order

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """The broker's database, opened by another program."""
        path = self.files.directory / "broker.db"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            yield connection


@pytest.fixture
async def scene(tmp_path: Path, dns_server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    with ScriptedAcme(tmp_path) as acme:
        async with CloudflareApi(tmp_path / "cloudflare", dns_server.endpoint, https=False) as api:
            monkeypatch.setenv("CLOUDFLARE_API_TOKEN", api.token)
            made = Scene(BrokerFiles(tmp_path), acme, api, dns_server)
            try:
                yield made
            finally:
                await made.stop()


def csr(*names: str, key: Any = None) -> str:
    return build_csr(key or ec.generate_private_key(ec.SECP256R1()), sans=names or NAMES)


# --- identities -------------------------------------------------------------------------------------------------------


async def expired_while_connected(scene: Scene) -> Refused:
    await scene.start()
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3 * PATIENCE)
    async with scene.channel(scene.identity(not_after=end)) as channel:
        await get_identity(channel)
        await asyncio.sleep((end - datetime.now(UTC)).total_seconds() + 1.05)
        return await refused(get_identity(channel))


async def denied_by_an_operator(scene: Scene) -> Refused:
    await scene.start()
    async with scene.channel() as channel:
        await deny_identity(
            load_settings(scene.files.config),
            identity_entry(name=HOST, issuer="", serial_number="", reason="lost"),
        )

        async def is_refused() -> bool:
            try:
                await get_identity(channel)
            except grpc.aio.AioRpcError:
                return True
            return False

        await until(is_refused, what="the refusal")
        return await refused(get_identity(channel))


async def retired_by_a_newer_certificate(scene: Scene) -> Refused:
    await scene.start()
    of_old = scene.identity(not_before=datetime.now(UTC).replace(microsecond=0) - 2 * HOUR)
    async with scene.channel(of_old) as old, scene.channel() as new:
        await get_identity(new)
        answer = await refused(get_identity(old))
        assert of_old.serial_number in answer.refusal.message
        assert "certplane-broker identity list" in answer.refusal.message
        assert (await get_identity(new)).identity.HasField("contest_time")
    return answer


async def two_holders_of_one_identity(scene: Scene) -> Refused:
    await scene.start()
    owner = scene.identity()
    wanted = csr()
    served = await scene.issue(owner, csr_pem=wanted)
    copy = scene.identity(not_before=datetime.now(UTC).replace(microsecond=0) - 2 * HOUR)
    async with scene.channel(copy) as channel:
        assert (await refused(get_identity(channel))).reason is Reason.IDENTITY_RETIRED
    asked = len(scene.acme.asked)
    answer = await refused(scene.issue(owner))
    assert "identity allow" in answer.refusal.message
    renewal = refused(scene.renew(owner, served.certificate.certificate_id))
    assert (await renewal).reason is Reason.IDENTITY_CONTESTED
    assert len(scene.acme.asked) == asked
    # What it has stays served: the owner is seen, and nothing of it breaks before an operator decides.
    again = await scene.issue(owner, csr_pem=wanted)
    assert (again.source, again.certificate) == (pb.CERTIFICATE_SOURCE_CACHE, served.certificate)
    assert (await scene.issue(OTHER)).order.state == pb.Order.STATE_ISSUED  # neighbours don't notice
    return answer


async def name_that_policy_does_not_know(scene: Scene) -> Refused:
    await scene.start()
    async with scene.channel("stranger.certplane.test") as channel:
        return await refused(get_identity(channel))


async def operator_asks_for_a_certificate(scene: Scene) -> Refused:
    await scene.start()
    return await refused(scene.issue(OPERATOR))


# --- requests ---------------------------------------------------------------------------------------------------------


async def profile_of_another(scene: Scene) -> Refused:
    await scene.start()
    return await refused(scene.issue(profile="other", csr_pem=csr("c.certplane.test")))


async def name_too_many(scene: Scene) -> Refused:
    await scene.start()
    return await refused(scene.issue(csr_pem=csr(*NAMES, "c.certplane.test")))


async def key_of_the_account(scene: Scene) -> Refused:
    await scene.start()
    account = load_pem_private_key((scene.files.directory / "account.key").read_bytes(), None)
    return await refused(scene.issue(csr_pem=csr(key=account)))


async def key_of_another_host(scene: Scene) -> Refused:
    await scene.start()
    wanted = csr()
    await scene.issue(OTHER, csr_pem=wanted)
    return await refused(scene.issue(csr_pem=wanted))


async def key_revoked_as_compromised(scene: Scene) -> Refused:
    await scene.start()
    wanted = csr()
    issued = await scene.issue(csr_pem=wanted)
    request = pb.RevokeCertificateRequest(
        certificate_id=issued.certificate.certificate_id, reason=pb.REVOCATION_REASON_KEY_COMPROMISE
    )
    async with scene.channel() as channel:
        await certificates(channel).RevokeCertificate(request, timeout=HANG)
    return await refused(scene.issue(csr_pem=wanted))


async def csr_without_names(scene: Scene) -> Refused:
    await scene.start()
    answer = await refused(scene.issue(csr_pem=pem(craft(attributes=[]))))
    assert answer.fields == ["csr_pem"]
    return answer


async def short_key(scene: Scene) -> Refused:
    await scene.start()
    answer = await refused(scene.issue(csr_pem=csr(key=rsa_key(1024))))
    assert answer.fields == ["csr_pem"]
    return answer


async def wait_over_ten_minutes(scene: Scene) -> Refused:
    await scene.start()
    answer = await refused(scene.issue(wait=601))
    assert answer.fields == ["wait_duration"]
    return answer


async def unknown_order(scene: Scene) -> Refused:
    await scene.start()
    async with scene.channel() as channel:
        return await refused(certificates(channel).GetOrder(pb.GetOrderRequest(order_id="1"), timeout=HANG))


async def order_of_another(scene: Scene) -> Refused:
    await scene.start()
    order_id = (await scene.issue(OTHER)).order.order_id
    async with scene.channel() as channel:
        return await refused(certificates(channel).GetOrder(pb.GetOrderRequest(order_id=order_id), timeout=HANG))


async def unknown_certificate(scene: Scene) -> Refused:
    await scene.start()
    async with scene.channel() as channel:
        request = pb.GetCertificateRequest(certificate_id="1")
        return await refused(certificates(channel).GetCertificate(request, timeout=HANG))


async def certificate_of_another(scene: Scene) -> Refused:
    await scene.start()
    issued = await scene.issue(OTHER)
    return await refused(scene.issue(certificate_id=issued.certificate.certificate_id))


# --- limits -----------------------------------------------------------------------------------------------------------


async def too_many_calls(scene: Scene) -> Refused:
    await scene.start(server={"calls_per_identity_per_second": 1, "calls_burst": 1})
    async with scene.channel() as channel:
        # At once: the next second has another call's allowance.
        calls = [asyncio.ensure_future(get_identity(channel)) for _ in range(20)]
        await asyncio.wait(calls)
        answer = await refused(next(call for call in calls if call.exception() is not None))
    assert answer.fields == ["calls_per_identity"]
    assert answer.refusal.retry_after is not None
    assert timedelta() < answer.refusal.retry_after <= timedelta(seconds=1)
    return answer


def too_many_orders(limit: str, window: timedelta) -> Callable[[Scene], Awaitable[Refused]]:
    async def cause(scene: Scene) -> Refused:
        await scene.start(rate_limits={**UNLIMITED, limit: 1})
        begin = datetime.now(UTC)
        issued = await scene.issue()
        assert issued.order.state == pb.Order.STATE_ISSUED
        orders = len(scene.acme.orders)
        answer = await refused(scene.issue())
        assert len(scene.acme.orders) == orders
        assert answer.fields == [limit]
        assert answer.refusal.retry_after is not None
        # What is due isn't held up: nobody is told to come back later than that.
        wait = min(window, issued.certificate.renew_time.ToDatetime(UTC) - begin)
        assert timedelta() < wait - answer.refusal.retry_after < timedelta(minutes=1)
        assert (await scene.issue(OTHER)).order.state == pb.Order.STATE_ISSUED  # neighbours don't notice
        return answer

    return cause


# --- the broker's own state -------------------------------------------------------------------------------------------


async def audit_log_that_takes_no_rows(scene: Scene) -> Refused:
    await scene.start()
    with scene.database() as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON audit_events BEGIN SELECT RAISE(FAIL, 'disk is full'); END"
        )
        answer = await refused(scene.issue())
        assert scene.acme.asked == []
        database.execute("DROP TRIGGER full")
    assert (await scene.issue()).order.state == pb.Order.STATE_ISSUED
    return answer


async def database_locked_by_another_program(scene: Scene) -> Refused:
    await scene.start()
    with scene.database() as database:
        database.execute("BEGIN IMMEDIATE")
        answer = await refused(scene.issue())
        assert scene.acme.asked == []
        database.execute("ROLLBACK")
    assert (await scene.issue()).order.state == pb.Order.STATE_ISSUED
    return answer


async def broker_that_stops(scene: Scene) -> Refused:
    await scene.start(server={"drain_timeout": "20s"})
    # Twice: the look at the credentials at the start may take the first.
    scene.api.fail_next("GET", "/zones", Fault(429, delay=timedelta(seconds=1)), times=2)
    async with scene.channel() as channel:
        running = asyncio.ensure_future(issue(channel, profile="web", csr_pem=csr()))
        await until(lambda: scene.acme.orders, what="the order", by=running)
        stopping = asyncio.ensure_future(scene.stop())
        await asyncio.sleep(0.1)
        answer = await refused(issue(channel, profile="web", csr_pem=csr()))
        assert (await running).order.state == pb.Order.STATE_ISSUED  # what was under way is finished
        await stopping
    return answer


async def certificate_missing_from_the_database(scene: Scene) -> Refused:
    await scene.start()
    order_id = (await scene.issue()).order.order_id
    with scene.database() as database:
        database.execute("DELETE FROM certificates")
    async with scene.channel() as channel:
        request = pb.GetOrderRequest(order_id=order_id, request_id="r-42")
        answer = await refused(certificates(channel).GetOrder(request, timeout=HANG))
    assert answer.refusal.message == "internal error; the broker's log has it as request r-42"
    assert (answer.details, answer.refusal.violations, answer.refusal.problems) == ((), (), ())
    return answer


# --- the public CA and the DNS API ------------------------------------------------------------------------------------


def pause_of(order: pb.Order) -> timedelta:
    """How long the order stands in a new one's way."""
    return order.retry_time.ToDatetime(UTC) - order.create_time.ToDatetime(UTC)


async def ca_that_limits(scene: Scene) -> Refused:
    text = "too many certificates (5) already issued for this exact set of identifiers"
    scene.acme.fail("POST /newOrder", problem("rateLimited", text, 429, retry_after="3600"))
    await scene.start()
    answer, order = await scene.failed()
    assert text in answer.refusal.problems[0].detail
    assert answer.fields == ["name_set"]
    assert abs(pause_of(order) - HOUR) < timedelta(minutes=1)
    assert answer.refusal.retry_after is not None
    assert HOUR - answer.refusal.retry_after < timedelta(minutes=1)
    return answer


async def ca_in_maintenance(scene: Scene) -> Refused:
    page = Answer(503, b"<html>maintenance</html>", "text/html", LATER)
    scene.acme.fail("POST /newOrder", *[page] * 10)
    await scene.start()
    answer, order = await scene.failed()
    assert abs(pause_of(order) - HOUR) < timedelta(minutes=1)
    return answer


async def ca_that_refuses(scene: Scene) -> Refused:
    text = "The ACME server refuses to issue a certificate for a.certplane.test"
    scene.acme.fail("POST /newOrder", problem("rejectedIdentifier", text, 403))
    await scene.start()
    answer, _ = await scene.failed()
    assert answer.refusal.problems == (ProblemDocument("urn:ietf:params:acme:error:rejectedIdentifier", text, 403),)
    return answer


async def dns_api_in_maintenance(scene: Scene) -> Refused:
    scene.api.fail_next("GET", "/zones", Fault(503, headers=LATER), times=50)
    await scene.start()
    answer, _ = await scene.failed()
    return answer


async def dns_token_that_was_revoked(scene: Scene) -> Refused:
    scene.api.fail_next("GET", "/zones", Fault(403, 10_000, "Authentication error"), times=50)
    await scene.start()
    answer, _ = await scene.failed()
    assert "Authentication error" in answer.refusal.message
    return answer


async def unknown_host(scene: Scene) -> Refused:
    await scene.start()
    async with scene.channel(OPERATOR) as channel:
        stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        return await refused(stub.GetHost(fleet_pb2.GetHostRequest(host="web3"), timeout=HANG))


async def viewer_asks_for_renewals(scene: Scene) -> Refused:
    await scene.start()
    async with scene.channel(OPERATOR) as channel:
        stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        return await refused(stub.RequestRenewal(fleet_pb2.RequestRenewalRequest(reason="x"), timeout=HANG))


async def token_of_a_broker_that_makes_none(scene: Scene) -> Refused:
    await scene.start()
    async with scene.channel("owner.certplane.test") as channel:
        stub: Any = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
        request = enrollment_pb2.CreateBootstrapTokenRequest(identity=HOST)
        return await refused(stub.CreateBootstrapToken(request, timeout=HANG))


async def second_stream_of_an_identity(scene: Scene) -> Refused:
    await scene.start()
    identity = scene.identity()
    async with scene.channel(identity) as one, scene.channel(identity) as other:
        first = HostStreamClient(one)
        await first.hello()
        await HostStreamClient(other).hello()
        return await refused(first.end())


async def host_that_falls_silent(scene: Scene) -> Refused:
    await scene.start()
    scene.broker.hub.context.settings = StreamSettings(heartbeat_interval=timedelta(milliseconds=100))
    async with scene.channel() as channel:
        stream = HostStreamClient(channel)
        await stream.hello()
        return await refused(stream.end())


CAUSES: list[tuple[Reason, Callable[[Scene], Awaitable[Refused]], str]] = [
    (Reason.IDENTITY_EXPIRED, expired_while_connected, ""),
    (Reason.IDENTITY_REVOKED, denied_by_an_operator, ""),
    (Reason.IDENTITY_RETIRED, retired_by_a_newer_certificate, ""),
    (Reason.IDENTITY_CONTESTED, two_holders_of_one_identity, ""),
    (Reason.IDENTITY_UNKNOWN, name_that_policy_does_not_know, ""),
    (Reason.PROFILE_NOT_ALLOWED, profile_of_another, ""),
    (Reason.NAMES_NOT_ALLOWED, name_too_many, ""),
    (Reason.KEY_REUSED, key_of_the_account, ""),
    (Reason.KEY_REUSED, key_of_another_host, ""),
    (Reason.KEY_REUSED, key_revoked_as_compromised, ""),
    (Reason.ROLE_REQUIRED, operator_asks_for_a_certificate, ""),
    (Reason.CSR_INVALID, csr_without_names, ""),
    (Reason.KEY_WEAK, short_key, ""),
    (Reason.REQUEST_INVALID, wait_over_ten_minutes, ""),
    (Reason.RATE_LIMITED, too_many_calls, ""),
    (Reason.RATE_LIMITED, too_many_orders("per_identity_per_hour", HOUR), "orders_of_an_identity"),
    (Reason.RATE_LIMITED, too_many_orders("per_identity_profile_per_hour", HOUR), "orders_of_a_profile"),
    (Reason.RATE_LIMITED, too_many_orders("new_keys_per_identity_profile_per_day", 24 * HOUR), "new_keys"),
    (Reason.RATE_LIMITED, too_many_orders("certificates_per_identity_profile_per_day", 24 * HOUR), "certificates"),
    (Reason.ISSUER_RATE_LIMITED, ca_that_limits, ""),
    (Reason.AUDIT_UNAVAILABLE, audit_log_that_takes_no_rows, ""),
    (Reason.STORE_UNAVAILABLE, database_locked_by_another_program, ""),
    (Reason.ISSUER_UNAVAILABLE, ca_in_maintenance, ""),
    (Reason.DNS_UNAVAILABLE, dns_api_in_maintenance, ""),
    (Reason.DRAINING, broker_that_stops, ""),
    (Reason.ISSUER_REJECTED, ca_that_refuses, ""),
    (Reason.DNS_REJECTED, dns_token_that_was_revoked, ""),
    (Reason.ORDER_NOT_FOUND, unknown_order, ""),
    (Reason.ORDER_NOT_FOUND, order_of_another, ""),
    (Reason.CERTIFICATE_NOT_FOUND, unknown_certificate, ""),
    (Reason.CERTIFICATE_NOT_FOUND, certificate_of_another, ""),
    (Reason.HOST_NOT_FOUND, unknown_host, ""),
    (Reason.STREAM_DISPLACED, second_stream_of_an_identity, ""),
    (Reason.STREAM_TIMED_OUT, host_that_falls_silent, ""),
    (Reason.ROLE_REQUIRED, viewer_asks_for_renewals, ""),
    (Reason.BOOTSTRAP_NOT_CONFIGURED, token_of_a_broker_that_makes_none, ""),
    (Reason.INTERNAL, certificate_missing_from_the_database, ""),
]
"""Reason, what brings it about, and that cause's name where the function's own doesn't say it."""

WITHOUT_CAUSE = {
    Reason.POLICY_UNAVAILABLE: "a broker doesn't start without a policy, and keeps the last good one",
}
"""Reasons of the wire that nothing in this version leads to; test_broker_edge.py sends each of them over a connection."""


@pytest.mark.parametrize(
    ("reason", "cause"),
    [pytest.param(reason, cause, id=f"{reason}-{name or cause.__name__}") for reason, cause, name in CAUSES],
)
async def test_reason(scene: Scene, reason: Reason, cause: Callable[[Scene], Awaitable[Refused]]) -> None:
    """Each cause leads to its reason, with the code and the details that the reason has."""
    answer = await cause(scene)
    assert answer.reason is reason
    assert answer.request_id


def test_every_reason_has_a_cause() -> None:
    """No reason is without a test of how it comes about, unless nothing can bring it about."""
    assert {reason for reason, _, _ in CAUSES} | set(WITHOUT_CAUSE) == set(Reason)
    assert not {reason for reason, _, _ in CAUSES} & set(WITHOUT_CAUSE)


async def test_a_revoked_dns_token_degrades_the_health(scene: Scene) -> None:
    """Row 13: beside failing fast, health has a name that an alarm can watch; the services themselves go on serving."""
    await dns_token_that_was_revoked(scene)
    serving = health_pb2.HealthCheckResponse.SERVING
    async with scene.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        issuing = health_pb2.HealthCheckRequest(service="certplane.issuance")
        async for answer in stub.Watch(issuing, timeout=HANG):
            if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                break
        service = health_pb2.HealthCheckRequest(service="certplane.v1.CertificateService")
        assert (await stub.Check(service, timeout=HANG)).status == serving


async def test_unexpected_fault_is_in_the_log(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """What the caller isn't told of an unexpected fault, the log has under the id that the caller was told."""
    with caplog.at_level(logging.ERROR):
        await certificate_missing_from_the_database(scene)
    (record,) = [record for record in of_certplane(caplog) if record.exc_info]
    assert "its certificate is not in the store" in str(record.exc_info[1])  # type: ignore[index]  # it has one


async def test_name_that_a_real_ca_blocks(scene: Scene, dns_server: DnsServer, tmp_path: Path) -> None:
    """Pebble's refusal of a name ends the order with its problem document, and the caller learns when to come back."""
    options = PebbleOptions(blocked_domains=["certplane.test"])
    part = need_part("pebble")
    async with Pebble(tmp_path / "pebble", dns_server.endpoint.host_port, options, part=part) as pebble:
        acme = scene.files.settings["issuer"]["acme"]
        acme |= {"directory_url": pebble.directory_url, "ca_bundle": str(pebble.https_roots_file)}
        await scene.start()
        answer, _ = await scene.failed()
        await scene.stop()
    assert answer.reason is Reason.ISSUER_REJECTED
    (said, *_) = answer.refusal.problems
    assert said.type == "urn:ietf:params:acme:error:rejectedIdentifier"
    assert "certplane.test" in said.detail


def test_document_says_what_the_broker_does() -> None:
    """docs/errors.md has every reason once, in the order of the code, with its gRPC code."""
    text = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    documented = [(cells[0].strip().strip("`"), cells[1].strip()) for cells in rows]
    assert documented == [(reason.value, CODES[reason].code.name) for reason in Reason]
    assert all(len(cells) == 4 and cells[2].strip() for cells in rows)
