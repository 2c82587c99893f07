"""kill -9 of the broker at every step of an order, on a real Pebble and a real DNS server.

Whatever the step, the next start ends the order, and Pebble has seen one finalisation and made one certificate for the
key. The caller that lost its connection asks again and gets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration

from certplane.broker.issuance.execution import FAILPOINTS
from certplane.pki.chain import leaf_facts
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key, public_key_sha256
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import KeyPair, channel_credentials
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from certplane.v1 import certificate_pb2 as pb
from certplane.v1 import certificate_pb2_grpc
from tests.support.parts import need_part

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

HOST = "web1.certplane.test"
PROFILES = {failpoint: f"step{number}" for number, failpoint in enumerate(FAILPOINTS)}


def names(profile: str) -> tuple[str, str]:
    """Names of its own for each step, a wildcard and its apex."""
    return (f"*.{profile}.certplane.test", f"{profile}.certplane.test")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    need_part("pebble")
    policy = {
        "version": 1,
        "profiles": {name: {"type": "mixed", "dns_names": list(names(name))} for name in PROFILES.values()},
        "hosts": {"web1": {"identity": HOST, "profiles": list(PROFILES.values())}},
    }
    options = DeploymentOptions(policy, dns_provider="rfc2136")
    async with Deployment(tmp_path_factory.mktemp("deployment"), options) as running:
        enrolled = await running.add_host(HOST).run("enroll")
        assert enrolled.status == 0, enrolled.stderr
        yield running


async def issue(deployment: Deployment, profile: str, csr_pem: str) -> pb.IssueCertificateResponse:
    """Ask the broker as the host, and wait for the order."""
    host: Host = deployment.hosts[HOST]
    certificate, key = host.identity
    credentials = channel_credentials(
        (deployment.broker_folder / "root.crt").read_bytes(), KeyPair(key.read_bytes(), certificate.read_bytes())
    )
    async with open_channel(f"https://localhost:{deployment.broker_port}", credentials) as channel:
        stub = certificate_pb2_grpc.CertificateServiceStub(channel)
        request = pb.IssueCertificateRequest(profile=profile, csr_pem=csr_pem, wait_duration=Duration(seconds=30))
        response: pb.IssueCertificateResponse = await stub.IssueCertificate(request, timeout=40)
        return response


async def ask_and_lose(
    deployment: Deployment, profile: str, csr_pem: str
) -> tuple[grpc.aio.AioRpcError | None, pb.IssueCertificateResponse | None]:
    """The call's error, or its answer."""
    try:
        return None, await issue(deployment, profile, csr_pem)
    except grpc.aio.AioRpcError as error:
        return error, None


@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_killed_at_every_step_of_an_order(deployment: Deployment, failpoint: str) -> None:
    """The next start ends the order: one finalisation, one certificate, no TXT record left."""
    profile = PROFILES[failpoint]
    key = generate_private_key(KeyType.EC_P256)
    csr_pem = build_csr(key, sans=names(profile))
    before = deployment.pebble.log

    await deployment.start_broker({"CERTPLANE_FAILPOINTS": f"{failpoint}=kill"})
    lost, first = await ask_and_lose(deployment, profile, csr_pem)
    if lost is None:
        # From the storing on, the caller may have its answer before the broker dies.
        assert first is not None
        assert first.order.state == pb.Order.STATE_ISSUED
        assert FAILPOINTS.index(failpoint) >= FAILPOINTS.index("order.store.after")
    else:
        assert lost.code() is grpc.StatusCode.UNAVAILABLE, lost.details()
    async with asyncio.timeout(30):
        while deployment.broker_process.running:  # noqa: ASYNC110 - another process, which sets no event
            await asyncio.sleep(0.05)

    await deployment.start_broker()
    second = await issue(deployment, profile, csr_pem)

    assert second.order.state == pb.Order.STATE_ISSUED, second.order.error.message
    assert second.certificate.public_key_sha256 == public_key_sha256(key.public_key())
    assert leaf_facts(second.certificate.certificate_pem).dns_names == names(profile)
    assert len(await deployment.pebble.certificates_of_key(key.public_key())) == 1
    after = deployment.pebble.log
    assert len(after.finalizations) - len(before.finalizations) == 1
    assert len(after.issued) - len(before.issued) == 1
    unknown = failpoint in ("order.create.after", "order.journal_url.before")
    assert len(after.orders) - len(before.orders) == (2 if unknown else 1)
    async with asyncio.timeout(15):
        while await deployment.dns.endpoint.txt(f"_acme-challenge.{profile}.certplane.test"):  # noqa: ASYNC110 - DNS
            await asyncio.sleep(0.1)
