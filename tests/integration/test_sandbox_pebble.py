"""Pebble of whichever version this machine has: it issues through our DNS servers, and its log counts what it did."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from acme import errors, messages
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.sandbox import parts
from certplane.sandbox.errors import ServerRefusedError
from certplane.sandbox.pebble import Pebble, PebbleOptions
from certplane.sandbox.ports import DnsServer
from tests.support.acme_client import AcmeClient
from tests.support.parts import need_part

pytestmark = pytest.mark.integration


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


async def test_issues_apex_and_wildcard_and_counts_them(
    any_dns_server: DnsServer, tmp_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    """One order, one finalisation, one certificate for the key, of the lifetime that was asked for."""
    names = ["certplane.test", "*.certplane.test"]
    options = PebbleOptions(certificate_lifetime=timedelta(days=10))
    part = need_part("pebble")
    async with Pebble(tmp_path / "pebble", any_dns_server.endpoint.host_port, options, part=part) as pebble:
        acme = await asyncio.to_thread(AcmeClient, pebble.directory_url, pebble.https_roots_file)
        chain = await asyncio.to_thread(acme.issue, any_dns_server.endpoint, key, names)
        acme.close()
        leaf, log = chain[0], pebble.log
        assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(days=10, seconds=-1)
        assert (len(log.orders), log.finalizations, log.finalize_requests) == (1, log.orders, 1)
        assert log.issued == ((log.orders[0], leaf.serial_number),)
        assert await pebble.certificates_of_key(key.public_key()) == [leaf]
        assert await pebble.certificates_of_key(ec.generate_private_key(ec.SECP256R1()).public_key()) == []
        (await pebble.intermediate()).verify_directly_issued_by(await pebble.root())
        assert not await pebble.is_revoked(leaf.serial_number)
        await pebble.restart()
        assert pebble.log.orders == ()


async def test_a_wrong_value_makes_no_certificate(
    pebble: Pebble, dns_server: DnsServer, key: ec.EllipticCurvePrivateKey, own_name: str
) -> None:
    """Pebble really looks into the DNS: a wrong TXT value fails the order, which is counted but not finalised."""
    acme = await asyncio.to_thread(AcmeClient, pebble.directory_url, pebble.https_roots_file)
    before = pebble.log
    with pytest.raises(errors.ValidationError):
        await asyncio.to_thread(acme.issue, dns_server.endpoint, key, [own_name], spoil=True)
    acme.close()
    after = pebble.log
    assert len(after.orders) - len(before.orders) == 1
    assert after.finalizations == before.finalizations
    assert await pebble.certificates_of_key(key.public_key()) == []


async def test_follows_an_alias_into_another_zone(
    pebble: Pebble, dns_server: DnsServer, key: ec.EllipticCurvePrivateKey, own_name: str
) -> None:
    """The challenge name may be delegated by CNAME to a zone that is made for validation."""
    dns, target = dns_server.endpoint, f"{own_name.partition('.')[0]}.other.test"
    await dns.add(f"_acme-challenge.{own_name}", "CNAME", f"{target}.")

    class Delegated:
        """Writes to where the alias points."""

        async def add(self, _name: str, record_type: str, value: str) -> None:
            await dns.add(target, record_type, value)

    acme = await asyncio.to_thread(AcmeClient, pebble.directory_url, pebble.https_roots_file)
    chain = await asyncio.to_thread(acme.issue, Delegated(), key, [own_name])  # type: ignore[arg-type]
    acme.close()
    assert chain[0].public_key() == key.public_key()


async def test_offers_other_chains_of_a_chosen_length(
    dns_server: DnsServer, tmp_path: Path, key: ec.EllipticCurvePrivateKey, own_name: str
) -> None:
    """Alternate roots and longer chains come as they were asked for."""
    options = PebbleOptions(alternate_roots=1, chain_length=2)
    part = need_part("pebble")
    async with Pebble(tmp_path / "pebble", dns_server.endpoint.host_port, options, part=part) as pebble:
        acme = await asyncio.to_thread(AcmeClient, pebble.directory_url, pebble.https_roots_file)
        chain = await asyncio.to_thread(acme.issue, dns_server.endpoint, key, [own_name])
        acme.close()
        assert [len(chain), *map(len, acme.alternatives)] == [3, 3]
        roots = [(await pebble.root(number)).subject for number in (0, 1)]
        assert {chain[-1].issuer, acme.alternatives[0][-1].issuer} == set(roots)


async def test_refuses_blocked_names_and_unbound_accounts(dns_server: DnsServer, tmp_path: Path) -> None:
    """The block list and external account binding are switched on by options."""
    options = PebbleOptions(blocked_domains=["blocked.test"], external_account_keys={"kid-1": "c2VjcmV0LXNlY3JldC1z"})
    part = need_part("pebble")
    async with Pebble(tmp_path / "pebble", dns_server.endpoint.host_port, options, part=part) as pebble:
        with pytest.raises(messages.Error, match="externalAccountRequired"):
            await asyncio.to_thread(AcmeClient, pebble.directory_url, pebble.https_roots_file)


async def test_renewal_info_can_be_set(
    pebble: Pebble, dns_server: DnsServer, key: ec.EllipticCurvePrivateKey, own_name: str
) -> None:
    """A Pebble with that capability serves what it was told; an older one says that it can't."""
    acme = await asyncio.to_thread(AcmeClient, pebble.directory_url, pebble.https_roots_file)
    chain = await asyncio.to_thread(acme.issue, dns_server.endpoint, key, [own_name])
    acme.close()
    pem = chain[0].public_bytes(Encoding.PEM).decode()
    if pebble.part.can(parts.PEBBLE_SET_RENEWAL_INFO):
        await pebble.set_renewal_info(pem, "{malformed")
    else:
        with pytest.raises(ServerRefusedError):
            await pebble.set_renewal_info(pem, "{malformed")
