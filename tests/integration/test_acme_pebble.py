"""`AcmeIssuer` and `DnsSolver` against a real Pebble in its various moods. Whatever happens, a CSR is taken once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import dns.rdatatype
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certplane.broker.issuers.acme import AcmeIssuer
from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.dns.cloudflare import CloudflareSettings
from certplane.broker.issuers.dns.cloudflare.provider import CloudflareProvider
from certplane.broker.issuers.dns.rfc2136 import Rfc2136Settings
from certplane.broker.issuers.dns.rfc2136.provider import Rfc2136Provider
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.broker.model import IssuerOrder, IssuerOrderStatus, Profile
from certplane.config.values import HostPort
from certplane.errors import Reason, Refusal, RefusalError
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.runtime.clock import SystemClock
from certplane.sandbox.cloudflare_api import CloudflareApi
from certplane.sandbox.dns_endpoint import DnsEndpoint
from certplane.sandbox.parts import PEBBLE_PROFILES
from certplane.sandbox.pebble import SHORT_PROFILE, Pebble, PebbleOptions
from certplane.sandbox.ports import DnsServer
from tests.fakes.secrets import FakeSecretSource
from tests.support.dns_solver import dns_solver
from tests.support.parts import need_part

pytestmark = pytest.mark.integration

SOON = timedelta(seconds=30)
BRIEFLY = timedelta(milliseconds=300)
CNAME = dns.rdatatype.CNAME


@dataclass
class Laboratory:
    """A Pebble, the DNS that it looks at, and our two adapters."""

    pebble: Pebble
    dns: DnsEndpoint
    issuer: AcmeIssuer
    solver: DnsSolver

    async def ready(self, csr_der: bytes, profile: Profile) -> IssuerOrder:
        order = await self.issuer.create_order(csr_der, profile, SOON)
        records = await self.solver.present(await self.solver.plan(order.challenges, profile, SOON), SOON)
        try:
            await self.solver.wait_until_visible(records, SOON)
            return await self.issuer.answer_challenges(order, SOON)
        finally:
            assert list(await self.solver.remove(records, SOON)) == []

    async def issue(self, *names: str, acme_profile: str = "") -> list[x509.Certificate]:
        csr_der, profile = asked(*names, acme_profile=acme_profile)
        order = await self.issuer.finalize(await self.ready(csr_der, profile), csr_der, SOON)
        chain = await self.issuer.download(order, SOON)
        assert self.pebble.log.finalizations.count(order.url.rsplit("/", 1)[1]) == 1
        return x509.load_pem_x509_certificates(chain.encode())


def asked(*names: str, acme_profile: str = "") -> tuple[bytes, Profile]:
    pem = build_csr(generate_private_key(KeyType.EC_P256), sans=names)
    csr_der = x509.load_pem_x509_csr(pem.encode()).public_bytes(Encoding.DER)
    return csr_der, Profile("web", "mixed", names, "hash", acme_profile=acme_profile)


@asynccontextmanager
async def laboratory(
    folder: Path, dns: DnsEndpoint, options: PebbleOptions, *, preferred_root: int | None = None
) -> AsyncIterator[Laboratory]:
    async with Pebble(folder / "pebble", dns.host_port, options, part=need_part("pebble")) as pebble:
        preferred = "" if preferred_root is None else common_name((await pebble.root(preferred_root)).subject)
        server = AcmeServer(pebble.directory_url, preferred_chain=preferred, ca_bundle=pebble.https_roots_file)
        key = AccountKey.load_or_create(folder / "account.key")
        issuer = AcmeIssuer("pebble", AcmeCa(server, SystemClock()), key, rng=random.Random())
        address = HostPort(dns.addresses[0], dns.port)
        provider = Rfc2136Provider(
            Rfc2136Settings(address, dns.key.name, "tsig"), FakeSecretSource({"tsig": dns.key.secret}), random.Random()
        )
        yield Laboratory(pebble, dns, issuer, dns_solver(provider, [address]))
        await issuer.ca.close()


def common_name(name: x509.Name) -> str:
    return str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


async def refusal_of(call: object) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await call  # type: ignore[misc] # any awaitable
    return caught.value.refusal


async def test_apex_and_wildcard_in_one_order(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """Two values at one name are validated, and nothing stays behind in the zone."""
    async with laboratory(tmp_path, dns_server.endpoint, PebbleOptions(strict=True)) as lab:
        leaf, *_ = await lab.issue(own_name, f"*.{own_name}")
        sans = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert set(sans.get_values_for_type(x509.DNSName)) == {own_name, f"*.{own_name}"}
        assert await dns_server.endpoint.txt(f"_acme-challenge.{own_name}") == frozenset()


async def test_below_the_cname_of_a_wildcard(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """A catch-all CNAME to a load balancer keeps no name below it, wildcard included, from its certificate."""
    dns = dns_server.endpoint
    await dns.add(f"*.{own_name}", "CNAME", "lb.example.test.")
    await dns.add("lb.example.test", "A", "127.0.0.1")
    async with laboratory(tmp_path, dns, PebbleOptions(strict=True)) as lab:
        for names in ([f"app.{own_name}"], [f"*.{own_name}"], [f"a.b.c.{own_name}", own_name]):
            leaf, *_ = await lab.issue(*names)
            sans = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert set(sans.get_values_for_type(x509.DNSName)) == set(names)
    assert {rrset.rdtype for rrset in (await dns.query(f"_acme-challenge.app.{own_name}", "TXT")).answer} == {CNAME}


async def test_name_server_that_is_dead(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """One server of the zone that gives no answer keeps no order from its end: the CA asks the others, too."""
    async with laboratory(tmp_path, dns_server.endpoint, PebbleOptions(strict=True)) as lab:
        address = HostPort(dns_server.endpoint.addresses[0], dns_server.endpoint.port)
        provider = lab.solver.routes.default.provider
        lab.solver = dns_solver(provider, [HostPort("127.88.0.2", address.port), address], patience=BRIEFLY)
        assert len(await lab.issue(own_name)) > 1


async def test_through_cloudflare(pebble: Pebble, cloudflare_api: CloudflareApi, tmp_path: Path, own_name: str) -> None:
    """The seed's way: records written with Cloudflare's SDK are what the CA sees, and are gone afterwards."""
    key = AccountKey.load_or_create(tmp_path / "account.key")
    server = AcmeServer(pebble.directory_url, ca_bundle=pebble.https_roots_file)
    issuer = AcmeIssuer("pebble", AcmeCa(server, SystemClock()), key, rng=random.Random())
    settings = CloudflareSettings(cloudflare_api.base_url, "cf")
    secrets = FakeSecretSource({"cf": cloudflare_api.token})
    provider = CloudflareProvider(
        settings, secrets, SystemClock(), random.Random(), ca_bundle=cloudflare_api.roots_file
    )
    dns = cloudflare_api._records._dns
    lab = Laboratory(pebble, dns, issuer, dns_solver(provider, [HostPort(dns.addresses[0], dns.port)]))
    await lab.issue(own_name, f"*.{own_name}")
    await lab.solver.close()
    await issuer.ca.close()
    assert cloudflare_api.records("certplane.test") == []
    assert cloudflare_api.count("POST", r"/zones/[0-9a-f]{32}/dns_records/batch") == 2  # written, and removed


async def test_bad_nonces(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """A CA that refuses every eighth nonce costs time, no order and no second finalisation."""
    # Five tries a call: at 12 % one of these hundred calls uses them all up once in four hundred runs of this test.
    async with laboratory(tmp_path, dns_server.endpoint, PebbleOptions(nonce_rejects=12)) as lab:
        await asyncio.gather(*(lab.issue(f"n{number}.{own_name}") for number in range(6)))
        log = lab.pebble.log
        assert (len(log.orders), len(log.finalizations), len(log.issued)) == (6, 6, 6)


async def test_reused_authorizations(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """An order whose names are authorized already is ready: there is nothing to write."""
    async with laboratory(tmp_path, dns_server.endpoint, PebbleOptions(authorization_reuse=100)) as lab:
        await lab.issue(own_name)
        csr_der, profile = asked(own_name)
        order = await lab.issuer.create_order(csr_der, profile, SOON)
        assert (order.status, order.challenges) == (IssuerOrderStatus.READY, ())
        await lab.issue(own_name)


@pytest.mark.parametrize("root", [0, 1, 2])
async def test_preferred_chain(tmp_path: Path, dns_server: DnsServer, own_name: str, root: int) -> None:
    """The chain leads to the root that is asked for by name, over more than one intermediate."""
    options = PebbleOptions(alternate_roots=2, chain_length=2)
    async with laboratory(tmp_path, dns_server.endpoint, options, preferred_root=root) as lab:
        chain = await lab.issue(own_name)
        assert chain[-1].issuer == (await lab.pebble.root(root)).subject
        assert len(chain) == 3


async def test_blocked_domain(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """A name that the CA won't certify is rejected with its words, and makes no order."""
    async with laboratory(tmp_path, dns_server.endpoint, PebbleOptions(blocked_domains=[own_name])) as lab:
        refusal = await refusal_of(lab.issuer.create_order(*asked(own_name), SOON))
        assert refusal.reason is Reason.ISSUER_REJECTED
        assert refusal.problems[0].type == "urn:ietf:params:acme:error:rejectedIdentifier"
        assert lab.pebble.log.orders == ()


async def test_ca_that_wants_a_bound_account(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """A CA that demands external account binding says so to whoever reads the error."""
    options = PebbleOptions(
        external_account_keys={"kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"}
    )
    async with laboratory(tmp_path, dns_server.endpoint, options) as lab:
        refusal = await refusal_of(lab.issuer.create_order(*asked(own_name), SOON))
        assert (refusal.reason, "externalAccountRequired" in refusal.message) == (Reason.ISSUER_REJECTED, True)


async def test_ca_that_forgot_everything(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """After a restart with an empty memory the account is made again; the old order is unknown, a new one works."""
    async with laboratory(tmp_path, dns_server.endpoint, PebbleOptions()) as lab:
        csr_der, profile = asked(own_name)
        ready = await lab.ready(csr_der, profile)
        await lab.pebble.restart()
        refusal = await refusal_of(lab.issuer.finalize(ready, csr_der, SOON))
        assert refusal.reason is Reason.ISSUER_REJECTED
        await lab.issue(own_name)
        assert len(lab.pebble.log.finalizations) == 1


async def test_ca_that_is_away_for_a_moment(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """A step that begins while the CA is down succeeds once it is back."""
    async with laboratory(tmp_path, dns_server.endpoint, PebbleOptions()) as lab:
        await lab.issue(own_name)
        process = lab.pebble._process
        assert process is not None
        await process.stop()
        issuing = asyncio.create_task(lab.issue(f"second.{own_name}"))
        await asyncio.sleep(0.3)
        assert not issuing.done()
        await process.start(lab.pebble._serves)
        await issuing


async def test_profile_of_the_ca(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """A policy profile's ACME profile decides which certificate comes out."""
    options = PebbleOptions(short_lifetime=timedelta(hours=160))
    async with laboratory(tmp_path, dns_server.endpoint, options) as lab:
        if not lab.pebble.part.can(PEBBLE_PROFILES):
            pytest.skip("this Pebble knows no profiles")
        leaf, *_ = await lab.issue(own_name, acme_profile=SHORT_PROFILE)
        assert leaf.not_valid_after_utc - leaf.not_valid_before_utc < timedelta(hours=161)
