"""A whole Certplane whose programs tests kill, and what must hold afterwards, read where users and CAs would read it.

Several brokers can stand beside each other on one set of servers, so that two stories run at the same time on two
cores: each has its own files, database and ACME account.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certplane.agent.install.material import Outputs
from certplane.broker.audit_commands import last_events
from certplane.broker.database import open_store
from certplane.broker.event_filter import EventFilter
from certplane.broker.model import CertificateRecord, Order, OrderState
from certplane.broker.settings import load_settings
from certplane.pki.keys import public_key_sha256
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import KeyPair, channel_credentials
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from certplane.sandbox.loopback import steady_port
from certplane.sandbox.process import ServerProcess
from tests.support.lineages import pair_problem
from tests.support.waiting import until

KILLED = -9
_EVENTS = 100_000


def settle_on_a_port(deployment: Deployment) -> None:
    """Give a broker, which must not have been started, a port that stays free while it is down."""
    deployment.broker_port = steady_port()
    deployment.write_broker_config()


class BrokerBeside(Deployment):
    """A further broker on another deployment's servers; the other one must outlive it."""

    def __init__(self, folder: Path, other: Deployment, options: DeploymentOptions) -> None:
        super().__init__(folder, options)
        self.identity_ca, self.dns, self.pebble, self.cloudflare = (
            other.identity_ca,
            other.dns,
            other.pebble,
            other.cloudflare,
        )

    async def __aenter__(self) -> Self:
        self._write_broker_files()
        settle_on_a_port(self)
        return self


def killing_at(failpoint: str, nth: int = 1) -> dict[str, str]:
    """The environment in which a program is killed at its nth pass of a failpoint."""
    return {"CERTPLANE_FAILPOINTS": f"{failpoint}=kill@{nth}"}


def stopping_at(failpoint: str, nth: int = 1) -> dict[str, str]:
    """The environment in which a program stands still at its nth pass of a failpoint."""
    return {"CERTPLANE_FAILPOINTS": f"{failpoint}=stop@{nth}"}


async def begin(host: Host, *arguments: str, environment: Mapping[str, str] | None = None) -> ServerProcess:
    """Start a command of the agent that a test will look after; returns at once."""
    process = ServerProcess(
        "certplane-agent", host.command(*arguments), host.folder / "agent.log", environment=environment or {}
    )
    await process.start(_at_once)
    return process


async def _at_once() -> bool:
    return True


async def stands_still(*pids: int) -> None:
    """Wait until programs have stopped at a failpoint, as `stopping_at` has them: they do nothing until SIGCONT."""
    for pid in pids:
        await until(lambda pid=pid: state_of(pid) == "T", what=f"the stop of process {pid}")


def state_of(pid: int) -> str:
    """The letter of proc(5) for what a process does: T for one that was stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def ended(process: ServerProcess) -> int:
    """How a program ended: its status, or minus the signal that killed it."""
    await until(lambda: not process.running, what=f"the end of {process.name}")
    assert process._child is not None
    return process._child.returncode


def outputs_of(host: Host, certificate: str) -> Outputs:
    """The configured paths of a certificate."""
    return Outputs(**{kind: host.output(certificate, kind) for kind in ("key", "cert", "chain", "fullchain")})


def assert_no_mixed_pair(host: Host, certificate: str, where: str) -> None:
    """What services would read hangs together; nothing at all does too."""
    problem = pair_problem(outputs_of(host, certificate))
    assert problem == "", f"{where}: {problem}"


def leaf_of(host: Host, certificate: str) -> x509.Certificate:
    """The certificate that services read, beside its key and chain."""
    assert_no_mixed_pair(host, certificate, "in the end")
    paths = outputs_of(host, certificate).paths().values()
    assert all(path.exists() for path in paths), "not every path has its file"
    leaf = x509.load_pem_x509_certificate(host.output(certificate, "cert").read_bytes())
    issuer = x509.load_pem_x509_certificate(host.output(certificate, "chain").read_bytes())
    leaf.verify_directly_issued_by(issuer)
    return leaf


def let_waits_pass(host: Host, certificate: str) -> None:
    """What the agent would wait for before its next try is over: half a minute to hours, which no test has."""
    path = host.state / "certificates" / certificate / "status.json"
    status = json.loads(path.read_text())
    for wait in ("next_attempt_time", "retry_time", "next_activation_time"):
        if status[wait] is not None:
            status[wait] = status["update_time"]
    path.write_text(json.dumps(status))


def version_leaves(host: Host, certificate: str) -> list[x509.Certificate]:
    """The leaves of all versions that were issued to this host, oldest first, each beside its own key."""
    versions = host.state / "certificates" / certificate / "versions"
    numbers = sorted(int(path.name) for path in versions.iterdir() if path.name.isdecimal() and path.name != "0")
    leaves = []
    for number in numbers:
        folder = versions / str(number)
        outputs = Outputs(
            key=folder / "privkey.pem",
            cert=folder / "cert.pem",
            chain=folder / "chain.pem",
            fullchain=folder / "fullchain.pem",
        )
        assert pair_problem(outputs) == "", f"version {number}"
        leaves.append(x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes()))
    return leaves


@asynccontextmanager
async def channel_of(deployment: Deployment, host: Host) -> AsyncIterator[grpc.aio.Channel]:
    """A channel of the host's own identity, as its agent opens it."""
    certificate, key = host.identity
    credentials = channel_credentials(
        (deployment.broker_folder / "root.crt").read_bytes(),
        KeyPair(private_key_pem=key.read_bytes(), chain_pem=certificate.read_bytes()),
    )
    async with open_channel(f"https://localhost:{deployment.broker_port}", credentials) as channel:
        yield channel


async def events(deployment: Deployment, **facts: str) -> list[dict[str, Any]]:
    """The audit events that have these facts, oldest first, read as `audit tail` does."""
    rows, _ = await last_events(load_settings(deployment.broker_config), EventFilter(), _EVENTS)
    return [dict(row) for row in rows if all(row.get(key) == value for key, value in facts.items())]


@asynccontextmanager
async def _store(deployment: Deployment) -> AsyncIterator[Any]:
    async with open_store(load_settings(deployment.broker_config)) as stores:
        yield stores


async def order_of(deployment: Deployment, leaf: x509.Certificate) -> tuple[CertificateRecord, Order]:
    """A certificate and its order, as the broker's database has them."""
    async with _store(deployment) as stores:
        records = await stores.certificates.newest_certificates(1000)
        (record,) = [each for each in records if int(each.serial_number, 16) == leaf.serial_number]
        order = await stores.orders.get_order(record.order_id)
        assert order is not None
        return record, order


async def assert_issued_once(deployment: Deployment, leaf: x509.Certificate) -> None:
    """Pebble made one certificate for the key by one finalisation; the broker says the same and has tidied up."""
    pebble = deployment.pebble
    assert await pebble.certificates_of_key(leaf.public_key()) == [leaf]
    (acme_order,) = [order for order, serial in pebble.log.issued if serial == leaf.serial_number]
    assert pebble.log.finalizations.count(acme_order) == 1

    _, order = await order_of(deployment, leaf)
    assert order.state is OrderState.ISSUED
    await assert_one_order(deployment, leaf, order.order_id)

    async def tidy() -> bool:
        _, order = await order_of(deployment, leaf)
        return not order.txt_records

    await until(tidy, poll=0.2, what="the removal of the order's TXT records")

    async def swept() -> bool:
        names = {name.removeprefix("*.") for name in order.dns_names}
        return not any([await deployment.dns.endpoint.txt(f"_acme-challenge.{name}") for name in names])

    # A renewal of the same names that has just ended has its own record there for some seconds: removals wait for company.
    await until(swept, poll=0.2, what="names without TXT records")


async def assert_one_order(deployment: Deployment, leaf: x509.Certificate, order_id: str) -> None:
    """For this key one order was authorised, and it was issued once, later; whoever asked again was a follower of it."""
    told = await events(deployment, csr_public_key_sha256=public_key_sha256(leaf.public_key()))
    kinds = [(event["event_type"], event.get("cache_result", "")) for event in told]
    assert kinds.count(("certificate_authorized", "miss")) == 1
    issued = [event for event in told if event["event_type"] == "certificate_issued"]
    assert [event["order_id"] for event in issued] == [order_id]
    assert kinds.index(("certificate_authorized", "miss")) < told.index(issued[0])
    assert "certificate_issue_failed" not in [kind for kind, _ in kinds]


def assert_key_stayed(deployment: Deployment, host: Host, certificate: str) -> None:
    """The private key is on its host, 0600 and nowhere else: not in the broker's files, and in nobody's log."""
    path = host.output(certificate, "key").resolve()
    assert path.stat().st_mode & 0o077 == 0
    pem = path.read_bytes()
    key = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    secret = key.private_numbers().private_value.to_bytes(32, "big")
    traces = [secret, secret.hex().encode(), base64.b64encode(secret)[:40], pem.splitlines()[1]]
    logs = [deployment.pebble._folder / "pebble.log", host.folder / "agent.log"]
    for file in [*deployment.broker_folder.iterdir(), *filter(Path.exists, logs)]:
        if file.is_file():
            data = file.read_bytes()
            assert not any(trace in data for trace in traces), f"the key is in {file}"
