"""What only the real step-ca does: identities by its ACME provisioner, for whoever answers a challenge."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from certplane.sandbox.identity_authority import PROVISIONER_OID, provisioner_extension
from certplane.sandbox.ports import ACME_PROVISIONER, DnsServer
from certplane.sandbox.step_ca import StepCa
from tests.support.acme_client import AcmeClient
from tests.support.parts import need_part

pytestmark = pytest.mark.integration


async def test_the_acme_provisioner_makes_identities_of_another_kind(
    dns_server: DnsServer, tmp_path: Path, own_name: str
) -> None:
    """Who can write a name's TXT record gets an identity of that name, marked with provisioner type 6 (ACME)."""
    dns, key = dns_server.endpoint, ec.generate_private_key(ec.SECP256R1())
    async with StepCa(tmp_path / "step-ca", resolver=dns.host_port, part=need_part("step-ca")) as ca:
        acme = await asyncio.to_thread(AcmeClient, ca.acme_directory, ca.roots_file)
        chain = await asyncio.to_thread(acme.issue, dns, key, [own_name])
        acme.close()
    chain[0].verify_directly_issued_by(ca.intermediate.certificate)
    mark = chain[0].extensions.get_extension_for_oid(PROVISIONER_OID).value
    assert mark.public_bytes() == provisioner_extension(6, ACME_PROVISIONER, "").public_bytes()
