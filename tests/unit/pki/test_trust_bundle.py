"""What a bundle remembers of the chains that are presented beside leaves."""

from __future__ import annotations

from collections.abc import Callable

from cryptography import x509

from certplane.pki.trust_bundle import TrustBundle
from tests.support.ca import PrivateCa


def test_the_last_chains_are_looked_at_once() -> None:
    """Those that are asked for stay, whatever strangers present meanwhile; it takes no more than some."""
    bundle = TrustBundle.from_pem(PrivateCa("internal").root_pem)
    looked: list[bytes] = []

    def finds(chain: bytes) -> Callable[[], tuple[x509.Certificate, ...]]:
        def find() -> tuple[x509.Certificate, ...]:
            looked.append(chain)
            return ()

        return find

    for number in range(200):
        for chain in (b"usual", b"a stranger's %d" % number):
            assert bundle.leading(chain, finds(chain)) == ()
    assert looked.count(b"usual") == 1
    assert len(looked) == 201
    assert len(bundle._leading) == 64
