"""What a client presents is looked at before grpc's core sees it, which ends the process over an empty key or chain."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from certplane.pki.keys import KeyType, generate_private_key, private_key_pem
from certplane.rpc.credentials import KeyPair, PairError, client_pair
from certplane.sandbox.certificates import CertificateAuthority

_CREDENTIAL = CertificateAuthority.root("Root").issue("web1", ["web1.example"])
_KEY, _CHAIN = _CREDENTIAL.key_pem, _CREDENTIAL.chain_pem
_OTHER = generate_private_key(KeyType.EC_P256)
_ENCRYPTED = _OTHER.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))

BROKEN: dict[str, tuple[bytes, bytes, str]] = {
    "an empty key": (b"", _CHAIN, "the key is empty"),
    "a key of white space": (b"\n\n", _CHAIN, "the key is empty"),
    "junk for a key": (b"junk", _CHAIN, "the key holds no private key"),
    "half a key": (_KEY[: len(_KEY) // 2], _CHAIN, "the key holds no private key"),
    "octets of nothing": (b"\0" * 200, _CHAIN, "the key holds no private key"),
    "the certificate for a key": (_CHAIN, _CHAIN, "the key holds no private key"),
    "an encrypted key": (_ENCRYPTED, _CHAIN, "the key is encrypted"),
    "another key": (private_key_pem(_OTHER), _CHAIN, "the key isn't the certificate's"),
    "an empty chain": (_KEY, b"", "the certificate is empty"),
    "junk for a chain": (_KEY, b"junk", "the certificate holds no certificate that can be read"),
    "half a chain": (_KEY, _CHAIN[:100], "the certificate holds no certificate that can be read"),
    "the key for a chain": (_KEY, _KEY, "the certificate holds no certificate that can be read"),
}


@pytest.mark.parametrize(("key", "chain", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_pair_is_told_before_anybody_connects(key: bytes, chain: bytes, says: str) -> None:
    """Which of the two it is, and why; without a byte of the key."""
    with pytest.raises(PairError) as caught:
        client_pair(key, chain)
    assert str(caught.value) == says
    assert bool(caught.value.key) == says.startswith("the key")


@pytest.mark.parametrize(
    "before", [b"", b"Bag Attributes\n    friendlyName: x\n"], ids=["alone", "with text before it"]
)
def test_a_pair_is_passed_on_as_it_is(before: bytes) -> None:
    """With text around the blocks too, as other tools write it."""
    assert client_pair(before + _KEY, before + _CHAIN) == KeyPair(before + _KEY, before + _CHAIN)
