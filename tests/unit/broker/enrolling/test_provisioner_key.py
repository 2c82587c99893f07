"""The key that signs one-time tokens: which secrets are one, and what its signature says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from certplane.broker.enrolling.provisioner_key import ProvisionerKey, ProvisionerKeyError
from certplane.sandbox.tokens import ProvisionerKey as SandboxKey
from certplane.sandbox.tokens import b64url, parse_jws, verify_jws

KEY = SandboxKey.generate()
JWK: dict[str, Any] = KEY.private_jwk


def pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8) -> str:
    text: bytes = key.private_bytes(Encoding.PEM, form, NoEncryption())
    return text.decode()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(json.dumps(JWK), id="jwk"),
        pytest.param(json.dumps(JWK, indent=2) + "\n", id="as-step-writes-it"),
        pytest.param(json.dumps({k: v for k, v in JWK.items() if k != "kid"}), id="jwk-without-a-kid"),
        pytest.param(pem(KEY.key), id="pkcs8"),
        pytest.param(pem(KEY.key, PrivateFormat.TraditionalOpenSSL), id="sec1"),
    ],
)
def test_each_form_of_a_key_signs_as_the_ca_knows_it(text: str) -> None:
    """JWK and PEM of one key make tokens that its public key verifies, with the key id of the CA's provisioner."""
    token = ProvisionerKey(text).sign({"sub": "web1.example"})
    verify_jws(token, KEY.key.public_key())
    header, claims = parse_jws(token)
    assert header == {"alg": "ES256", "kid": KEY.key_id, "typ": "JWT"}
    assert claims == {"sub": "web1.example"}
    with pytest.raises(InvalidSignature):
        verify_jws(token, SandboxKey.generate().key.public_key())


def test_a_key_id_of_its_own_goes_first() -> None:
    """What the JWK calls itself is what its provisioner at the CA is called."""
    token = ProvisionerKey(json.dumps({**JWK, "kid": "bootstrap-2026"})).sign({})
    assert parse_jws(token)[0]["kid"] == "bootstrap-2026"


def test_a_p384_key_signs_with_es384() -> None:
    """The algorithm is the curve's, and the signature of its length."""
    token = ProvisionerKey(pem(ec.generate_private_key(ec.SECP384R1()))).sign({})
    assert parse_jws(token)[0]["alg"] == "ES384"
    assert len(token.rpartition(".")[2]) == len(b64url(bytes(96)))


def _changed(**members: Any) -> str:
    return json.dumps({k: v for k, v in {**JWK, **members}.items() if v is not None})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(lambda: "", "isn't|not a private key|none", id="empty"),
        pytest.param(lambda: "s3cret", "not a private key", id="a-password"),
        pytest.param(lambda: "{s3cret", "begins like JSON", id="broken-json"),
        pytest.param(lambda: "[" * 20_000, "too long", id="endless"),
        pytest.param(lambda: _changed(d=None), "is a public key", id="public-jwk"),
        pytest.param(lambda: _changed(kty="OKP", crv="Ed25519"), "must be EC", id="okp"),
        pytest.param(lambda: _changed(kty="RSA"), "must be EC", id="rsa-jwk"),
        pytest.param(lambda: _changed(crv="P-521"), "P-256 or P-384", id="another-curve"),
        pytest.param(lambda: _changed(crv=["P-256"]), "P-256 or P-384", id="a-list-for-a-curve"),
        pytest.param(lambda: _changed(d="!!"), "base64url", id="d-of-other-letters"),
        pytest.param(lambda: _changed(d=7), "must be 32 octets|base64url", id="d-a-number"),
        pytest.param(lambda: _changed(d=b64url(bytes(31))), "must be 32 octets", id="d-too-short"),
        pytest.param(lambda: _changed(d=b64url(bytes(32))), "out of range", id="d-is-zero"),
        pytest.param(lambda: _changed(d=SandboxKey.generate().private_jwk["d"]), "belongs to another", id="d-of-another"),
        pytest.param(lambda: _changed(kid=7), "`kid`", id="kid-a-number"),
        pytest.param(lambda: json.dumps({"keys": [JWK]}), "a set of keys", id="jwk-set"),
        pytest.param(lambda: json.dumps({"protected": "e30", "ciphertext": "AA"}), "is encrypted", id="jwe-json"),
        pytest.param(lambda: "eyJhbGciOiJQQkVTMiJ9.a.b.c.d", "is encrypted", id="jwe-compact"),
        pytest.param(lambda: pem(rsa.generate_private_key(65537, 2048)), "is an RSA key", id="rsa"),
        pytest.param(lambda: pem(ed25519.Ed25519PrivateKey.generate()), "unsupported kind", id="ed25519"),
    ],
)  # fmt: skip
def test_what_is_no_such_key_is_told_without_a_word_of_it(text: Callable[[], str], said: str) -> None:
    """Each wrong secret has its own message, and none repeats the secret."""
    secret = text()
    with pytest.raises(ProvisionerKeyError, match=said) as caught:
        ProvisionerKey(secret)
    for private in ("s3cret", JWK["d"]):
        assert private not in str(caught.value)


def test_a_key_is_never_shown() -> None:
    """Neither its text nor its members are in what a log would print of it."""
    assert JWK["d"] not in repr(ProvisionerKey(json.dumps(JWK)))
