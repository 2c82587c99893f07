"""The account at the CA: bound, its contact kept current, its key changed whatever cuts the change off, profiles."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509

from certplane.broker.issuers.acme_account import AccountKey, AccountKeyFile
from certplane.broker.issuers.acme_registration import ExternalAccount
from certplane.broker.issuers.attempts import Deadline
from certplane.broker.model import OrderState, Profile, RevocationReason
from certplane.errors import Reason, RefusalError
from certplane.pki.csr import build_csr, parse_csr
from certplane.pki.keys import KeyType, generate_private_key, private_key_pem
from certplane.sandbox import faults
from certplane.sandbox.acme_endpoints import ACCOUNT, KEY_CHANGE, NEW_ACCOUNT, NEW_ORDER, REVOKE_CERT
from certplane.sandbox.fault_proxy import Action
from certplane.sandbox.parts import PEBBLE_PROFILES
from certplane.sandbox.pebble import Pebble, PebbleOptions
from certplane.sandbox.ports import DnsServer
from tests.support.moods import Moody, moody
from tests.support.parts import need_part

pytestmark = pytest.mark.integration

SOON = timedelta(seconds=10)
MAC_KEY = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pebble_of_profiles(tmp_path_factory: pytest.TempPathFactory, dns_server: DnsServer) -> AsyncIterator[Pebble]:
    """A Pebble that takes every challenge for met, with two profiles where this version has any."""
    options = PebbleOptions(always_valid=True, short_lifetime=timedelta(days=6))
    folder = tmp_path_factory.mktemp("pebble-of-profiles")
    async with Pebble(folder, dns_server.endpoint.host_port, options, part=need_part("pebble")) as server:
        yield server


@pytest_asyncio.fixture
async def world(tmp_path: Path, pebble_of_profiles: Pebble) -> AsyncIterator[Moody]:
    async with moody(tmp_path, pebble_of_profiles) as world:
        yield world


def bound(hmac: str, kid: str = "kid-1") -> tuple[ExternalAccount, list[str]]:
    """An external account, and what was read of its secret."""
    read: list[str] = []

    async def read_hmac() -> str:
        read.append(hmac)
        return hmac

    return ExternalAccount(kid, read_hmac), read


async def test_external_account(tmp_path: Path, dns_server: DnsServer, own_name: str) -> None:
    """A CA that wants bound accounts gets them: once, since a binding may be good for one account; a bad one is told."""
    options = PebbleOptions(always_valid=True, external_account_keys={"kid-1": MAC_KEY})
    async with Pebble(tmp_path / "ca", dns_server.endpoint.host_port, options, part=need_part("pebble")) as pebble:
        external, read = bound(MAC_KEY)
        async with moody(tmp_path / "good", pebble, external=external) as world:
            assert (await world.issue(own_name)).state is OrderState.ISSUED
            assert (len(read), world.proxy.count(NEW_ACCOUNT)) == (1, 2)
        async with moody(tmp_path / "good", pebble, external=external) as world:
            assert (await world.issue(f"www.{own_name}")).state is OrderState.ISSUED
            assert (len(read), world.proxy.count(NEW_ACCOUNT)) == (1, 1)
        for folder, (wrong, _), said in (
            ("other-key", bound(MAC_KEY[::-1]), "unauthorized"),
            ("other-kid", bound(MAC_KEY, "kid-2"), "unauthorized"),
            ("no-base64", bound("?"), "isn't base64url"),
            ("cut-off", bound("abcde"), "isn't base64url"),
        ):
            async with moody(tmp_path / folder, pebble, external=wrong) as world:
                order = await world.issue(f"{folder}.{own_name}")
                assert order.error is not None
                assert (order.error.reason, said in order.error.message) == (Reason.ISSUER_REJECTED, True), order.error
                assert MAC_KEY not in order.error.message
        async with moody(tmp_path / "unbound", pebble) as world:
            order = await world.issue(f"unbound.{own_name}")
            assert order.error is not None
            assert "issuer.acme.eab" in order.error.message


async def test_profile_that_the_ca_does_not_offer(world: Moody, own_name: str) -> None:
    """The error has the profiles that there are in the CA's own words, and the CA is not asked for an order."""
    if not need_part("pebble").can(PEBBLE_PROFILES):
        pytest.skip("this Pebble has no profiles")
    command = world.request(own_name)
    profile = Profile("p", "mixed", (own_name,), "h", acme_profile="tlsserver")
    csr_der = parse_csr(command.csr_pem).der
    with pytest.raises(RefusalError) as caught:
        await world.issuer.create_order(csr_der, profile, SOON)
    refusal = caught.value.refusal
    assert refusal.reason is Reason.ISSUER_REJECTED
    assert refusal.problems[0].type == "urn:ietf:params:acme:error:invalidProfile"
    assert "'tlsserver'; it offers default: The sandbox's default profile; shortlived: " in refusal.message
    assert world.proxy.count(NEW_ORDER) == 0
    order = await world.issuer.create_order(csr_der, replace(profile, acme_profile="shortlived"), SOON)
    assert order.trouble is None
    assert world.proxy.seen(NEW_ORDER)[0].payload["profile"] == "shortlived"


async def test_contact_follows_the_configuration(tmp_path: Path, pebble_of_profiles: Pebble) -> None:
    """Another account_email is told to the CA at the next start, the same one isn't; a refusal stops nothing."""
    async with moody(tmp_path, pebble_of_profiles, email="one@certplane.test") as world:
        await world.issue("a.certplane.test")
        assert world.proxy.count(ACCOUNT) == 0
    async with moody(tmp_path, pebble_of_profiles, email="one@certplane.test") as world:
        await world.issue("b.certplane.test")
        assert world.proxy.count(ACCOUNT) == 0
    async with moody(tmp_path, pebble_of_profiles, email="two@certplane.test") as world:
        world.proxy.add(faults.problem("invalidContact"), ACCOUNT)
        assert (await world.issue("c.certplane.test")).state is OrderState.ISSUED
        account = await world.issuer.account(SOON)
        assert account is not None
        assert account.contact == ("mailto:one@certplane.test",)
    async with moody(tmp_path, pebble_of_profiles, email="two@certplane.test") as world:
        await world.issue("d.certplane.test")
        account = await world.issuer.account(SOON)
        assert account is not None
        assert (account.contact, account.status) == (("mailto:two@certplane.test",), "valid")


async def test_an_account_is_looked_for_without_making_one(world: Moody) -> None:
    """To look at the account makes none."""
    assert await world.issuer.account(SOON) is None
    assert [seen.payload for seen in world.proxy.seen(NEW_ACCOUNT)] == [{"onlyReturnExisting": True}]


async def test_key_rollover_beside_a_running_broker(tmp_path: Path, pebble_of_profiles: Pebble, own_name: str) -> None:
    """The account has a new key, the old one is nobody's; a broker that runs takes the new one over by itself."""
    async with moody(tmp_path, pebble_of_profiles) as running:
        await running.issue(own_name)
        before = await running.issuer.account(SOON)
        old = AccountKeyFile(tmp_path / "account.key").load()
        async with moody(tmp_path, pebble_of_profiles) as command:
            after = await command.issuer.roll_over_account_key(SOON)
        assert before is not None
        assert (after.url.rsplit("/", 1)[1], after.key_sha256 != before.key_sha256) == (
            before.url.rsplit("/", 1)[1],
            True,
        )
        assert AccountKeyFile(tmp_path / "account.key").load().public_key_sha256 == after.key_sha256
        assert not (tmp_path / "account.key.next").exists()

        order = await running.issue(f"www.{own_name}")
        assert order.state is OrderState.ISSUED
        assert running.issuer.account_key_sha256 == after.key_sha256
        session = await running.issuer._exchanges.session(_deadline(running))
        assert await running.issuer._registration.client(session.directory, old).find_account() is None


@pytest.mark.parametrize(
    ("cut_off", "changed"),
    [
        pytest.param(faults.cut, False, id="before the CA was asked"),
        pytest.param(faults.swallowed, True, id="after the CA did it"),
    ],
)
async def test_key_rollover_that_is_cut_off(
    tmp_path: Path, pebble_of_profiles: Pebble, own_name: str, cut_off: type[Action], changed: bool
) -> None:
    """Whatever the CA made of it, the next start finds the key that works, and the account stays the same."""
    async with moody(tmp_path, pebble_of_profiles) as world:
        assert (await world.issue(own_name)).state is OrderState.ISSUED
        before = await world.issuer.account(SOON)
        world.proxy.add(cut_off(), KEY_CHANGE, times=1 if changed else None)
        world.proxy.add(faults.cut(), NEW_ACCOUNT, times=None)
        with pytest.raises(RefusalError) as caught:
            await world.issuer.roll_over_account_key(timedelta(seconds=1))
        assert caught.value.refusal.reason is Reason.ISSUER_UNAVAILABLE
    assert before is not None
    assert (tmp_path / "account.key.next").exists()
    async with moody(tmp_path, pebble_of_profiles) as world:
        assert (await world.issue(f"www.{own_name}")).state is OrderState.ISSUED
        found = await world.issuer.account(SOON)
        assert found is not None
        assert found.url.rsplit("/", 1)[1] == before.url.rsplit("/", 1)[1]
        assert (found.key_sha256 != before.key_sha256) is changed
        assert (tmp_path / "account.key.next").exists() is not changed
        again = await world.issuer.roll_over_account_key(SOON)
        assert again.key_sha256 != found.key_sha256


async def test_key_rollover_that_the_ca_refuses(world: Moody, own_name: str, tmp_path: Path) -> None:
    """Nothing is changed, the new key is thrown away, and the CA's words are told."""
    await world.issue(own_name)
    key = world.issuer.account_key_sha256
    world.proxy.add(faults.problem("malformed", "not today", status=409), KEY_CHANGE)
    with pytest.raises(RefusalError, match="not today"):
        await world.issuer.roll_over_account_key(SOON)
    assert world.issuer.account_key_sha256 == key
    assert not (tmp_path / "account.key.next").exists()
    assert (await world.issue(f"www.{own_name}")).state is OrderState.ISSUED


@pytest.mark.parametrize("own_key", [False, True])
async def test_revocation(world: Moody, own_name: str, tmp_path: Path, own_key: bool) -> None:
    """With the account's key, or with the certificate's own by whoever holds no more."""
    key = generate_private_key(KeyType.EC_P256)
    command = replace(world.request(own_name), csr_pem=build_csr(key, sans=[own_name]))
    order = await world.ask(command)
    record = world.database.certificates[order.certificate_id]
    path = tmp_path / "leaf.key"
    signer = AccountKey.from_pem(private_key_pem(key), str(path)) if own_key else None
    await world.issuer.revoke(record.certificate_pem, RevocationReason.KEY_COMPROMISE, SOON, certificate_key=signer)
    await world.issuer.revoke(record.certificate_pem, RevocationReason.KEY_COMPROMISE, SOON, certificate_key=signer)
    leaf = x509.load_pem_x509_certificate(record.certificate_pem.encode())
    assert await world.pebble.is_revoked(leaf.serial_number)
    assert ["jwk" in seen.protected for seen in world.proxy.seen(REVOKE_CERT)] == [own_key, own_key]


def _deadline(world: Moody) -> Deadline:
    return Deadline.after(SOON, world._clock)
