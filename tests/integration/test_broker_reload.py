"""A whole broker in this process, wired as the program wires it: what it reads again while it runs, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from certplane.broker.app import Broker, open_broker
from certplane.broker.control import ReloadRequest
from certplane.broker.model import DenyEntry
from certplane.broker.policy.document import PolicyDocument
from certplane.broker.prepared import prepare
from certplane.broker.settings import load_settings
from certplane.errors import ConfigurationError, OperationError, Reason
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import channel_credentials
from certplane.rpc.status import refusal_from_error
from certplane.runtime.clock import Clock
from certplane.v1 import (
    certificate_pb2,
    certificate_pb2_grpc,
    enrollment_pb2,
    enrollment_pb2_grpc,
)
from tests.support.broker_files import POLICY, BrokerFiles
from tests.support.bundles import DAY, named_root, pem
from tests.support.ca import Leaf, PrivateCa
from tests.support.edge import ShiftedClock
from tests.support.streams import HostStreamClient
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.integration


@pytest.fixture
def files(tmp_path: Path) -> BrokerFiles:
    return BrokerFiles(tmp_path)


@asynccontextmanager
async def running(files: BrokerFiles, clock: Clock | None = None) -> AsyncIterator[Broker]:
    """The broker of these files, looking at them every 50 ms."""
    async with open_broker(prepare(load_settings(files.config)), clock=clock) as broker:
        broker.reloader._interval = timedelta(milliseconds=50)
        broker.reloader._settle = timedelta(milliseconds=20)
        broker.reloader.request()  # ends the first, long wait
        await until(lambda: reload_count(broker, "policy", "loaded") == 1)
        yield broker


def reload_count(broker: Broker, what: str, result: str) -> float:
    labels = {"what": what, "result": result}
    return broker.meter.registry.get_sample_value("certplane_reloads_total", labels) or 0


@asynccontextmanager
async def connected(broker: Broker, files: BrokerFiles, leaf: Leaf | None = None) -> AsyncIterator[grpc.aio.Channel]:
    credentials = channel_credentials(files.ca.root_pem, (leaf or files.identity()).pair)
    async with open_channel(f"https://localhost:{broker.port}", credentials) as channel:
        yield channel


async def get_identity(channel: grpc.aio.Channel) -> enrollment_pb2.GetIdentityResponse:
    stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
    return await stub.GetIdentity(enrollment_pb2.GetIdentityRequest(), timeout=HANG)


async def refused(call: Awaitable[Any]) -> Reason:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    refusal = refusal_from_error(caught.value)
    assert refusal is not None, caught.value
    return refusal.reason


async def events(broker: Broker) -> list[dict[str, Any]]:
    return [dict(record) for record in await broker.stores.audit.tail(100)]


def presented_serial(broker: Broker, files: BrokerFiles) -> Callable[[], str]:
    """What a new connection is shown; blocks."""
    cert, key = files.identity().write(files.directory, "probe")

    def probe() -> str:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=files.ca.root_pem.decode())
        context.load_cert_chain(cert, key)
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", broker.port), timeout=HANG) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as connection,
        ):
            return str(connection.getpeercert()["serialNumber"]).lower().lstrip("0")  # type: ignore[index]

    return probe


async def test_start_is_recorded(files: BrokerFiles) -> None:
    """A start leaves who started with what in the audit log before anybody is served, a stop leaves its event."""
    async with running(files) as broker:
        first, second = (await events(broker))[:2]
        async with connected(broker, files) as channel:
            response = await get_identity(channel)
    assert (first["event_type"], second["event_type"]) == ("broker_started", "policy_loaded")
    assert files.pair.serial_number in first["reason"]
    assert first["policy_hash"] == response.policy_hash
    async with running(files) as broker:
        assert "broker_stopped" in [event["event_type"] for event in await events(broker)]


async def test_renewed_server_certificate_is_taken_by_itself(files: BrokerFiles) -> None:
    """A new pair on disk is what new connections see soon, without a signal; open ones live on."""
    async with running(files) as broker, connected(broker, files) as channel:
        await get_identity(channel)
        renewed = files.ca.issue_server(["localhost"])
        files.write_pair(renewed)
        await until(lambda: reload_count(broker, "trust", "loaded") == 2)
        probe = presented_serial(broker, files)
        assert await asyncio.get_running_loop().run_in_executor(None, probe) == renewed.serial_number
        await get_identity(channel)
        recorded = [event for event in await events(broker) if event["event_type"] == "trust_reloaded"]
    assert renewed.serial_number in recorded[-1]["reason"]


async def test_agent_ca_is_added_and_taken_away(files: BrokerFiles) -> None:
    """A second CA in the bundle lets its hosts in; a removed one's are refused on their open connections."""
    successor = PrivateCa("successor")
    async with running(files) as broker, connected(broker, files) as channel:
        await get_identity(channel)
        files.write_bundle(files.ca, successor)
        await until(lambda: reload_count(broker, "trust", "loaded") == 2)
        async with connected(broker, files, successor.issue([files.host])) as other:
            await get_identity(other)
            await get_identity(channel)
            files.write_bundle(successor)
            await until(lambda: reload_count(broker, "trust", "loaded") == 3)
            await get_identity(other)
        assert await refused(get_identity(channel)) is Reason.IDENTITY_UNKNOWN


async def test_ca_that_is_added_has_who_waits_ask_again(files: BrokerFiles) -> None:
    """By the file alone, without a reload: what hosts were refused for want of it may be let in now. One less does not."""
    async with running(files) as broker, connected(broker, files) as channel:
        stream = HostStreamClient(channel)
        first = (await stream.hello()).retry_epoch
        successor = PrivateCa("successor")
        files.write_bundle(files.ca, successor)
        told = await stream.directive()
        assert told.retry_epoch not in {"", first}
        files.write_bundle(files.ca)
        await until(lambda: reload_count(broker, "trust", "loaded") == 3)
        again = HostStreamClient(channel)
        assert (await again.hello()).retry_epoch == told.retry_epoch


async def test_bundle_that_shuts_connected_hosts_out_is_asked_about(files: BrokerFiles) -> None:
    """It is refused with their number, the CA and the remedy, the pair renewed beside it is taken; then it is confirmed."""
    successor = PrivateCa("successor")
    files.write_bundle(files.ca, successor)
    async with running(files) as broker, connected(broker, files) as channel:
        await HostStreamClient(channel).hello()
        await until(lambda: len(broker.hub.registry) == 1)
        files.write_bundle(successor)
        renewed = files.ca.issue_server(["localhost", "127.0.0.1"])
        files.write_pair(renewed)
        await until(lambda: broker.reloader.refused)
        (line,) = broker.reloader.refused
        assert "would shut out 1 of 1 connected host: it lacks CN=internal" in line
        assert "`certplane-broker reload --confirm`" in line
        await until(lambda: broker.trust.current.server.serial_number == renewed.serial_number)
        refusal = await broker.reloader.request()
        assert (refusal.ok, refusal.unconfirmed) == (False, True)
        await get_identity(channel)
        taken = await broker.reloader.request(ReloadRequest("alice", confirmed=True))
        assert taken.ok
        assert (
            "1 host with an identity of it is refused, 1 of them connected now: web1.certplane.test" in taken.lines[1]
        )
        assert not broker.reloader.refused
        assert await refused(get_identity(channel)) is Reason.IDENTITY_UNKNOWN
        recorded = [event for event in await events(broker) if event["event_type"].startswith("trust_")]
    assert "would shut out 1 of 1 connected host" in recorded[-2]["reason"]
    assert "(1 CA), by alice, confirmed; CA removed: CN=internal" in recorded[-1]["reason"]


def renewed_root(ca: PrivateCa, *, begins: timedelta, ends: timedelta) -> bytes:
    """Another certificate of the root's name and key, from and until spans around now."""
    return pem(named_root(ca.root.subject, ca.root_key, begins=begins, ends=ends))


async def test_ended_root_before_its_successor(files: BrokerFiles) -> None:
    """A bundle that grew by appending lets agents in, though the root at its head has ended."""
    ended = renewed_root(files.ca, begins=-300 * DAY, ends=-DAY)
    (files.directory / "agent-ca.pem").write_bytes(ended + renewed_root(files.ca, begins=-DAY, ends=300 * DAY))
    async with running(files) as broker, connected(broker, files) as channel:
        await get_identity(channel)
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
        told = await stub.GetTrustBundle(enrollment_pb2.GetTrustBundleRequest(), timeout=HANG)
        assert ended.decode() not in told.agent_ca_bundle_pem


async def test_root_that_ends_while_the_broker_runs(files: BrokerFiles, caplog: pytest.LogCaptureFixture) -> None:
    """It was announced, is dropped when it ends, and its hosts go on by its successor, which stands behind it."""
    caplog.set_level(logging.INFO)
    ends, clock = datetime.now(UTC) + timedelta(minutes=30), ShiftedClock()
    ending = renewed_root(files.ca, begins=-DAY, ends=ends - datetime.now(UTC))
    other = PrivateCa("other")
    (files.directory / "agent-ca.pem").write_bytes(ending + other.root_pem)
    async with running(files, clock) as broker:
        assert f"ends at {ends:%Y-%m-%dT%H:%M:%SZ}; add its successor" in caplog.text
        clock.shift = timedelta(minutes=30)
        await until(lambda: "is passed over; remove it" in caplog.text)
        assert ending.decode() not in broker.trust.agent_ca_bundle_pem
        assert "trust_reloaded" in [event["event_type"] for event in await events(broker)]
        both = ending + renewed_root(files.ca, begins=-DAY, ends=300 * DAY) + other.root_pem
        (files.directory / "agent-ca.pem").write_bytes(both)
        await until(lambda: reload_count(broker, "trust", "loaded") == 2)
        async with connected(broker, files) as channel:
            await get_identity(channel)


async def test_bundle_of_which_everything_has_ended(files: BrokerFiles, caplog: pytest.LogCaptureFixture) -> None:
    """It isn't taken over a good one; a broker that starts with it says that nobody can connect, and runs."""
    ended = renewed_root(files.ca, begins=-300 * DAY, ends=-DAY)
    async with running(files) as broker, connected(broker, files) as channel:
        (files.directory / "agent-ca.pem").write_bytes(ended)
        await until(lambda: reload_count(broker, "trust", "rejected") == 1)
        assert "has no certificate that is still valid" in caplog.text
        await get_identity(channel)
    caplog.clear()
    async with running(files):
        assert "no agent can connect" in caplog.text


async def test_ended_intermediate_is_not_presented(files: BrokerFiles) -> None:
    """A server chain that still has the intermediate before the present one is presented without it."""
    chain = files.pair.chain_pem + renewed_root(files.ca, begins=-300 * DAY, ends=-DAY)
    (files.directory / "server.crt").write_bytes(chain)
    async with running(files) as broker, connected(broker, files) as channel:
        await get_identity(channel)
        assert broker.trust.server_chain_pem == files.pair.chain_pem.decode()


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        pytest.param(lambda files: (files.directory / "server.key").write_bytes(files.ca.issue(["x"]).key_pem), "is not the key of", id="key of another certificate"),
        pytest.param(lambda files: (files.directory / "server.crt").write_text("junk"), "is no certificate chain", id="junk for a certificate"),
        pytest.param(lambda files: (files.directory / "server.key").write_text("junk"), "can't be used", id="junk for a key"),
        pytest.param(lambda files: (files.directory / "agent-ca.pem").write_text(""), "holds no", id="empty bundle"),
        pytest.param(lambda files: (files.directory / "agent-ca.pem").write_bytes(files.pair.chain_pem), "is no CA's", id="leaf for a CA"),
        pytest.param(lambda files: files.write_pair(files.ca.issue_server(["localhost"], not_after=datetime.now(UTC) - timedelta(minutes=1))), "expired at", id="expired certificate"),
    ],
)  # fmt: skip
async def test_trust_that_does_not_load(
    files: BrokerFiles, spoil: Callable[[BrokerFiles], Any], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A pair or bundle that isn't good is refused once, logged and audited; the last good one stays in force."""
    before = files.pair.serial_number
    async with running(files) as broker, connected(broker, files) as channel:
        spoil(files)
        await until(lambda: reload_count(broker, "trust", "rejected") == 1)
        await asyncio.sleep(0.3)
        assert reload_count(broker, "trust", "rejected") == 1
        await get_identity(channel)
        async with connected(broker, files) as another:
            await get_identity(another)
        probe = presented_serial(broker, files)
        assert await asyncio.get_running_loop().run_in_executor(None, probe) == before
        (rejected,) = [event for event in await events(broker) if event["event_type"] == "trust_rejected"]
        files.write_pair(files.ca.issue_server(["localhost"]))
        files.write_bundle(files.ca)
        await until(lambda: reload_count(broker, "trust", "loaded") == 2)
    assert text in rejected["reason"]
    assert rejected["severity"] == "error"
    assert any(text in record.getMessage() and record.levelno == logging.ERROR for record in caplog.records)
    assert "PRIVATE KEY" not in caplog.text


async def test_half_written_pair_is_not_reported(files: BrokerFiles) -> None:
    """A certificate and key that are replaced one after the other are taken when both are there, without an alarm."""
    async with running(files) as broker:
        broker.reloader._settle = timedelta(milliseconds=400)
        renewed = files.ca.issue_server(["localhost"])
        (files.directory / "server.crt").write_bytes(renewed.chain_pem)
        await asyncio.sleep(0.2)
        (files.directory / "server.key").write_bytes(renewed.key_pem)
        await until(lambda: reload_count(broker, "trust", "loaded") == 2)
        assert reload_count(broker, "trust", "rejected") == 0
        assert broker.trust.current.server.serial_number == renewed.serial_number


async def test_key_that_others_can_read_is_refused_on_request(files: BrokerFiles) -> None:
    """A reload by signal tells what is wrong with a file's mode, and what was loaded stays."""
    async with running(files) as broker:
        (files.directory / "server.key").chmod(0o644)
        broker.reloader.request()
        await until(lambda: reload_count(broker, "trust", "rejected") == 1)
        (event,) = [event for event in await events(broker) if event["event_type"] == "trust_rejected"]
    assert "chmod 600" in event["reason"]


async def test_renewed_pair_that_can_not_be_read_is_told(files: BrokerFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal that leaves the key closed to the broker must not stay unsaid until the certificate in force ends."""
    monkeypatch.setattr("certplane.broker.reload._PATIENCE", timedelta(milliseconds=300))
    async with running(files) as broker:
        (files.directory / "server.key").chmod(0o644)
        await until(lambda: reload_count(broker, "trust", "rejected") == 1)
        assert "chmod 600" in broker.reloader.refused[0]
        await asyncio.sleep(0.5)
        assert reload_count(broker, "trust", "rejected") == 1, "once"
        (files.directory / "server.key").chmod(0o600)
        await until(lambda: not broker.reloader.refused)
        assert [event["event_type"] for event in await events(broker)].count("trust_rejected") == 1


async def test_refused_reload_of_what_can_not_be_read_ends_by_itself(files: BrokerFiles) -> None:
    """The status says what is refused now: not what was closed at a reload and is open again, unchanged."""
    async with running(files) as broker:
        (files.directory / "server.key").chmod(0o644)
        broker.reloader.request()
        await until(lambda: broker.reloader.refused)
        (files.directory / "server.key").chmod(0o600)
        await until(lambda: not broker.reloader.refused)


async def test_watched_policy_that_can_not_be_read_is_told(files: BrokerFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that went away stays in force, and not without a word."""
    monkeypatch.setattr("certplane.broker.reload._PATIENCE", timedelta(milliseconds=300))
    files.settings["policy"]["watch"] = True
    files.write()
    async with running(files) as broker:
        text = files.policy.read_text()
        files.policy.unlink()
        await until(lambda: reload_count(broker, "policy", "rejected") == 1)
        assert "does not exist" in broker.reloader.refused[0]
        files.policy.write_text(text)
        await until(lambda: not broker.reloader.refused)
        assert reload_count(broker, "policy", "rejected") == 1


@pytest.mark.parametrize("watch", [False, True])
async def test_policy_is_read_again(files: BrokerFiles, watch: bool) -> None:
    """A changed policy is in force after a request, and by itself with `policy.watch` only."""
    files.settings["policy"]["watch"] = watch
    files.write()
    async with running(files) as broker, connected(broker, files) as channel:
        await get_identity(channel)
        text = files.policy.read_text()
        files.policy.write_text(text.replace("web1.certplane.test", "web9.certplane.test"))
        if not watch:
            await asyncio.sleep(0.3)
            await get_identity(channel)
            broker.reloader.request()
        await until(lambda: reload_count(broker, "policy", "loaded") == 2)
        assert await refused(get_identity(channel)) is Reason.IDENTITY_UNKNOWN
        files.policy.write_text(text.replace("type: multi_san", "type: what"))
        if not watch:
            broker.reloader.request()
        await until(lambda: reload_count(broker, "policy", "rejected") == 1)
        assert await refused(get_identity(channel)) is Reason.IDENTITY_UNKNOWN
        kinds = [event["event_type"] for event in await events(broker)]
    assert kinds.count("policy_loaded") == 3
    assert kinds.count("policy_rejected") == 1


async def test_only_the_policy_in_force_stays_in_memory(files: BrokerFiles) -> None:
    """It may take 100 MB: neither hosts that don't call again, nor an order that still waits, keep an old one alive."""

    def in_memory() -> int:
        gc.collect()
        return sum(isinstance(each, PolicyDocument) for each in gc.get_objects())

    files.policy.write_text(
        POLICY.replace("operators:", "  web2: {identity: web2.certplane.test, profiles: [web]}\noperators:")
    )
    before = in_memory()  # of other tests in this process
    async with running(files) as broker, connected(broker, files) as channel:
        async with connected(broker, files, files.ca.issue(["web2.certplane.test"])) as quiet:
            await get_identity(quiet)
        for count in range(2, 5):
            csr = build_csr(generate_private_key(KeyType.EC_P256), sans=["a.certplane.test", "b.certplane.test"])
            request = certificate_pb2.IssueCertificateRequest(profile="web", csr_pem=csr)
            request.wait_duration.seconds = 0  # the CA is away: the order waits
            with contextlib.suppress(grpc.aio.AioRpcError):  # the third is above a limit
                await certificate_pb2_grpc.CertificateServiceStub(channel).IssueCertificate(request, timeout=HANG)
            files.policy.write_text(f"{files.policy.read_text()}# {count}\n")
            broker.reloader.request()
            await until(lambda count=count: reload_count(broker, "policy", "loaded") == count)  # type: ignore[misc]
            await get_identity(channel)
        await until(lambda: in_memory() == before + 1)


async def test_denials_are_in_the_audit_log_once(files: BrokerFiles) -> None:
    """A denied caller that asks again and again is one event, and one that counts the rest."""
    async with running(files) as broker, connected(broker, files, files.ca.issue(["stranger.example"])) as channel:
        for _ in range(5):
            assert await refused(get_identity(channel)) is Reason.IDENTITY_UNKNOWN
    async with running(files) as broker:
        denials = [
            event for event in await events(broker) if event["event_type"] in ("rpc_denied", "denials_coalesced")
        ]
    assert [event["event_type"] for event in denials] == ["rpc_denied", "denials_coalesced"]
    assert denials[0]["identity"] == "stranger.example"
    assert denials[1]["count"] == 4


async def test_own_certificate_s_end_is_announced(files: BrokerFiles, caplog: pytest.LogCaptureFixture) -> None:
    """A start with a certificate that ends soon warns, with its end as a metric; renewing it is noticed."""
    now = datetime.now(UTC)
    ending = files.ca.issue_server(
        ["localhost"], not_before=now - timedelta(hours=20), not_after=now + timedelta(hours=2)
    )
    files.write_pair(ending)
    async with running(files) as broker:
        labels = {"certificate": "server"}
        value = broker.meter.registry.get_sample_value("certplane_certificate_not_after_timestamp_seconds", labels)
        assert value == ending.certificate.not_valid_after_utc.timestamp()
        warnings = [record for record in caplog.records if "own certificate" in record.getMessage()]
        assert [record.levelname for record in warnings] == ["WARNING"]
        renewed = files.ca.issue_server(["localhost"])
        files.write_pair(renewed)
        await until(lambda: reload_count(broker, "trust", "loaded") == 2)
        value = broker.meter.registry.get_sample_value("certplane_certificate_not_after_timestamp_seconds", labels)
        assert value == renewed.certificate.not_valid_after_utc.timestamp()
    assert len([record for record in caplog.records if "own certificate" in record.getMessage()]) == 1


async def test_second_broker_on_the_store(files: BrokerFiles) -> None:
    """A second broker on the same database doesn't start, and disturbs nobody."""
    async with running(files) as broker, connected(broker, files) as channel:
        with pytest.raises(OperationError, match="another broker"):
            async with open_broker(prepare(load_settings(files.config))):
                raise AssertionError("it runs")
        await get_identity(channel)


async def test_taken_port(files: BrokerFiles, tmp_path: Path) -> None:
    """A port that is taken ends the start with one line, and the store is free again."""
    async with running(files) as broker:
        (tmp_path / "other").mkdir()
        other = BrokerFiles(tmp_path / "other")
        other.settings["server"]["address"] = f"127.0.0.1:{broker.port}"
        other.write()
        with pytest.raises(OperationError, match="can't listen on"):
            async with open_broker(prepare(load_settings(other.config))):
                raise AssertionError("it runs")
    other.settings["server"]["address"] = "127.0.0.1:0"
    other.write()
    async with running(other):
        pass


def test_all_problems_at_once(files: BrokerFiles) -> None:
    """What is wrong with the files that the configuration names is told together, each with its key's line."""
    (files.directory / "server.key").chmod(0o640)
    (files.directory / "agent-ca.pem").unlink()
    files.policy.write_text("version: 2\n")
    with pytest.raises(ConfigurationError) as caught:
        prepare(load_settings(files.config))
    found = {(problem.file, problem.key) for problem in caught.value.problems}
    assert (str(files.config), "server.tls.key") in found
    assert (str(files.config), "server.mtls.agent_ca_bundle") in found
    assert (str(files.policy), "version") in found
    assert all(problem.line for problem in caught.value.problems if problem.key.startswith("server."))


async def test_metrics_listener(files: BrokerFiles) -> None:
    """With `metrics.address` the figures are served over HTTP; without it nothing listens."""
    files.settings["metrics"] = {"address": "127.0.0.1:0"}
    files.write()
    async with running(files) as broker, connected(broker, files) as channel:
        await get_identity(channel)
        assert broker.metrics_listener is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.metrics_listener.port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
    assert 'method="/certplane.v1.EnrollmentService/GetIdentity"' in text
    assert "certplane_orders_open" in text


async def test_order_that_waits_for_its_ca_is_parked(files: BrokerFiles) -> None:
    """A stop doesn't wait for a CA that is away: the order is parked, and goes on after the next start."""
    key = generate_private_key(KeyType.EC_P256)
    csr = build_csr(key, sans=["a.certplane.test", "b.certplane.test"])
    request = certificate_pb2.IssueCertificateRequest(profile="web", csr_pem=csr)
    request.wait_duration.seconds = 0
    loop = asyncio.get_running_loop()
    async with running(files) as broker:
        async with connected(broker, files) as channel:
            response = await certificate_pb2_grpc.CertificateServiceStub(channel).IssueCertificate(
                request, timeout=HANG
            )
        assert response.order.state == certificate_pb2.Order.STATE_PENDING
        started = loop.time()
    assert loop.time() - started < 10
    async with running(files) as broker, connected(broker, files) as channel:
        stub = certificate_pb2_grpc.CertificateServiceStub(channel)
        found = await stub.GetOrder(certificate_pb2.GetOrderRequest(order_id=response.order.order_id), timeout=HANG)
        again = await stub.IssueCertificate(request, timeout=HANG)
        kinds = [event["event_type"] for event in await events(broker)]
    assert found.order.order_id == again.order.order_id == response.order.order_id
    assert kinds.count("certificate_authorized") == 2


async def test_who_is_allowed_again_is_asked_for_nothing_twice(files: BrokerFiles) -> None:
    """What was refused while it was denied may be asked for at once: hosts are told, without a reload."""
    async with running(files) as broker:
        epoch = broker.authority._ports.epoch
        before = epoch.current
        entry = DenyEntry(name="web1.certplane.test", reason="lost")
        await broker.stores.deny_list.deny(entry, [])
        assert epoch.current == before
        await broker.stores.deny_list.allow(entry, [])
        assert epoch.current != before
