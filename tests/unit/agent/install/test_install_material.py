"""The files of a version, made from what was issued or from what stood there."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certplane.agent.install.material import PEM_PARTS, NoPairError, Part, complete, compose
from tests.support.lineages import LocalIssuer

ISSUER = LocalIssuer()
KEY, LEAF = ISSUER.pair("www.example.org")
OTHER_KEY, OTHER_LEAF = ISSUER.pair("www.example.org")
CERT, CHAIN = LEAF.encode(), ISSUER.pem.encode()


def loaded_key() -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(KEY, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def test_composed_files_hang_together() -> None:
    """Full chain is leaf and issuers; the combined file is the key before them."""
    files = compose(KEY, LEAF, ISSUER.pem)
    assert files[Part.FULLCHAIN] == files[Part.CERT] + files[Part.CHAIN] == CERT + CHAIN
    assert files[Part.COMBINED] == KEY + CERT + CHAIN
    assert set(files) == set(PEM_PARTS)


def test_composed_files_end_with_newlines() -> None:
    """Files can be put one after another; a chain without issuers is an empty file."""
    files = compose(KEY.strip(), LEAF.strip(), "")
    assert files[Part.CHAIN] == b""
    assert files[Part.FULLCHAIN] == files[Part.CERT] == CERT
    assert files[Part.COMBINED] == KEY + CERT


@pytest.mark.parametrize(
    "found",
    [
        pytest.param({Part.PRIVKEY: KEY, Part.CERT: CERT, Part.CHAIN: CHAIN}, id="key, cert, chain"),
        pytest.param({Part.PRIVKEY: KEY, Part.FULLCHAIN: CERT + CHAIN}, id="key, fullchain"),
        pytest.param({Part.COMBINED: KEY + CERT + CHAIN}, id="combined"),
        pytest.param({Part.COMBINED: CERT + CHAIN + KEY}, id="combined, key last"),
        pytest.param({Part.PRIVKEY: KEY, Part.CERT: CERT + CHAIN}, id="cert that holds the whole chain"),
        pytest.param(
            {Part.PRIVKEY: KEY, Part.CERT: CERT, Part.FULLCHAIN: CERT + CHAIN, Part.COMBINED: KEY + CERT + CHAIN},
            id="everything",
        ),
        pytest.param({Part.PRIVKEY: b"# made in 2019\r\n" + KEY, Part.FULLCHAIN: CERT + b"\n" + CHAIN}, id="comments"),
    ],
)
def test_standing_pair_is_completed_and_kept_to_the_byte(found: dict[Part, bytes]) -> None:
    """What stands there is imported as it is; what is missing is derived from it."""
    files = complete(found)
    assert {part: files[part] for part in found} == found
    assert set(files) == set(PEM_PARTS)
    leaves = {x509.load_pem_x509_certificates(files[part])[0] for part in (Part.CERT, Part.FULLCHAIN, Part.COMBINED)}
    assert leaves == {x509.load_pem_x509_certificate(CERT)}
    assert x509.load_pem_x509_certificates(files[Part.FULLCHAIN])[1:] == [x509.load_pem_x509_certificate(CHAIN)]
    assert load_pem_private_key(files[Part.PRIVKEY], password=None).public_key() == loaded_key().public_key()


def test_older_key_formats_pair_too() -> None:
    """A key may be SEC 1, as other tools write it."""
    sec1 = loaded_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    assert complete({Part.PRIVKEY: sec1, Part.CERT: CERT})[Part.PRIVKEY] == sec1


@pytest.mark.parametrize(
    ("found", "why"),
    [
        pytest.param({}, "no private key", id="nothing"),
        pytest.param({Part.CERT: CERT}, "no private key", id="no key"),
        pytest.param({Part.PRIVKEY: KEY}, "no certificate", id="no certificate"),
        pytest.param({Part.PRIVKEY: KEY, Part.CHAIN: CHAIN}, "no certificate", id="issuers only"),
        pytest.param({Part.PRIVKEY: OTHER_KEY, Part.CERT: CERT}, "not the certificate's", id="another's key"),
        pytest.param(
            {Part.PRIVKEY: KEY, Part.CERT: CERT, Part.FULLCHAIN: OTHER_LEAF.encode() + CHAIN},
            "several certificates",
            id="two leaves",
        ),
        pytest.param({Part.PRIVKEY: KEY, Part.COMBINED: OTHER_KEY + CERT}, "several private keys", id="two keys"),
        pytest.param({Part.PRIVKEY: KEY.replace(b"M", b"!", 3), Part.CERT: CERT}, "can't be read", id="broken key"),
        pytest.param({Part.PRIVKEY: KEY, Part.CERT: CERT.replace(b"M", b"A", 2)}, "can't be read", id="broken leaf"),
        pytest.param({Part.PRIVKEY: b"\xff\x00", Part.CERT: b"\xff"}, "no private key", id="no text"),
        pytest.param(
            {
                Part.PRIVKEY: loaded_key().private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.BestAvailableEncryption(b"secret"),
                ),
                Part.CERT: CERT,
            },
            "encrypted",
            id="encrypted key",
        ),
        pytest.param(
            {
                Part.PRIVKEY: ed25519.Ed25519PrivateKey.generate().private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                ),
                Part.CERT: CERT,
            },
            "not the certificate's",
            id="key of another kind",
        ),
    ],
)
def test_what_is_no_pair_is_not_imported(found: dict[Part, bytes], why: str) -> None:
    """Files that don't make one pair are said to be none, without a byte of them in the message."""
    with pytest.raises(NoPairError, match=why) as caught:
        complete(found)
    assert "BEGIN" not in str(caught.value)
