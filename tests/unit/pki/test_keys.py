"""Private keys go to PEM and back; what can't be used says why without showing any of it."""

from __future__ import annotations

import hashlib
import re

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from certplane.errors import Reason, RefusalError
from certplane.pki.keys import (
    KeyType,
    PrivateKeyError,
    check_public_key,
    generate_private_key,
    load_private_key,
    private_key_pem,
    public_key_sha256,
)
from tests.support.csr import ec_key, rsa_key

PEM = serialization.Encoding.PEM
PLAIN = serialization.NoEncryption()


@pytest.mark.parametrize("key_type", list(KeyType))
def test_generates_each_kind(key_type: KeyType) -> None:
    """Each kind by its name, and stored and loaded again it is the same key."""
    key = generate_private_key(key_type)
    assert check_public_key(key.public_key()) is key_type
    pem = private_key_pem(key)
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert public_key_sha256(load_private_key(pem).public_key()) == public_key_sha256(key.public_key())


@pytest.mark.parametrize(
    "pem",
    [
        pytest.param(ec_key().private_bytes(PEM, serialization.PrivateFormat.TraditionalOpenSSL, PLAIN), id="sec1"),
        pytest.param(rsa_key().private_bytes(PEM, serialization.PrivateFormat.TraditionalOpenSSL, PLAIN), id="pkcs1"),
        pytest.param(b"\xef\xbb\xbf" + private_key_pem(ec_key()), id="byte-order-mark"),
        pytest.param(b"Bag Attributes\r\n    friendlyName: web\r\n" + private_key_pem(ec_key()), id="text-in-front"),
        pytest.param(private_key_pem(ec_key()).replace(b"\n", b"\r\n") + b"\x1a", id="dos"),
        pytest.param(
            b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
            + private_key_pem(ec_key()),
            id="curve-in-front",
        ),
        pytest.param(
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + private_key_pem(ec_key()),
            id="combined-with-a-certificate",
        ),
    ],
)
def test_loads_older_forms(pem: bytes) -> None:
    """Keys load in the forms that OpenSSL wrote before PKCS#8, and with what tools put beside them."""
    load_private_key(pem)


@pytest.mark.parametrize(
    ("pem", "phrase"),
    [
        pytest.param(b"", "not a private key", id="empty"),
        pytest.param(b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", "not a private key", id="junk"),
        pytest.param(
            ec_key().private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")),
            "encrypted", id="encrypted",
        ),
        pytest.param(
            ec_key().private_bytes(
                PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.BestAvailableEncryption(b"x")
            ),
            "encrypted", id="encrypted-in-the-older-form",
        ),
        pytest.param(private_key_pem(ec_key()) * 2, "holds 2 of them", id="two"),
        pytest.param(private_key_pem(ec_key())[:-20], "cut off", id="cut-off"),
        pytest.param(b"\x30\x82\x01\x00", "binary", id="der"),
        pytest.param(
            ec_key().public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
            "not a private key", id="public",
        ),
        pytest.param(
            ed25519.Ed25519PrivateKey.generate().private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN),
            "unsupported kind", id="ed25519",
        ),
        pytest.param(
            ec.generate_private_key(ec.SECP521R1()).private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN),
            "unsupported kind", id="p521",
        ),
        pytest.param(
            rsa_key(1024).private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN), "unsupported kind", id="rsa-1024"
        ),
    ],
)  # fmt: skip
def test_refuses_to_load(pem: bytes, phrase: str) -> None:
    """What isn't a usable key is named; neither message nor cause holds a line of the file."""
    with pytest.raises(PrivateKeyError, match=phrase) as caught:
        load_private_key(pem)
    shown = (
        f"{caught.value}{caught.value.__cause__}{'' if caught.value.__suppress_context__ else caught.value.__context__}"
    )
    assert not any(line in shown for line in pem.decode("latin-1").splitlines()[1:-1] if line)


def test_hash_is_over_the_spki() -> None:
    """The hash is what `openssl pkey -pubin -outform DER | sha256sum` prints."""
    der = (
        ec_key().public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    assert public_key_sha256(ec_key().public_key()) == hashlib.sha256(der).hexdigest()


def test_refusal_names_the_field() -> None:
    """Where the key came from is the caller's to say, and the refusal lists what to use instead."""
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    with pytest.raises(RefusalError) as caught:
        check_public_key(key, field="account_key")
    refusal = caught.value.refusal
    assert refusal.reason is Reason.KEY_WEAK
    assert refusal.violations[0].subject == "account_key"
    assert all(key_type in refusal.message for key_type in KeyType)


def test_sound_rsa_keys_pass() -> None:
    """Keys that OpenSSL makes are not taken for the broken generators'."""
    for _ in range(5):
        key = rsa.generate_private_key(65537, 2048)
        assert check_public_key(key.public_key()) is KeyType.RSA_2048


def test_key_types_are_those_of_the_configuration() -> None:
    """The names are part of the file format."""
    assert [str(key_type) for key_type in KeyType] == ["ec-p256", "ec-p384", "rsa-2048", "rsa-3072", "rsa-4096"]
    assert all(re.fullmatch(r"(ec-p|rsa-)\d+", key_type) for key_type in KeyType)
