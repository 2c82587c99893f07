"""`challenge: none`: a CA that has approved an account's names beforehand, over real HTTPS with real signatures."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.broker.issuers.acme import AcmeIssuer
from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.acme_registration import ExternalAccount
from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.broker.model import IssuerOrder, IssuerOrderStatus, Profile, RevocationReason
from certplane.errors import Reason, RefusalError
from certplane.pki.chain import check_issued_chain
from certplane.pki.csr import CertificateRequest, build_csr, parse_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.runtime.clock import SystemClock
from certplane.sandbox.approving_acme import ApprovingAcme
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.v1 import certificate_pb2
from tests.support.deployed_broker import DeployedBroker
from tests.support.deployed_broker import issue as ask

pytestmark = pytest.mark.integration

SOON, BRIEFLY = timedelta(seconds=30), timedelta(seconds=2)
NAMES = ("*.shop.certplane.test", "shop.certplane.test")
MAC_KEY = "bWFjLWtleS1vZi10aGUtY3VzdG9tZXItMTIzNDU2Nzg"


@asynccontextmanager
async def opened(folder: Path, ca: ApprovingAcme, mac_key: str = MAC_KEY) -> AsyncIterator[AcmeIssuer]:
    async def secret() -> str:
        return mac_key

    server = AcmeServer(ca.directory_url, ca_bundle=ca.https_roots_file, challenge=ChallengeKind.NONE)
    key = AccountKey.load_or_create(folder / "account.key")
    external = ExternalAccount("customer-7", secret)
    issuer = AcmeIssuer("approving", AcmeCa(server, SystemClock()), key, rng=random.Random(1), external=external)
    try:
        yield issuer
    finally:
        await issuer.ca.close()


def wanted(*names: str) -> tuple[CertificateRequest, Profile]:
    csr = parse_csr(build_csr(generate_private_key(KeyType.EC_P256), sans=names or NAMES))
    return csr, Profile("web", "mixed", csr.dns_names, "hash")


async def issue(issuer: AcmeIssuer, timeout: timedelta = SOON) -> x509.Certificate:
    """A certificate, by the steps of an order."""
    csr, profile = wanted()
    order = await issuer.create_order(csr.der, profile, timeout)
    assert order.challenges == ()
    if order.status is IssuerOrderStatus.PENDING:
        order = await issuer.answer_challenges(order, timeout)
    order = await issuer.finalize(order, csr.der, timeout)
    fullchain = await issuer.download(order, timeout)
    check_issued_chain(
        fullchain, public_key_sha256=csr.public_key_sha256, dns_names=csr.dns_names, now=datetime.now(UTC)
    )
    return x509.load_pem_x509_certificate(fullchain.encode())


async def test_an_order_that_comes_ready(tmp_path: Path) -> None:
    """Nothing is proved: the account is bound to the customer, the order has no authorizations, and it is revocable."""
    with ApprovingAcme(tmp_path / "ca", NAMES, external_accounts={"customer-7": MAC_KEY}) as ca:
        async with opened(tmp_path, ca) as issuer:
            certificate = await issue(issuer)
            await issuer.revoke(certificate.public_bytes(Encoding.PEM).decode(), RevocationReason.SUPERSEDED, SOON)
        assert ca.bound_accounts == ["customer-7"]
        assert [order.status for order in ca.orders] == ["valid"]
        assert ca.revoked == [certificate.serial_number]


async def test_a_ca_that_takes_its_time(tmp_path: Path) -> None:
    """It looks up the names first, and then issues slowly; each step waits as the CA asks."""
    options = {"looks_until_ready": 3, "looks_until_valid": 3, "retry_after": 0}
    with ApprovingAcme(tmp_path / "ca", NAMES, external_accounts={"customer-7": MAC_KEY}, **options) as ca:
        async with opened(tmp_path, ca) as issuer:
            await issue(issuer)
        assert len(ca.orders) == 1


async def test_a_name_that_nobody_has_approved(tmp_path: Path) -> None:
    """The order waits, and says for which name and what a person may do."""
    with ApprovingAcme(tmp_path / "ca", NAMES[1:], external_accounts={"customer-7": MAC_KEY}) as ca:
        async with opened(tmp_path, ca) as issuer:
            csr, profile = wanted()
            order = await issuer.create_order(csr.der, profile, SOON)
            waiting = await issuer.answer_challenges(order, BRIEFLY)
            assert waiting.status is IssuerOrderStatus.PENDING
            assert waiting.trouble is not None
            assert waiting.trouble.reason is Reason.ISSUER_UNAVAILABLE
            assert "the CA has not approved shop.certplane.test yet" in waiting.trouble.message
            assert "approve the names for the account at the CA" in waiting.trouble.message
            ca.approved.update(NAMES)
            ready = await issuer.answer_challenges(await issuer.get_order(order.url, SOON), SOON)
            assert (ready.status, ready.trouble) == (IssuerOrderStatus.READY, None)


@pytest.mark.parametrize("mac_key", ["YW5vdGhlci1tYWMta2V5LW9mLXNvbWVib2R5LWVsc2U", "***"], ids=["wrong", "no-key"])
async def test_a_binding_that_the_ca_refuses(tmp_path: Path, mac_key: str) -> None:
    """There is no account then, which a person has to see to; no order is made."""
    with ApprovingAcme(tmp_path / "ca", NAMES, external_accounts={"customer-7": MAC_KEY}) as ca:
        async with opened(tmp_path, ca, mac_key) as issuer:
            csr, profile = wanted()
            with pytest.raises(RefusalError) as caught:
                await issuer.create_order(csr.der, profile, SOON)
        assert caught.value.refusal.reason is Reason.ISSUER_REJECTED
        assert "binding" in caught.value.refusal.message
        assert not ca.orders


async def test_an_order_is_taken_up_again(tmp_path: Path) -> None:
    """After a restart the order is known by its URL alone."""
    with ApprovingAcme(tmp_path / "ca", NAMES, external_accounts={"customer-7": MAC_KEY}) as ca:
        csr, profile = wanted()
        async with opened(tmp_path, ca) as issuer:
            url = (await issuer.create_order(csr.der, profile, SOON)).url
        async with opened(tmp_path, ca) as issuer:
            seen: IssuerOrder = await issuer.get_order(url, SOON)
            done = await issuer.finalize(seen, csr.der, SOON)
            assert "BEGIN CERTIFICATE" in await issuer.download(done, SOON)
        assert len(ca.orders) == 1


async def test_a_whole_broker_without_a_dns_provider(tmp_path: Path) -> None:
    """From broker.yml to the certificate, by the issuing process: no credentials of DNS, nothing asked of its API."""
    policy = {
        "version": 1,
        "profiles": {"shop": {"type": "mixed", "dns_names": list(NAMES)}},
        "hosts": {"web1": {"identity": "web1.certplane.test", "profiles": ["shop"]}},
    }
    ca = ApprovingAcme(
        tmp_path / "ca", NAMES, external_accounts={"customer-7": MAC_KEY}, looks_until_ready=2, looks_until_valid=2
    )
    acme = {
        "directory_url": ca.directory_url,
        "ca_bundle": str(ca.https_roots_file),
        "challenge": "none",
        "eab": {"kid": "customer-7", "hmac_secret": "acme/eab"},
        "dns_provider": None,
        "rfc2136": None,
        "cloudflare": None,
    }
    options = DeploymentOptions(policy, broker={"issuer": {"acme": acme}}, secrets={"ACME_EAB": MAC_KEY})
    with ca:
        async with Deployment(tmp_path / "deployment", options) as deployment:
            await deployment.start_broker()
            broker = DeployedBroker(deployment)
            async with broker.channel("web1.certplane.test") as channel:
                csr_pem = build_csr(generate_private_key(KeyType.EC_P256), sans=NAMES)
                issued = await ask(channel, profile="shop", csr_pem=csr_pem)
            assert issued.order.state == certificate_pb2.Order.STATE_ISSUED
            assert ca.bound_accounts == ["customer-7"]
            assert not deployment.cloudflare.calls
            assert (await deployment.run_broker("check")).status == 0
