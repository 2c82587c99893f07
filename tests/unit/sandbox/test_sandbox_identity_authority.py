"""The sandbox's own identity CA under a clock that tests move: what the contract suite can't wait for."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.sandbox.identity_authority import IdentityAuthority
from certplane.sandbox.identity_pki import IdentityPki, IdentityRules, certificate_request
from certplane.sandbox.identity_requests import RefusedError, moment
from certplane.sandbox.ports import PROVISIONER
from certplane.sandbox.tokens import TokenClaims, mint_jwk_token
from tests.fakes.clock import ManualClock

NAME = "web1.example"
PKI = IdentityPki()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def authority(clock: ManualClock, **rules: object) -> IdentityAuthority:
    return IdentityAuthority(PKI, IdentityRules(**rules), clock, ["127.0.0.1"])  # type: ignore[arg-type]


def body(clock: ManualClock, key: object = None, **members: object) -> bytes:
    claims = TokenClaims(PROVISIONER, "https://127.0.0.1/sign", NAME, clock.now(), timedelta(minutes=5))
    key = key or ec.generate_private_key(ec.SECP256R1())
    csr = certificate_request(key, NAME, [NAME]).public_bytes(Encoding.PEM).decode()  # type: ignore[arg-type]
    return json.dumps({"csr": csr, "ott": mint_jwk_token(PKI.jwk_keys[PROVISIONER], claims), **members}).encode()


@pytest.mark.parametrize(
    ("later", "good"),
    [
        pytest.param(timedelta(minutes=5), True, id="at-its-end"),
        pytest.param(timedelta(minutes=5, seconds=59), True, id="within-the-leeway"),
        pytest.param(timedelta(minutes=6, seconds=1), False, id="after-the-leeway"),
    ],
)
def test_a_token_ends_a_minute_after_its_expiry(clock: ManualClock, later: timedelta, good: bool) -> None:
    """Clocks may differ by a minute."""
    ca, request = authority(clock), body(clock)
    clock.advance(later)
    if good:
        assert len(ca.sign(request)) == 2
    else:
        with pytest.raises(RefusedError) as refused:
            ca.sign(request)
        assert refused.value.status == 401


def test_an_identity_lives_as_long_as_it_did(clock: ManualClock) -> None:
    """However often it is renewed, its length of life stays, from the moment of renewal."""
    ca = authority(clock, lifetime=timedelta(hours=2))
    leaf = ca.sign(body(clock))[0]
    for _ in range(3):
        clock.advance(timedelta(minutes=90))
        leaf = ca.renew(leaf)[0]
        assert leaf.not_valid_before_utc == clock.now() - timedelta(minutes=1)
        assert leaf.not_valid_after_utc == clock.now() + timedelta(hours=2)


def test_an_identity_isnt_renewed_before_it_is_valid(clock: ManualClock) -> None:
    """A `notBefore` in the future must come first."""
    ca = authority(clock)
    leaf = ca.sign(body(clock, notBefore="1h", notAfter="2h"))[0]
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(hours=2)
    with pytest.raises(RefusedError):
        ca.renew(leaf)
    clock.advance(timedelta(hours=1))
    ca.renew(leaf)


@pytest.mark.parametrize("allowed", [True, False])
def test_expiry_ends_renewal_unless_allowed(clock: ManualClock, allowed: bool) -> None:
    """step-ca puts no bound on how long ago it expired."""
    ca = authority(clock, renewal_after_expiry=allowed)
    leaf = ca.sign(body(clock))[0]
    clock.advance(timedelta(days=400))
    if allowed:
        assert ca.renew(leaf)[0].public_key() == leaf.public_key()
    else:
        with pytest.raises(RefusedError, match="certificate expired on 2026-11-24 12:00:00"):
            ca.renew(leaf)


def test_small_rsa_keys_are_refused(clock: ManualClock) -> None:
    """An RSA key below 2048 bits gets no identity."""
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 (that is the point)
    with pytest.raises(RefusedError, match="at least 2048 bits"):
        authority(clock).sign(body(clock, key=small))


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", timedelta(seconds=90)),
        ("1h30m", timedelta(minutes=90)),
        ("-1.5h", timedelta(minutes=-90)),
        ("300ms", timedelta(milliseconds=300)),
        ("", None),
        (None, None),
    ],
)
def test_reads_go_durations(text: str | None, span: timedelta | None) -> None:
    """As Go's time.ParseDuration does."""
    assert moment(text) == span


@pytest.mark.parametrize("text", ["soon", "1", "1d", "2026-11-23", "2026-11-23T12:00:00", 5])
def test_refuses_other_moments(text: object) -> None:
    """Neither a duration nor RFC 3339 with an offset."""
    with pytest.raises(RefusedError, match="error decoding json"):
        moment(text)


def test_serials_are_never_reused(clock: ManualClock) -> None:
    """Each certificate has a serial of its own."""
    ca = authority(clock)
    leaf = ca.sign(body(clock))[0]
    serials = {leaf.serial_number, *(ca.renew(leaf)[0].serial_number for _ in range(5))}
    assert len(serials) == 6
    assert isinstance(leaf, x509.Certificate)
