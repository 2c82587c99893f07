"""Signed requests: what is made by hand is what `acme` and `josepy` make, and read."""

from __future__ import annotations

import hashlib

import pytest
from acme import challenges, jws
from hypothesis import given
from hypothesis import strategies as st
from josepy.json_util import decode_b64jose, encode_b64jose

from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_resources import AcmeAuthorization
from certplane.broker.issuers.acme_signing import base64url, signed
from certplane.pki.keys import KeyType, generate_private_key, private_key_pem

KEYS = {kind: AccountKey.from_pem(private_key_pem(generate_private_key(kind)), "account.key") for kind in KeyType}
urls = st.text("abcdefghijklmnopqrstuvwxyz0123456789-._~/?=&%", max_size=60).map("https://ca.test/".__add__)


@given(
    kind=st.sampled_from(list(KEYS)),
    payload=st.binary(max_size=300),
    nonce=st.binary(min_size=1, max_size=40),
    url=urls,
    account=st.just("") | urls,
)
def test_signed_as_acme_signs(kind: KeyType, payload: bytes, nonce: bytes, url: str, account: str) -> None:
    """The header is the one that `acme.jws` makes, all of it protected, and the signature is good over it."""
    key = KEYS[kind]
    ours = jws.JWS.json_loads(signed(payload, key, url=url, nonce=encode_b64jose(nonce), account_url=account))
    theirs = jws.JWS.sign(payload, key=key.jwk, alg=key.algorithm, nonce=nonce, url=url, kid=account or None)
    assert ours.payload == payload
    assert ours.signature.combined == theirs.signature.combined
    assert ours.signature.header == jws.Header()
    assert ours.verify(key.jwk.public_key())
    assert not jws.JWS(payload=payload + b".", signatures=ours.signatures).verify(key.jwk.public_key())


@given(octets=st.binary(max_size=100))
def test_base64url(octets: bytes) -> None:
    """The URL's alphabet, without padding."""
    assert base64url(octets) == encode_b64jose(octets)


@given(kind=st.sampled_from(list(KEYS)), token=st.binary(min_size=16, max_size=60))
def test_challenge_as_acme_answers(kind: KeyType, token: bytes) -> None:
    """Key authorization and TXT record are the ones that `acme.challenges` makes."""
    key = KEYS[kind]
    theirs = challenges.DNS01(token=token)
    offered = {"type": "dns-01", "url": "https://ca.test/c", "token": encode_b64jose(token)}
    body = {"status": "pending", "identifier": {"value": "www.example.com"}, "challenges": [offered]}
    ours = AcmeAuthorization.parse("https://ca.test/a", body, key.thumbprint).challenge
    assert ours is not None
    assert ours.key_authorization == theirs.key_authorization(key.jwk)
    assert ours.record_value == theirs.validation(key.jwk)
    assert ours.record_name == theirs.validation_domain_name("www.example.com")
    assert decode_b64jose(ours.record_value) == hashlib.sha256(ours.key_authorization.encode()).digest()


@pytest.mark.parametrize("kind", list(KEYS))
def test_key_that_is_sent_has_no_secret(kind: KeyType) -> None:
    """A request without an account carries the public key, and nothing more of it."""
    shown = KEYS[kind].public_jwk
    assert set(shown) in ({"kty", "crv", "x", "y"}, {"kty", "n", "e"})
