"""The `Issuer` and `Revoker` contracts, on the fakes, on `AcmeIssuer` with a real Pebble, and on that by messages."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.broker.issuers.acme import AcmeIssuer
from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuing.remote import RemoteIssuer
from certplane.broker.model import DnsChallenge, IssuerOrder, IssuerOrderStatus, Profile, RevocationReason, TxtRecord
from certplane.broker.ports import Issuer, Revoker
from certplane.errors import Reason, RefusalError
from certplane.pki.chain import check_issued_chain
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, PrivateKey, generate_private_key, public_key_sha256
from certplane.runtime.clock import SystemClock
from certplane.sandbox.dns_endpoint import DnsEndpoint
from certplane.sandbox.pebble import Pebble
from certplane.sandbox.ports import DnsServer
from tests.fakes.dns import FakeDns
from tests.fakes.issuer import FakeCa, FakeIssuer, FakeRevoker
from tests.support.issuing_wire import Wire

SOON = timedelta(seconds=30)
BRIEFLY = timedelta(seconds=1)
"""For how long a CA may not know what it has named."""


class World(Protocol):
    """A CA, and what can be seen of it from beside."""

    issuer: Issuer
    revoker: Revoker

    def reopened(self) -> Issuer:
        """The issuer as another process has it."""
        ...

    async def publish(self, challenges: Iterable[DnsChallenge]) -> None:
        """Make the TXT records stand."""
        ...

    def finalisations(self, order: IssuerOrder) -> int:
        """CSRs that the CA took for this order."""
        ...

    async def certificates(self, key: PrivateKey) -> int:
        """Certificates that the CA made for this key."""
        ...

    async def is_revoked(self, serial: int) -> bool:
        """Whether the CA has it as revoked."""
        ...


class FakeWorld:
    def __init__(self) -> None:
        self.dns = FakeDns()
        self.ca = FakeCa(SystemClock(), self.dns)
        self.issuer: Issuer = FakeIssuer(self.ca)
        self.revoker: Revoker = FakeRevoker(self.ca)

    def reopened(self) -> Issuer:
        return FakeIssuer(self.ca)

    async def publish(self, challenges: Iterable[DnsChallenge]) -> None:
        for challenge in challenges:
            self.dns.write(TxtRecord("", challenge.record_name, challenge.record_value))

    def finalisations(self, order: IssuerOrder) -> int:
        return self.ca.orders[order.url].finalisations

    async def certificates(self, key: PrivateKey) -> int:
        leaves = [x509.load_pem_x509_certificate(pem.encode()) for pem in self.ca.issued]
        return sum(leaf.public_key() == key.public_key() for leaf in leaves)

    async def is_revoked(self, serial: int) -> bool:
        return serial in self.ca.revoked


class PebbleWorld:
    def __init__(self, pebble: Pebble, dns: DnsEndpoint, folder: Path, opened: list[AcmeCa | Wire]) -> None:
        self.pebble, self.dns, self.folder, self.opened = pebble, dns, folder, opened
        acme = self.reopened()
        self.issuer: Issuer = acme
        self.revoker: Revoker = acme

    def reopened(self) -> AcmeIssuer | RemoteIssuer:
        return self._acme()

    def _acme(self) -> AcmeIssuer:
        server = AcmeServer(self.pebble.directory_url, "ops@certplane.test", ca_bundle=self.pebble.https_roots_file)
        key = AccountKey.load_or_create(self.folder / "account.key")
        ca = AcmeCa(server, SystemClock())
        self.opened.append(ca)
        return AcmeIssuer("pebble", ca, key, rng=random.Random(), settling=BRIEFLY)

    async def publish(self, challenges: Iterable[DnsChallenge]) -> None:
        for challenge in challenges:
            await self.dns.add(challenge.record_name, "TXT", challenge.record_value)

    def finalisations(self, order: IssuerOrder) -> int:
        return self.pebble.log.finalizations.count(order.url.rsplit("/", 1)[1])

    async def certificates(self, key: PrivateKey) -> int:
        return len(await self.pebble.certificates_of_key(key.public_key()))

    async def is_revoked(self, serial: int) -> bool:
        return await self.pebble.is_revoked(serial)


class MessagesWorld(PebbleWorld):
    """The same as the broker has it: by messages of its issuing process."""

    def reopened(self) -> RemoteIssuer:
        acme = self._acme()
        wire = Wire(issuers={acme.name: acme})
        self.opened.append(wire)
        return RemoteIssuer(wire, acme.name, acme.directory)


@pytest_asyncio.fixture
async def opened() -> AsyncIterator[list[AcmeCa | Wire]]:
    """Collects what is to be closed."""
    opened: list[AcmeCa | Wire] = []
    yield opened
    for each in reversed(opened):
        await each.close()


@pytest.fixture(
    params=[
        "fake",
        pytest.param("pebble", marks=pytest.mark.integration),
        pytest.param("messages", marks=pytest.mark.integration),
    ]
)
def world(request: pytest.FixtureRequest, tmp_path: Path, opened: list[AcmeCa | Wire]) -> World:
    if request.param == "fake":
        return FakeWorld()
    pebble: Pebble = request.getfixturevalue("pebble")
    dns: DnsServer = request.getfixturevalue("dns_server")
    kind = PebbleWorld if request.param == "pebble" else MessagesWorld
    return kind(pebble, dns.endpoint, tmp_path, opened)


class Request:
    """A key, its CSR, and the profile of its names: apex and wildcard."""

    def __init__(self, name: str) -> None:
        self.names = (f"*.{name}", name)
        self.profile = Profile("web", "mixed", self.names, "hash")
        self.key = generate_private_key(KeyType.EC_P256)
        pem = build_csr(self.key, sans=self.names)
        self.csr_der = x509.load_pem_x509_csr(pem.encode()).public_bytes(Encoding.DER)


@pytest.fixture
def request_(own_name: str) -> Request:
    return Request(own_name)


async def make_ready(world: World, request_: Request) -> IssuerOrder:
    created = await world.issuer.create_order(request_.csr_der, request_.profile, SOON)
    await world.publish(created.challenges)
    return await world.issuer.answer_challenges(created, SOON)


async def issue(world: World, request_: Request) -> tuple[IssuerOrder, str]:
    order = await world.issuer.finalize(await make_ready(world, request_), request_.csr_der, SOON)
    return order, await world.issuer.download(order, SOON)


async def test_says_where_it_issues(world: World) -> None:
    """Name and directory are part of the audit record and of the cache's key."""
    assert world.issuer.name
    assert world.issuer.directory.startswith("https://")


async def test_new_order_has_a_challenge_for_each_name(world: World, request_: Request) -> None:
    """Apex and wildcard are two challenges with two values at one record name."""
    order = await world.issuer.create_order(request_.csr_der, request_.profile, SOON)
    apex = request_.names[1]
    assert order.status is IssuerOrderStatus.PENDING
    assert [challenge.domain for challenge in order.challenges] == [apex, apex]
    assert {challenge.record_name for challenge in order.challenges} == {f"_acme-challenge.{apex}"}
    assert len({challenge.record_value for challenge in order.challenges}) == 2


async def test_issues(world: World, request_: Request) -> None:
    """The whole way gives a chain for the CSR's key and names, from one finalisation."""
    order, chain = await issue(world, request_)
    issued = check_issued_chain(
        chain,
        public_key_sha256=public_key_sha256(request_.key.public_key()),
        dns_names=tuple(sorted(request_.names)),
        now=SystemClock().now(),
    )
    assert issued.chain_pem
    assert world.finalisations(order) == 1
    assert await world.certificates(request_.key) == 1


async def test_order_is_shown_as_it_is(world: World, request_: Request) -> None:
    """At each step the order at its URL has the status of that step."""
    created = await world.issuer.create_order(request_.csr_der, request_.profile, SOON)
    shown = await world.issuer.get_order(created.url, SOON)
    assert (shown.status, set(shown.challenges)) == (created.status, set(created.challenges))
    await world.publish(created.challenges)
    ready = await world.issuer.answer_challenges(created, SOON)
    assert ready == await world.issuer.get_order(created.url, SOON)
    assert (ready.url, ready.status, ready.challenges) == (created.url, IssuerOrderStatus.READY, ())
    await world.issuer.download(await world.issuer.finalize(ready, request_.csr_der, SOON), SOON)
    assert (await world.issuer.get_order(created.url, SOON)).status is IssuerOrderStatus.VALID


async def test_another_process_takes_over_at_every_step(world: World, request_: Request) -> None:
    """With the order's URL and the account's key alone an order goes on, and is finalised once."""
    created = await world.issuer.create_order(request_.csr_der, request_.profile, SOON)
    await world.publish(created.challenges)
    second = world.reopened()
    await second.answer_challenges(await second.get_order(created.url, SOON), SOON)
    third = world.reopened()
    await third.finalize(await third.get_order(created.url, SOON), request_.csr_der, SOON)
    fourth = world.reopened()
    assert await fourth.download(await fourth.get_order(created.url, SOON), SOON)
    assert world.finalisations(created) == 1


async def test_downloading_again_is_harmless(world: World, request_: Request) -> None:
    """A chain that was lost on the way can be fetched again."""
    order, chain = await issue(world, request_)
    assert await world.issuer.download(order, SOON) == chain
    assert await world.certificates(request_.key) == 1


async def test_missing_record_fails_the_order_with_the_reason(world: World, request_: Request) -> None:
    """A challenge whose record doesn't stand is ISSUER_REJECTED, with the CA's problem for the name; nothing issues."""
    created = await world.issuer.create_order(request_.csr_der, request_.profile, SOON)
    await world.publish(created.challenges[:1])
    with pytest.raises(RefusalError) as caught:
        await world.issuer.answer_challenges(created, SOON)
    refusal = caught.value.refusal
    assert refusal.reason is Reason.ISSUER_REJECTED
    assert request_.names[1] in {problem.identifier for problem in refusal.problems}
    assert all(problem.type.startswith("urn:ietf:params:acme:error:") for problem in refusal.problems)
    assert (await world.issuer.get_order(created.url, SOON)).status is IssuerOrderStatus.INVALID
    assert world.finalisations(created) == 0


async def test_order_that_is_not_ready_is_not_finalised(world: World, request_: Request) -> None:
    """A CSR for an order with challenges outstanding makes no certificate."""
    created = await world.issuer.create_order(request_.csr_der, request_.profile, SOON)
    with pytest.raises(RefusalError):
        await world.issuer.finalize(created, request_.csr_der, SOON)
    assert (world.finalisations(created), await world.certificates(request_.key)) == (0, 0)


async def test_finalising_twice_makes_one_certificate(world: World, request_: Request) -> None:
    """A second finalisation of an order, with the same CSR or another, changes nothing."""
    order, chain = await issue(world, request_)
    other = Request(request_.names[1])
    for csr in (request_.csr_der, other.csr_der):
        with contextlib.suppress(RefusalError):
            await world.issuer.finalize(order, csr, SOON)
    assert await world.issuer.download(order, SOON) == chain
    assert (world.finalisations(order), await world.certificates(other.key)) == (1, 0)


async def test_cancelled_finalisation_is_not_torn(world: World, request_: Request) -> None:
    """Whoever stops waiting leaves an order that is either finalised once or not at all, and can go on."""
    order = await make_ready(world, request_)
    waiting = asyncio.create_task(world.issuer.finalize(order, request_.csr_der, SOON))
    await asyncio.sleep(0.005)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.sleep(0.2)  # what was begun runs to its end
    shown = await world.issuer.get_order(order.url, SOON)
    if shown.status is IssuerOrderStatus.READY:
        shown = await world.issuer.finalize(shown, request_.csr_der, SOON)
    assert await world.issuer.download(shown, SOON)
    assert (world.finalisations(order), await world.certificates(request_.key)) == (1, 1)


async def test_unknown_order_is_rejected(world: World, request_: Request) -> None:
    """An order that the CA doesn't know is ISSUER_REJECTED with its problem document."""
    created = await world.issuer.create_order(request_.csr_der, request_.profile, SOON)
    with pytest.raises(RefusalError) as caught:
        await world.issuer.get_order(f"{created.url}x", SOON)
    assert (caught.value.refusal.reason, len(caught.value.refusal.problems)) == (Reason.ISSUER_REJECTED, 1)


async def test_many_orders_at_once(world: World, own_name: str) -> None:
    """Concurrent orders don't disturb each other, and each is finalised once."""
    requests = [Request(f"n{number}.{own_name}") for number in range(6)]
    issued = await asyncio.gather(*(issue(world, request) for request in requests))
    assert len({order.url for order, _ in issued}) == 6
    assert [world.finalisations(order) for order, _ in issued] == [1] * 6
    for request, (_, chain) in zip(requests, issued, strict=True):
        assert x509.load_pem_x509_certificate(chain.encode()).public_key() == request.key.public_key()


async def test_revokes(world: World, request_: Request) -> None:
    """A revoked certificate is revoked at the CA, and revoking it again is success."""
    _, chain = await issue(world, request_)
    serial = x509.load_pem_x509_certificate(chain.encode()).serial_number
    assert not await world.is_revoked(serial)
    await world.revoker.revoke(chain, RevocationReason.SUPERSEDED, SOON)
    await world.revoker.revoke(chain, RevocationReason.SUPERSEDED, SOON)
    assert await world.is_revoked(serial)
