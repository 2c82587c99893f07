"""A deployed broker as tests ask it: channels of hosts that have their identity, and what reached CA, DNS and audit log.

async with DeployedBroker.running(folder, policy) as broker:
    async with broker.channel("web1.certplane.test") as channel:
        await issue(channel, profile="web", csr_pem=pem)
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from certplane.broker.audit_commands import last_events
from certplane.broker.event_filter import EventFilter
from certplane.broker.events import AuditEventType
from certplane.broker.settings import load_settings
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import KeyPair, channel_credentials
from certplane.sandbox.certificates import Credential
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.v1 import certificate_pb2 as pb
from certplane.v1 import certificate_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc
from tests.support.waiting import HANG, until

_EVENTS = 10_000
_BUSY = "SELECT count(*) FROM orders WHERE end_time IS NULL OR txt_records IS NOT NULL"


@dataclass(frozen=True)
class Asked:
    """What the world outside has seen of the broker: two equal values, and nothing was sent in between."""

    orders: int
    finalizations: int
    dns_calls: int


@dataclass
class DeployedBroker:
    """A running deployment; identities are made when they are first used, and kept."""

    deployment: Deployment
    identities: dict[str, Credential] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        folder: Path,
        policy: Mapping[str, Any],
        *,
        more_roots: bytes = b"",
        rate_limits: Mapping[str, int] | None = None,
    ) -> AsyncIterator[DeployedBroker]:
        """Everything started.

        Args:
            folder: For all files.
            policy: policy.yml.
            more_roots: PEM that is trusted for agents beside the identity CA's own.
            rate_limits: Of broker.yml; default: the broker's own.
        """
        broker = {"rate_limits": rate_limits} if rate_limits is not None else {}
        async with Deployment(folder, DeploymentOptions(policy, broker=broker)) as deployment:
            if more_roots:
                bundle = deployment.broker_folder / "agent-roots.crt"
                bundle.write_bytes(deployment.identity_ca.roots_file.read_bytes() + more_roots)
                deployment.write_broker_config({"server": {"mtls": {"agent_ca_bundle": str(bundle)}}})
            await deployment.start_broker()
            yield cls(deployment)

    @property
    def asked(self) -> Asked:
        """What CA and DNS have been asked so far."""
        log = self.deployment.pebble.log
        # The look at the token's zones, at the start and every ten minutes, is nobody's order.
        calls = [call for call in self.deployment.cloudflare.calls if call.path != "/zones"]
        return Asked(len(log.orders), log.finalize_requests, len(calls))

    async def settle(self) -> None:
        """Wait until every order has ended and taken its TXT records away: from then on `asked` stands still."""
        path = self.deployment.broker_folder / "broker.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            await until(lambda: database.execute(_BUSY).fetchone() == (0,), what="the end of all orders")

    async def identity(self, name: str) -> Credential:
        """The identity of `name`, made by the identity CA as a host's is."""
        if name not in self.identities:
            self.identities[name] = await self.deployment.identity_ca.issue(name)
        return self.identities[name]

    @asynccontextmanager
    async def channel(self, identity: str | Credential, port: int = 0) -> AsyncIterator[grpc.aio.Channel]:
        """A channel of this identity, as an agent opens it; `port` is of another broker than the deployment's own."""
        credential = await self.identity(identity) if isinstance(identity, str) else identity
        pair = KeyPair(credential.key_pem, credential.chain_pem)
        roots = (self.deployment.broker_folder / "root.crt").read_bytes()
        url = f"https://localhost:{port or self.deployment.broker_port}"
        async with open_channel(url, channel_credentials(roots, pair)) as channel:
            yield channel

    async def events(self, **facts: str) -> list[dict[str, Any]]:
        """The audit events that have these facts, oldest first, read as `audit tail` does.

        Without that of an identity's first use, unless it is asked for: each host's history begins with one.
        """
        rows, _ = await last_events(load_settings(self.deployment.broker_config), EventFilter(), _EVENTS)
        if "event_type" not in facts:
            rows = [row for row in rows if row["event_type"] != AuditEventType.IDENTITY_ACTIVATED]
        return [row for row in rows if all(row.get(key) == value for key, value in facts.items())]


def certificates(channel: grpc.aio.Channel) -> Any:
    """The stub of CertificateService."""
    return certificate_pb2_grpc.CertificateServiceStub(channel)


async def get_identity(channel: grpc.aio.Channel) -> enrollment_pb2.GetIdentityResponse:
    """`GetIdentity`: the cheapest question, by which a caller sees whether it is let in."""
    stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
    return await stub.GetIdentity(enrollment_pb2.GetIdentityRequest(), timeout=HANG)


async def issue(channel: grpc.aio.Channel, *, wait: float = 20, **fields: Any) -> pb.IssueCertificateResponse:
    """`IssueCertificate`, or `RenewCertificate` when `fields` name a certificate to replace."""
    fields["wait_duration"] = Duration(nanos=int(wait % 1 * 1e9), seconds=int(wait))
    if "certificate_id" in fields:
        response: Any = await certificates(channel).RenewCertificate(pb.RenewCertificateRequest(**fields), timeout=HANG)
    else:
        response = await certificates(channel).IssueCertificate(pb.IssueCertificateRequest(**fields), timeout=HANG)
    return response  # type: ignore[no-any-return]  # both responses have the same fields
