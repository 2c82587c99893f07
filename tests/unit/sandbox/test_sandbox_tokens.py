"""One-time tokens: the shape that step-ca expects (the contract suite shows that it takes them)."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.tokens import (
    ProvisionerKey,
    TokenClaims,
    csr_fingerprint,
    mint_jwk_token,
    mint_renewal_token,
    mint_x5c_token,
    parse_jws,
    verify_jws,
)

ISSUED = datetime(2026, 11, 23, 12, tzinfo=UTC)
CLAIMS = TokenClaims(
    issuer="certplane",
    audience="https://127.0.0.1:9000/1.0/sign",
    subject="web1.example",
    issued_at=ISSUED,
    lifetime=timedelta(minutes=5),
)


def test_a_jwk_token_has_the_claims_and_the_key_id() -> None:
    """The header names the key, the payload has what the CA looks at, and the signature is the key's."""
    key = ProvisionerKey.generate()
    token = mint_jwk_token(key, CLAIMS)
    header, payload = parse_jws(token)
    assert header == {"alg": "ES256", "kid": key.key_id, "typ": "JWT"}
    token_id = payload.pop("jti")
    assert len(token_id) == 64
    start = int(ISSUED.timestamp())
    assert payload == {
        "iss": "certplane",
        "aud": "https://127.0.0.1:9000/1.0/sign",
        "sub": "web1.example",
        "iat": start,
        "nbf": start,
        "exp": start + 300,
    }
    verify_jws(token, key.key.public_key())
    with pytest.raises(InvalidSignature):
        verify_jws(token, ec.generate_private_key(ec.SECP256R1()).public_key())


def test_optional_claims_are_there_when_asked_for() -> None:
    """Names, the root's fingerprint, the CSR's fingerprint and a chosen id are claims of their own."""
    claims = TokenClaims(
        issuer="certplane",
        audience="x",
        subject="web1.example",
        issued_at=ISSUED,
        lifetime=timedelta(minutes=5),
        sans=("web1.example", "spiffe://example/host/web1"),
        root_fingerprint="ab" * 32,
        csr_fingerprint=csr_fingerprint(b"csr"),
        token_id="chosen",
    )
    payload = claims.payload()
    assert payload["sans"] == ["web1.example", "spiffe://example/host/web1"]
    assert (payload["sha"], payload["jti"]) == ("ab" * 32, "chosen")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"csr").digest()).rstrip(b"=").decode()
    assert payload["cnf"] == {"x5rt#S256": digest}


def test_two_tokens_are_never_the_same() -> None:
    """Each token has an id of its own, so that using one burns no other."""
    key = ProvisionerKey.generate()
    assert mint_jwk_token(key, CLAIMS) != mint_jwk_token(key, CLAIMS)


def test_the_key_id_is_the_thumbprint() -> None:
    """RFC 7638: SHA-256 over the required members in order, without spaces."""
    key = ProvisionerKey.generate()
    members = {name: key.public_jwk[name] for name in ("crv", "kty", "x", "y")}
    digest = hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest()
    assert key.key_id == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    assert set(key.private_jwk) - set(key.public_jwk) == {"d"}


def test_tokens_of_certificate_holders_carry_the_chain() -> None:
    """`x5c` for a provisioner, `x5cInsecure` for a renewal; both are signed by the certificate's key."""
    intermediate = CertificateAuthority.root("Root").intermediate("Intermediate")
    holder = intermediate.issue("web1.example", ["web1.example"])
    chain = [base64.b64encode(one.public_bytes(Encoding.DER)).decode() for one in holder.chain]
    renewal = mint_renewal_token(holder, "https://127.0.0.1/renew", ISSUED, timedelta(minutes=5))
    for token, member in ((mint_x5c_token(holder, CLAIMS), "x5c"), (renewal, "x5cInsecure")):
        assert parse_jws(token)[0][member] == chain
        verify_jws(token, holder.key.public_key())
    payload = parse_jws(renewal)[1]
    assert (payload["iss"], payload["sub"]) == ("step-ca-client/1.0", "web1.example")


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c.d", "!!.!!.!!", "bnVsbA.bnVsbA.x"])
def test_what_isnt_a_token(text: str) -> None:
    """Anything but two JSON objects and a signature is bad input."""
    with pytest.raises(ValueError):
        parse_jws(text)


def test_a_signature_of_another_length_is_refused() -> None:
    """Only 64 bytes are an ES256 signature."""
    key = ProvisionerKey.generate()
    token = mint_jwk_token(key, CLAIMS).rpartition(".")[0] + ".AAAA"
    with pytest.raises(ValueError, match="64 bytes"):
        verify_jws(token, key.key.public_key())


def test_the_provisioner_key_stays_out_of_a_repr() -> None:
    """A failing test must not print a key."""
    scalar = ProvisionerKey.generate()
    assert str(scalar.key.private_numbers().private_value) not in repr(scalar)
