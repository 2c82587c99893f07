"""Faults around the running programs: disk, database, hooks, trust, a broker or CA that is away.

Rows of the fault table that are tested elsewhere: 20 (a power cut) by the kills of test_agent_kill.py and
test_broker_kill.py and by tests/integration/test_install_kill.py; 28 (a second broker) in test_broker_program.py;
expired identities, with and without the CA's leave to renew them, in tests/integration/test_enrollment.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from certplane.errors import Reason
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import KeyPair, channel_credentials
from certplane.sandbox.certificates import BACKDATE, CertificateAuthority, Credential
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from certplane.sandbox.identity_ca import SandboxIdentityCa
from certplane.sandbox.identity_pki import IdentityRules
from certplane.v1 import certificate_pb2 as pb
from certplane.v1 import certificate_pb2_grpc as pb_grpc
from certplane.v1 import enrollment_pb2, enrollment_pb2_grpc
from tests.support.calls import refused
from tests.support.killing import (
    BrokerBeside,
    assert_issued_once,
    begin,
    channel_of,
    ended,
    events,
    leaf_of,
    let_waits_pass,
    order_of,
    version_leaves,
)
from tests.support.limits import UNLIMITED
from tests.support.parts import need_part
from tests.support.status_json import status_by_name
from tests.support.waiting import HANG, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

HOST = "web1.certplane.test"
WEB = {"name": "web", "profile": "web", "dns_names": ["www.certplane.test", "api.certplane.test"]}
MAIL = {"name": "mail", "profile": "mail", "dns_names": ["mail.certplane.test"]}
PROFILES = {
    each["profile"]: {"type": "multi_san", "dns_names": each["dns_names"], "acme": {"challenge": "dns-01"}}
    for each in (WEB, MAIL)
}
POLICY = {"version": 1, "profiles": PROFILES, "hosts": {"web1": {"identity": HOST, "profiles": ["web", "mail"]}}}
WITHOUT_MAIL = {**POLICY, "hosts": {"web1": {"identity": HOST, "profiles": ["web"]}}}
GENEROUS = {
    "rate_limits": UNLIMITED,
    "server": {"calls_per_identity_per_second": 1000, "calls_burst": 1000},
}
SMALL_DISK = 4 << 20
"""Room for the database, for the megabyte of log that is copied into it at once, and for what is made after the ballast."""
UNWRITABLE = (Reason.AUDIT_UNAVAILABLE, Reason.STORE_UNAVAILABLE)
"""An order and its events are one transaction: whichever of them the disk refused first gives the reason."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """Identity CA, DNS and Pebble, for brokers of the tests' own."""
    need_part("pebble")
    async with Deployment(tmp_path_factory.mktemp("servers"), DeploymentOptions(POLICY)) as running:
        yield running


@asynccontextmanager
async def deployed(
    servers: Deployment, folder: Path, *, policy: Mapping[str, Any] = POLICY, broker: Mapping[str, Any] | None = None
) -> AsyncIterator[BrokerBeside]:
    """A broker of the test's own, started."""
    options = DeploymentOptions(policy, broker=GENEROUS)
    async with BrokerBeside(folder / "deployment", servers, options) as deployment:
        deployment.write_broker_config(broker)
        await deployment.start_broker()
        yield deployment


async def enrolled(deployment: Deployment, *certificates: Mapping[str, Any], **agent: Any) -> Host:
    host = deployment.add_host(HOST, certificates, agent=agent)
    await succeed(host, "enroll")
    return host


async def succeed(host: Host, *command: str) -> None:
    finished = await host.run(*command)
    assert finished.status == 0, f"{command}: {finished.stderr}"


async def status_of(host: Host, certificate: str = "web") -> dict[str, Any]:
    """A certificate in `status --json`; "identity" for the host's own."""
    finished = await host.run("status", "--json")
    assert finished.status in {0, 1}, finished.stderr  # 1: it is hurt, or will be
    return status_by_name(finished.stdout)[certificate]


async def get_identity(channel: grpc.aio.Channel) -> enrollment_pb2.GetIdentityResponse:
    stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
    return await stub.GetIdentity(enrollment_pb2.GetIdentityRequest(), timeout=HANG)


async def report(channel: grpc.aio.Channel, version: str = "1") -> None:
    """A call that writes, and changes nothing that a test looks at."""
    request = enrollment_pb2.ReportEnrollmentRequest(agent_version=version, identity_serial_number="ab")
    await enrollment_pb2_grpc.EnrollmentServiceStub(channel).ReportEnrollment(request, timeout=HANG)


def new_csr() -> str:
    """For a new key."""
    return build_csr(generate_private_key(KeyType.EC_P256), sans=MAIL["dns_names"])


async def issue(channel: grpc.aio.Channel, csr_pem: str, request_id: str = "") -> pb.IssueCertificateResponse:
    """Ask for a certificate, and wait for the order; the same CSR again is answered from the cache."""
    request = pb.IssueCertificateRequest(profile="mail", csr_pem=csr_pem, request_id=request_id)
    request.wait_duration.seconds = 20
    return await pb_grpc.CertificateServiceStub(channel).IssueCertificate(request, timeout=HANG)


async def certificates(channel: grpc.aio.Channel) -> list[str]:
    """The ids of the caller's certificates."""
    response = await pb_grpc.CertificateServiceStub(channel).ListCertificates(
        pb.ListCertificatesRequest(), timeout=HANG
    )
    return [each.certificate_id for each in response.certificates]


# The disk and the database


@dataclass(frozen=True)
class Disk:
    """Where the database is, and how its room ends: a file system without a free page, or a limit on files' sizes."""

    folder: Path
    limited: bool
    readers: list[sqlite3.Connection] = field(default_factory=list)

    def fill(self, broker: int) -> None:
        """Let no file of the broker's grow any more, nor be written again from its beginning."""
        # The write-ahead log starts anew, in room that it has, as soon as nobody reads what is in it.
        reader = sqlite3.connect(self.folder / "broker.db", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM orders").fetchone()
        self.readers.append(reader)
        if self.limited:
            largest = max(path.stat().st_size for path in self.folder.iterdir())
            resource.prlimit(broker, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        else:
            largest = sys.maxsize
            with (self.folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
        self._use_up_the_log(largest)

    def _use_up_the_log(self, most: int) -> None:
        """Page by page up to this size: where room for one page is left, some events have room and others don't."""
        writer = sqlite3.connect(self.folder / "broker.db", isolation_level=None, timeout=HANG)
        log = self.folder / "broker.db-wal"
        with contextlib.closing(writer), contextlib.suppress(sqlite3.OperationalError):
            writer.execute("PRAGMA wal_autocheckpoint = 0")
            for number in itertools.count(1):
                if log.stat().st_size > most:
                    break
                writer.execute(f"PRAGMA user_version = {number}")

    def make_room(self, broker: int) -> None:
        """Undo `fill`."""
        while self.readers:
            self.readers.pop().close()
        if self.limited:
            resource.prlimit(broker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        else:
            (self.folder / "ballast").unlink()


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A place for the database: `tmpfs`, which only root can mount, or `limit`."""
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    if request.param == "limit":
        yield Disk(folder, limited=True)
        return
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK},mode=0700", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield Disk(folder, limited=False)
    subprocess.run(["umount", "--lazy", folder], check=True)


async def use_up(disk: Disk, broker: int, channel: grpc.aio.Channel) -> None:
    """Leave no room, and let the broker fill what its files have already."""
    disk.fill(broker)
    for number in range(500):
        try:
            await report(channel, f"1.{number}")  # equal ones would be counted, which takes no room
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - the loop goes on until there is one
            return
    raise AssertionError("the disk doesn't get full")


@pytest.mark.parametrize("disk", ["tmpfs", "limit"], indirect=True)
async def test_row_17_full_disk_fail_closed(servers: Deployment, disk: Disk, tmp_path: Path) -> None:
    """Without room for its audit log the broker issues nothing and asks nobody, but answers reads; room is all it needs."""
    async with deployed(servers, tmp_path, broker={"store": {"path": str(disk.folder / "broker.db")}}) as deployment:
        host = await enrolled(deployment, WEB)
        async with channel_of(deployment, host) as channel:
            csr = new_csr()
            issued = await issue(channel, csr)
            broker = deployment.broker_process.pid
            await use_up(disk, broker, channel)
            orders = servers.pebble.log.orders
            assert (await refused(issue(channel, new_csr()))).reason in UNWRITABLE
            # A certificate that is there already isn't handed out unlogged either.
            assert (await refused(issue(channel, csr))).reason is Reason.AUDIT_UNAVAILABLE
            finished = await host.run("run", "--once")
            assert finished.status == 1
            assert any(reason in finished.stderr for reason in UNWRITABLE)
            assert servers.pebble.log.orders == orders
            assert await certificates(channel) == [issued.certificate.certificate_id]
            assert (await get_identity(channel)).identity.name == HOST

            disk.make_room(broker)
            again = await issue(channel, csr)
            # Not the whole message: the CA's advice may have moved `renew_time` meanwhile.
            assert again.certificate.certificate_id == issued.certificate.certificate_id
            assert again.certificate.certificate_pem == issued.certificate.certificate_pem
            assert (await issue(channel, new_csr())).order.state == pb.Order.STATE_ISSUED
        let_waits_pass(host, "web")
        await succeed(host, "run", "--once")
        await assert_issued_once(deployment, leaf_of(host, "web"))


@pytest.mark.parametrize("disk", ["tmpfs", "limit"], indirect=True)
async def test_row_17_full_disk_fail_open(servers: Deployment, disk: Disk, tmp_path: Path) -> None:
    """What is only an event goes to log and spill file and back at the next start; what must be durable is refused."""
    spill = tmp_path / "spilled"
    settings = {
        "store": {"path": str(disk.folder / "broker.db")},
        "audit": {"failure_mode": "fail_open", "spill_path": str(spill)},
    }
    async with deployed(servers, tmp_path, broker=settings) as deployment:
        host = await enrolled(deployment, WEB)
        async with channel_of(deployment, host) as channel:
            csr = new_csr()
            issued = await issue(channel, csr)
            broker = deployment.broker_process.pid
            await use_up(disk, broker, channel)
            orders = servers.pebble.log.orders
            assert (await refused(issue(channel, new_csr()))).reason is Reason.STORE_UNAVAILABLE
            assert servers.pebble.log.orders == orders
            again = await issue(channel, csr, request_id="a" * 32)
            assert again.certificate.certificate_pem == issued.certificate.certificate_pem
        records = [json.loads(line) for line in spill.read_text().splitlines()]
        handed_out = [record for record in records if record.get("request_id") == "a" * 32]
        assert [record["event_type"] for record in handed_out][-1] == "certificate_cache_hit"
        assert "an audit event is not in the database" in deployment.broker_process.log_text()

        disk.make_room(broker)
        await deployment.start_broker()
        assert await events(deployment, request_id="a" * 32) == handed_out
        assert not spill.exists()
        assert [path.name.partition(".")[2][:8] for path in neighbours(spill)] == ["imported"]
        await succeed(host, "run", "--once")


def neighbours(path: Path) -> list[Path]:
    """What lies beside a file, under longer names, its lock apart."""
    return [found for found in path.parent.glob(f"{path.name}.*") if found.suffix != ".lock"]


async def test_row_18_locked_database(servers: Deployment, tmp_path: Path) -> None:
    """A lock of another program's is waited for, but not for ever; reads need no lock, and the end of it is enough."""
    async with deployed(servers, tmp_path) as deployment:
        host = await enrolled(deployment, WEB)
        async with channel_of(deployment, host) as channel:
            await report(channel)
            with locked(deployment):
                waiting = asyncio.ensure_future(issue(channel, new_csr()))
                await asyncio.sleep(1)
                assert not waiting.done()
            assert (await waiting).order.state == pb.Order.STATE_ISSUED

            orders = servers.pebble.log.orders
            with locked(deployment):
                started = time.monotonic()
                waiting = asyncio.ensure_future(issue(channel, new_csr()))
                await asyncio.sleep(0.5)
                assert len(await certificates(channel)) == 1
                assert not waiting.done()
                assert (await refused(waiting)).reason in UNWRITABLE
                assert time.monotonic() - started > 4
            assert servers.pebble.log.orders == orders
            assert (await issue(channel, new_csr())).order.state == pb.Order.STATE_ISSUED


@contextmanager
def locked(deployment: Deployment) -> Iterator[None]:
    """Another program in the middle of a write."""
    connection = sqlite3.connect(deployment.broker_folder / "broker.db", isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()


def overwrite_the_middle(database: Path) -> None:
    noise = random.Random(1)
    with database.open("r+b") as file:
        for page in range(2, database.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(noise.randbytes(4096))


def overwrite_the_beginning(database: Path) -> None:
    with database.open("r+b") as file:
        file.write(b"this was a database once")


def cut_off(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 2)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "pages in the middle": overwrite_the_middle,
    "the beginning": overwrite_the_beginning,
    "the second half is missing": cut_off,
}


async def test_row_19_corrupt_database(servers: Deployment, tmp_path: Path) -> None:
    """A broker on a damaged database doesn't start: one line with the way back, and the file is left as it is."""
    async with deployed(servers, tmp_path) as deployment:
        host = await enrolled(deployment, WEB)
        await succeed(host, "run", "--once")
        await deployment.stop_broker()
        database = deployment.broker_folder / "broker.db"
        good = database.read_bytes()
        assert not database.with_name("broker.db-wal").exists()
        for damage, spoil in DAMAGES.items():
            database.write_bytes(good)
            spoil(database)
            spoilt = database.read_bytes()
            finished = await deployment.run_broker("serve")
            assert finished.status == 1, damage
            (line,) = finished.stderr.splitlines()
            assert "the database is corrupt" in line, damage
            assert "restore" in line, damage
            assert database.read_bytes() == spoilt, damage
        database.write_bytes(good)
        await deployment.start_broker()
        await succeed(host, "renew", "web")


# Hooks

HOOKS = {
    "fails": ("echo 'syntax error in line 7'; exit 1", "syntax error in line 7"),
    "forks and hangs": ("sleep 3000 & sleep 3000 & echo $! >> {folder}/children; wait", "stopped at its time limit"),
}


@pytest.mark.parametrize("hook", HOOKS)
async def test_row_21_row_22_reload_that_fails_or_hangs(servers: Deployment, tmp_path: Path, hook: str) -> None:
    """The old version is served again and the failure is shown; later the reload is tried again, not the issuance."""
    command, said = HOOKS[hook]
    async with deployed(servers, tmp_path) as deployment:
        host = await enrolled(deployment)
        command = command.format(folder=host.folder)
        # The first version loads; those after it only once somebody has mended the service.
        command = f"[ $CERTPLANE_VERSION = 1 ] || [ -e {host.folder}/mended ] || {{ {command}; }}"
        host.write_config([{**WEB, "reload_command": command, "reload_timeout": "3s"}])
        await succeed(host, "run", "--once")
        old = leaf_of(host, "web")

        finished = await host.run("renew", "web")  # within its time, which is far from the hook's 3000 s
        assert finished.status == 1
        assert said in finished.stderr
        assert leaf_of(host, "web") == old
        status = await status_of(host)
        assert (status["state"], status["version"], status["newest_version"]) == ("degraded", 1, 2)
        assert said in status["last_error"]
        assert status["activation_failures"] == 1
        assert status["update_time"] < status["next_attempt_time"]
        if hook == "forks and hangs":
            (child,) = (host.folder / "children").read_text().split()
            with pytest.raises(ProcessLookupError):
                os.kill(int(child), 0)

        orders = len(servers.pebble.log.orders)
        waits = await host.run("run", "--once")
        assert waits.status == 1  # it is not time yet, and that isn't well
        assert leaf_of(host, "web") == old
        let_waits_pass(host, "web")
        assert (await host.run("run", "--once")).status == 1
        assert (await status_of(host))["activation_failures"] == 2

        (host.folder / "mended").touch()
        let_waits_pass(host, "web")
        await succeed(host, "run", "--once")
        assert len(servers.pebble.log.orders) == orders
        assert leaf_of(host, "web") == version_leaves(host, "web")[1] != old
        assert (await status_of(host))["state"] == "waiting"


async def test_one_failing_certificate_stops_no_other(servers: Deployment, tmp_path: Path) -> None:
    """A refused certificate, one whose folder is in the way and one whose reload fails leave the fourth alone.

    What policy then allows is had after a SIGHUP; a policy that doesn't load is refused, and the good one stays.
    """
    async with deployed(servers, tmp_path, policy=WITHOUT_MAIL) as deployment:
        host = await enrolled(deployment)
        blocked = host.folder / "blocked"
        blocked.write_text("no folder")
        host.write_config(
            [
                MAIL,
                {**WEB, "name": "unreloaded", "reload_command": "exit 3"},
                {**WEB, "name": "unwritten", "fullchain": str(blocked / "fullchain.pem")},
                WEB,
            ]
        )
        finished = await host.run("run", "--once")
        assert finished.status == 1
        await assert_issued_once(deployment, leaf_of(host, "web"))
        assert "PROFILE_NOT_ALLOWED" in (await status_of(host, "mail"))["last_error"]
        (refused,) = (line for line in finished.stderr.splitlines() if "mail: no certificate" in line)
        denied = await events(deployment, event_type="certificate_denied")
        assert refused.partition("request_id=")[2] in [event["request_id"] for event in denied]
        assert "status 3" in (await status_of(host, "unreloaded"))["last_error"]
        assert "blocked" in (await status_of(host, "unwritten"))["last_error"]
        assert (await status_of(host, "web"))["last_error"] == ""

        deployment.write_policy(POLICY)
        await reloaded(deployment, "policy_loaded", 2)
        await succeed(host, "renew", "mail")
        await assert_issued_once(deployment, leaf_of(host, "mail"))

        deployment.write_policy({**POLICY, "hosts": {"web1": {"identity": HOST, "profiles": ["nothing"]}}})
        await reloaded(deployment, "policy_rejected", 1)
        await succeed(host, "renew", "mail")


async def reloaded(deployment: Deployment, event_type: str, count: int) -> None:
    """SIGHUP the broker, and wait until so many events of that type are in its audit log."""
    os.kill(deployment.broker_process.pid, signal.SIGHUP)

    async def seen() -> bool:
        return len(await events(deployment, event_type=event_type)) == count

    await until(seen, what=event_type)


# Trust


async def test_row_27_rotation_while_agents_are_connected(servers: Deployment, tmp_path: Path) -> None:
    """A new server certificate (by SIGHUP) and a new agent CA (by content) reach new connections; no old one is lost."""
    bundle = tmp_path / "agent-roots.crt"
    bundle.write_bytes(servers.identity_ca.roots_file.read_bytes())
    settings = {"server": {"mtls": {"agent_ca_bundle": str(bundle)}}}
    async with deployed(servers, tmp_path, broker=settings) as deployment, AsyncExitStack() as stack:
        host = await enrolled(deployment, WEB)
        agent = await host.start()
        await until(lambda: host.output("web", "cert").exists(), what="the first certificate")
        old_root = deployment.broker_root.pem
        crowd = [await stack.enter_async_context(connection(deployment, host, old_root)) for _ in range(12)]
        calls = [stack.push_async_callback(stop, asyncio.ensure_future(busy)) for busy in map(calling, crowd)]
        assert len(calls) == 12
        for channel in crowd:
            await get_identity(channel)
        watches = [asyncio.ensure_future(c.wait_for_state_change(grpc.ChannelConnectivity.READY)) for c in crowd]

        # The server's: agents are given both roots first.
        new_root = CertificateAuthority.root("Successor of the broker's root")
        (deployment.broker_folder / "root.crt").write_bytes(old_root + new_root.pem)
        new_root.issue("certplane-broker", ["localhost"]).write(deployment.broker_folder, "server")
        await reloaded(deployment, "trust_reloaded", 1)
        async with connection(deployment, host, new_root.pem) as channel:
            await get_identity(channel)
        async with connection(deployment, host, old_root) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await get_identity(channel)

        # The agents' CA: both are trusted, then nobody is told.
        async with SandboxIdentityCa(tmp_path / "successor") as successor:
            newcomer = await successor.issue(HOST)
            async with connection(deployment, newcomer, new_root.pem) as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    await get_identity(channel)
            bundle.write_bytes(bundle.read_bytes() + successor.roots_file.read_bytes())
            await until(lambda: trusts(deployment, 2), what="the reload by content")
            async with connection(deployment, newcomer, new_root.pem) as channel:
                await get_identity(channel)

        for channel in crowd:
            await get_identity(channel)
        assert not any(watch.done() for watch in watches), "a connection was lost"
        assert agent.running
        await succeed(host, "renew", "web")
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        assert "Traceback" not in (deployment.broker_folder / "broker.log").read_text()


async def trusts(deployment: Deployment, reloads: int) -> bool:
    return len(await events(deployment, event_type="trust_reloaded")) == reloads


@asynccontextmanager
async def connection(
    deployment: Deployment, who: Host | Credential, roots_pem: bytes
) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own, as another host's would be."""
    if isinstance(who, Host):
        certificate, key = who.identity
        pair = KeyPair(private_key_pem=key.read_bytes(), chain_pem=certificate.read_bytes())
    else:
        pair = KeyPair(private_key_pem=who.key_pem, chain_pem=who.chain_pem)
    url = f"https://localhost:{deployment.broker_port}"
    async with open_channel(url, channel_credentials(roots_pem, pair)) as channel:
        yield channel


async def calling(channel: grpc.aio.Channel) -> None:
    """Call on and on; ends with the first call that fails."""
    while True:
        await get_identity(channel)
        await asyncio.sleep(0.1)


async def stop(task: asyncio.Future[None]) -> None:
    """End a task that must not have ended by itself."""
    assert not task.done() or task.cancelled(), task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_identity_is_renewed_while_the_agent_runs(servers: Deployment, tmp_path: Path) -> None:
    """The next channel uses the new identity, without a restart; the broker hears of it."""
    async with (
        SandboxIdentityCa(tmp_path / "identity-ca", IdentityRules(lifetime=BACKDATE)) as short_lived,
        BrokerBeside(tmp_path / "deployment", servers, DeploymentOptions(POLICY, broker=GENEROUS)) as deployment,
    ):
        deployment.identity_ca = short_lived
        deployment.write_broker_config({"server": {"mtls": {"agent_ca_bundle": str(short_lived.roots_file)}}})
        await deployment.start_broker()
        host = await enrolled(deployment, WEB)
        first = (await status_of(host, "identity"))["serial_number"]
        agent = await host.start()

        async def renewed() -> bool:
            status = await status_of(host, "identity")
            return status["version"] == 2 and status["state"] == "waiting" and host.output("web", "cert").exists()

        await until(renewed, poll=0.3, what="the renewal of the identity")
        second = (await status_of(host, "identity"))["serial_number"]
        assert second != first
        await succeed(host, "renew", "web")
        _, order = await order_of(deployment, leaf_of(host, "web"))
        assert int(order.identity_serial, 16) == int(second, 16)
        assert agent.running
        reports = await events(deployment, event_type="enrollment_reported")
        assert second in json.dumps(reports)
        activated = [event["reason"] for event in await events(deployment, event_type="identity_activated")]
        assert sum(second in reason for reason in activated) == 1
        assert not await events(deployment, event_type="identity_contested")
        assert not await events(deployment, reason_code="IDENTITY_RETIRED")


async def test_machine_restored_from_a_snapshot(servers: Deployment, tmp_path: Path) -> None:
    """Two states of one host, used in turn: both agents say what happened, and what they hold stays until it is settled."""
    async with deployed(servers, tmp_path) as deployment:
        host = await enrolled(deployment, WEB)
        snapshot, kept = tmp_path / "snapshot", tmp_path / "kept"
        shutil.copytree(host.state, snapshot, symlinks=True)
        await asyncio.sleep(1.1)  # two certificates of one second are equally old
        host.write_token()
        await succeed(host, "enroll", "--force")
        await succeed(host, "run", "--once")
        served = leaf_of(host, "web")

        host.state.rename(kept)
        snapshot.rename(host.state)
        restored = await host.run("check")
        assert restored.status == 1
        assert "IDENTITY_RETIRED" in restored.stdout + restored.stderr
        assert "restored from a copy" in restored.stdout + restored.stderr
        host.state.rename(snapshot)
        kept.rename(host.state)

        refused = await host.run("renew", "web")
        assert refused.status == 1
        assert "IDENTITY_CONTESTED" in refused.stderr
        assert "certplane-broker identity list" in refused.stderr
        status = await status_of(host)
        assert "IDENTITY_CONTESTED" in json.dumps(status)
        assert "two holders" in (await host.run("check")).stdout
        assert leaf_of(host, "web") == served

        settled = await deployment.run_broker("identity", "allow", "--name", HOST)
        assert settled.status == 0, settled.stderr

        async def let_in() -> bool:
            return (await host.run("renew", "web")).status == 0

        await until(let_in, poll=0.3, what="the broker's look at what the operator said")
        assert leaf_of(host, "web") != served


# A broker, or a CA, that is away


async def test_agent_outlives_a_broker_that_is_away(servers: Deployment, tmp_path: Path) -> None:
    """The certificate stays, the try is shown and made again by itself, and ends well once the broker is back."""
    async with deployed(servers, tmp_path) as deployment:
        host = await enrolled(deployment, WEB)
        await succeed(host, "run", "--once")
        old = leaf_of(host, "web")
        agent = await host.start()
        await until(lambda: "the agent runs" in agent.log_text(), what="the agent's start")
        deployment.broker_process.kill()
        finished = await host.run("renew", "web")
        assert finished.status == 1
        assert "can't be reached" in finished.stderr
        assert leaf_of(host, "web") == old
        status = await status_of(host)
        assert (status["state"], status["version"]) == ("failed", 1)
        assert status["failures"] >= 1  # a busy machine gives it time for another try
        assert status["next_attempt_time"] > status["update_time"]
        await deployment.start_broker()
        await until(lambda: len(version_leaves(host, "web")) == 2, what="the next try")
        await until(lambda: leaf_of(host, "web") != old, what="its installation")
        await assert_issued_once(deployment, leaf_of(host, "web"))
        assert agent.running
        assert "Traceback" not in agent.log_text()


@contextmanager
def stalled(servers: Deployment) -> Iterator[Callable[[], None]]:
    """The CA accepts connections and says nothing; call the value to let it go on."""
    assert servers.pebble._process is not None
    pid = servers.pebble._process.pid

    def go_on() -> None:
        os.kill(pid, signal.SIGCONT)

    os.kill(pid, signal.SIGSTOP)
    try:
        yield go_on
    finally:
        go_on()


async def asked(deployment: Deployment) -> bool:
    return bool(await events(deployment, event_type="certificate_authorized"))


async def test_stopping_broker_finishes_its_order(servers: Deployment, tmp_path: Path) -> None:
    """SIGTERM in the middle of an order that the CA is about to serve: the agent still gets its certificate from it."""
    async with deployed(servers, tmp_path) as deployment:
        host = await enrolled(deployment, WEB)
        with stalled(servers) as go_on:
            agent = await begin(host, "run", "--once")
            await until(lambda: asked(deployment), what="the order")
            broker = deployment.broker_process
            os.kill(broker.pid, signal.SIGTERM)
            await until(lambda: "stopping" in broker.log_text(), what="the stop")
            await asyncio.sleep(0.5)
            assert broker.running
            go_on()
        assert await ended(broker) == 0
        assert await ended(agent) == 0
        await assert_issued_once(deployment, leaf_of(host, "web"))


async def test_stopping_broker_parks_what_takes_too_long(servers: Deployment, tmp_path: Path) -> None:
    """An order that doesn't end within `drain_timeout` waits for the next start; the agent gets its certificate then."""
    async with deployed(servers, tmp_path, broker={"server": {"drain_timeout": "1s"}}) as deployment:
        host = await enrolled(deployment, WEB)
        with stalled(servers):
            agent = await begin(host, "run", "--once")
            await until(lambda: asked(deployment), what="the order")
            broker = deployment.broker_process
            started = time.monotonic()
            os.kill(broker.pid, signal.SIGTERM)
            assert await ended(broker) == 0
            assert time.monotonic() - started < 25  # 30 s are the default
        await deployment.start_broker()
        assert await ended(agent) == 0
        await assert_issued_once(deployment, leaf_of(host, "web"))
        told = await events(deployment, event_type="certificate_authorized", cache_result="miss")
        assert len(told) == 1
