"""The fault proxy in front of a real Pebble, with a client that nobody here wrote between them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from certplane.sandbox import faults
from certplane.sandbox.acme_endpoints import (
    AUTHORIZATION,
    CERTIFICATE,
    CHALLENGE,
    DIRECTORY,
    FINALIZE,
    NEW_ACCOUNT,
    NEW_NONCE,
    NEW_ORDER,
    ORDER,
    OTHER,
)
from certplane.sandbox.fault_proxy import FaultProxy
from certplane.sandbox.pebble import Pebble
from certplane.sandbox.ports import DnsServer
from tests.support.acme_client import AcmeClient

pytestmark = pytest.mark.integration


async def test_pebble_issues_through_it(pebble: Pebble, dns_server: DnsServer, own_name: str, tmp_path: Path) -> None:
    """Pebble's URLs and the signatures over them name the proxy, and each request is known for what it is."""
    with FaultProxy(tmp_path, pebble.directory_url, roots_file=pebble.https_roots_file) as proxy:
        proxy.add(faults.bad_nonce(), NEW_ORDER)
        acme = await asyncio.to_thread(AcmeClient, proxy.url, proxy.roots_file)
        key = ec.generate_private_key(ec.SECP256R1())
        chain = await asyncio.to_thread(acme.issue, dns_server.endpoint, key, [own_name])
        acme.close()
    assert await pebble.certificates_of_key(key.public_key()) == [chain[0]]
    counts = {kind: proxy.count(kind) for kind in (DIRECTORY, NEW_ACCOUNT, NEW_ORDER, CHALLENGE, FINALIZE, OTHER)}
    assert counts == {DIRECTORY: 1, NEW_ACCOUNT: 1, NEW_ORDER: 2, CHALLENGE: 1, FINALIZE: 1, OTHER: 0}
    assert min(proxy.count(kind) for kind in (NEW_NONCE, AUTHORIZATION, ORDER, CERTIFICATE)) >= 1
    assert len(proxy.served(NEW_ORDER)) == 1
