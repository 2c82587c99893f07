"""ACME servers that nobody here wrote, beside Pebble: the same issuer and the same DNS, no line of them knows which."""

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
from certplane.broker.issuers.acme_account import AccountKeyFile
from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.acme_keeping import KeptInFile
from certplane.broker.issuers.dns.rfc2136 import Rfc2136Settings
from certplane.broker.issuers.dns.rfc2136.provider import Rfc2136Provider
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.broker.model import IssuerOrderStatus, Profile, RevocationReason
from certplane.config.values import HostPort
from certplane.pki.chain import check_issued_chain
from certplane.pki.csr import build_csr, parse_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.runtime.clock import SystemClock
from certplane.runtime.pool import BlockingPool
from certplane.sandbox.acme2certifier import Acme2certifier
from certplane.sandbox.acme_endpoints import FINALIZE, NEW_ORDER, OTHER
from certplane.sandbox.dns_endpoint import DnsEndpoint
from certplane.sandbox.fault_proxy import FaultProxy
from certplane.sandbox.ports import DnsServer
from certplane.sandbox.step_ca import StepCa
from tests.fakes.secrets import FakeSecretSource
from tests.support.dns_solver import dns_solver
from tests.support.parts import need_part

pytestmark = pytest.mark.integration

SOON = timedelta(seconds=40)


@asynccontextmanager
async def adapters(
    folder: Path, directory_url: str, roots_file: Path | None, dns: DnsEndpoint
) -> AsyncIterator[tuple[AcmeIssuer, DnsSolver, FaultProxy]]:
    """The broker's two adapters, and the proxy through which the CA is watched."""
    address = HostPort(dns.addresses[0], dns.port)
    provider = Rfc2136Provider(
        Rfc2136Settings(address, dns.key.name, "tsig"), FakeSecretSource({"tsig": dns.key.secret}), random.Random()
    )
    with FaultProxy(folder / "proxy", directory_url, roots_file=roots_file) as proxy:
        key_file = AccountKeyFile(folder / "account.key")
        server = AcmeServer(proxy.url, "operator@certplane.test", ca_bundle=proxy.roots_file)
        files = BlockingPool("files", 1)
        ca = AcmeCa(server, SystemClock())
        issuer = AcmeIssuer("other", ca, key_file.load(), rng=random.Random(), keeper=KeptInFile(key_file, files))
        yield issuer, dns_solver(provider, [address]), proxy
        await ca.close()
        files.close()


async def issue(issuer: AcmeIssuer, solver: DnsSolver, *names: str) -> tuple[str, x509.Certificate]:
    """One certificate, step by step as execution does it; returns chain and leaf."""
    csr = parse_csr(build_csr(generate_private_key(KeyType.EC_P256), sans=names))
    profile = Profile("web", "mixed", csr.dns_names, "hash")
    order = await issuer.create_order(csr.der, profile, SOON)
    assert order.trouble is None
    records = await solver.present(await solver.plan(order.challenges, profile, SOON), SOON)
    try:
        await solver.wait_until_visible(records, SOON)
        ready = await issuer.answer_challenges(order, SOON)
    finally:
        assert list(await solver.remove(records, SOON)) == []
    assert ready.status is IssuerOrderStatus.READY
    done = await issuer.finalize(ready, csr.der, SOON)
    fullchain = await issuer.download(done, SOON)
    check_issued_chain(
        fullchain, public_key_sha256=csr.public_key_sha256, dns_names=csr.dns_names, now=datetime.now(UTC)
    )
    return fullchain, x509.load_pem_x509_certificates(fullchain.encode())[0]


async def test_step_ca(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """step-ca's ACME provisioner, which looks for the records in the DNS itself: apex and wildcard, and revocation."""
    dns = dns_server.endpoint
    async with (
        StepCa(tmp_path / "step-ca", resolver=dns.host_port, part=need_part("step-ca")) as ca,
        adapters(tmp_path, ca.acme_directory, ca.roots_file, dns) as (issuer, solver, proxy),
    ):
        chain, leaf = await issue(issuer, solver, own_name, f"*.{own_name}")
        leaf.verify_directly_issued_by(ca.intermediate.certificate)
        assert (len(proxy.served(NEW_ORDER)), len(proxy.served(FINALIZE)), proxy.count(OTHER)) == (1, 1, 0)
        await issuer.revoke(chain, RevocationReason.SUPERSEDED, SOON)
        await issuer.revoke(chain, RevocationReason.SUPERSEDED, SOON)
        assert leaf.public_bytes(Encoding.PEM).decode() in chain


async def test_acme2certifier(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """The server from PyPI, which validates through the same DNS: apex and wildcard, a second order, and revocation."""
    dns = dns_server.endpoint
    async with (
        Acme2certifier(tmp_path / "acme2certifier", dns, part=need_part("acme2certifier")) as ca,
        adapters(tmp_path, ca.directory_url, None, dns) as (issuer, solver, proxy),
    ):
        chain, leaf = await issue(issuer, solver, own_name, f"*.{own_name}")
        leaf.verify_directly_issued_by(ca.issuing.certificate)
        await issue(issuer, solver, f"www.{own_name}")
        assert (len(proxy.served(NEW_ORDER)), len(proxy.served(FINALIZE)), proxy.count(OTHER)) == (2, 2, 0)
        await issuer.revoke(chain, RevocationReason.SUPERSEDED, SOON)
