"""One-time tokens of step-ca, minted in Python.

A token is a JWS (RFC 7515, compact) with ES256. The claims and what the server makes of them are those of step-ca 0.30
(`authority/provisioner/jwk.go` and `x5c.go`). Nothing here checks a token: that is the CA's work.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certplane.sandbox.certificates import Credential

_COORDINATE_BYTES = 32  # P-256
_COMMON_NAME = NameOID.COMMON_NAME


@dataclass(frozen=True, slots=True)
class ProvisionerKey:
    """The signing key of a JWK provisioner; whoever holds it can make identities."""

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def generate(cls) -> ProvisionerKey:
        """A new P-256 key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @property
    def public_jwk(self) -> dict[str, str]:
        """The public key as JWK (RFC 7517) with the members that step-ca wants."""
        return {**_ec_members(self.key.public_key()), "use": "sig", "alg": "ES256", "kid": self.key_id}

    @property
    def private_jwk(self) -> dict[str, str]:
        """The key pair as JWK: what `step ca token --key` reads."""
        scalar = self.key.private_numbers().private_value.to_bytes(_COORDINATE_BYTES, "big")
        return {**self.public_jwk, "d": b64url(scalar)}

    @property
    def key_id(self) -> str:
        """The JWK thumbprint (RFC 7638), step's own choice of key id."""
        canonical = json.dumps(_ec_members(self.key.public_key()), sort_keys=True, separators=(",", ":"))
        return b64url(hashlib.sha256(canonical.encode()).digest())


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """What a one-time token says.

    Attributes:
        issuer: the provisioner's name.
        audience: URL of the call it is for, as the CA knows itself: `https://<a name in its dnsNames>/1.0/sign`.
        subject: the common name the CSR may have; for a revocation the serial, in decimal.
        issued_at: also the start of validity. A CA that started later than this refuses the token.
        lifetime: until expiry.
        sans: the names of the certificate; the CA takes the subject when there are none.
        root_fingerprint: SHA-256 of the root, hex, for the client; left out when None.
        csr_fingerprint: ties the token to one CSR (claim `cnf`); see `csr_fingerprint()`.
        token_id: what the CA remembers to refuse a second use; random when None.
    """

    issuer: str
    audience: str
    subject: str
    issued_at: datetime
    lifetime: timedelta
    sans: Sequence[str] = ()
    root_fingerprint: str | None = None
    csr_fingerprint: str | None = None
    token_id: str | None = None

    def payload(self) -> dict[str, Any]:
        """The claims as JSON members."""
        start = int(self.issued_at.timestamp())
        members: dict[str, Any] = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": self.subject,
            "iat": start,
            "nbf": start,
            "exp": int((self.issued_at + self.lifetime).timestamp()),
            "jti": self.token_id or secrets.token_hex(32),
        }
        if self.sans:
            members["sans"] = list(self.sans)
        if self.root_fingerprint is not None:
            members["sha"] = self.root_fingerprint
        if self.csr_fingerprint is not None:
            members["cnf"] = {"x5rt#S256": self.csr_fingerprint}
        return members


def mint_jwk_token(provisioner: ProvisionerKey, claims: TokenClaims) -> str:
    """A token for a JWK provisioner."""
    header = {"alg": "ES256", "kid": provisioner.key_id, "typ": "JWT"}
    return sign_jws(header, claims.payload(), provisioner.key)


def mint_x5c_token(holder: Credential, claims: TokenClaims) -> str:
    """A token for an X5C provisioner: signed by the key of a certificate, which travels along in the header."""
    header = {"alg": "ES256", "typ": "JWT", "x5c": _x5c(holder)}
    return sign_jws(header, claims.payload(), holder.key)


def mint_renewal_token(holder: Credential, audience: str, issued_at: datetime, lifetime: timedelta) -> str:
    """The bearer token that renews a certificate, also an expired one, by its own key.

    Its header is `x5cInsecure`, since the chain in it needn't be valid any more.
    """
    subject = holder.certificate.subject.get_attributes_for_oid(_COMMON_NAME)
    claims = TokenClaims(
        issuer="step-ca-client/1.0",
        audience=audience,
        subject=str(subject[0].value) if subject else "",
        issued_at=issued_at,
        lifetime=lifetime,
    )
    return sign_jws({"alg": "ES256", "typ": "JWT", "x5cInsecure": _x5c(holder)}, claims.payload(), holder.key)


def csr_fingerprint(csr_der: bytes) -> str:
    """The value of the claim `cnf` for a CSR in DER."""
    return b64url(hashlib.sha256(csr_der).digest())


def sign_jws(header: Mapping[str, Any], payload: Mapping[str, Any], key: ec.EllipticCurvePrivateKey) -> str:
    """A compact JWS with ES256; the signature is `r || s` (RFC 7518 section 3.4)."""
    signed = b".".join(b64url(json.dumps(part, separators=(",", ":")).encode()).encode() for part in (header, payload))
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
    signature = r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")
    return f"{signed.decode()}.{b64url(signature)}"


def parse_jws(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and payload of a compact JWS, unverified.

    Raises:
        ValueError: it isn't three base64url parts of which the first two are JSON objects.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("a compact JWS has three parts")
    header, payload = (json.loads(b64url_decode(part)) for part in parts[:2])
    if not isinstance(header, dict) or not isinstance(payload, dict):
        raise ValueError("header and payload must be JSON objects")  # noqa: TRY004 (bad input, not misuse)
    return header, payload


def verify_jws(token: str, key: ec.EllipticCurvePublicKey) -> None:
    """Check the ES256 signature of a compact JWS.

    Raises:
        cryptography.exceptions.InvalidSignature: it isn't by `key`.
        ValueError: it isn't a compact JWS with a 64 byte signature.
    """
    signed, _, signature = token.rpartition(".")
    raw = b64url_decode(signature)
    if len(raw) != 2 * _COORDINATE_BYTES:
        raise ValueError("an ES256 signature has 64 bytes")
    r, s = (int.from_bytes(half, "big") for half in (raw[:_COORDINATE_BYTES], raw[_COORDINATE_BYTES:]))
    key.verify(encode_dss_signature(r, s), signed.encode(), ec.ECDSA(hashes.SHA256()))


def b64url(data: bytes) -> str:
    """Unpadded base64url."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def b64url_decode(text: str) -> bytes:
    """The reverse of `b64url`.

    Raises:
        ValueError: it has other characters or an impossible length.
    """
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _x5c(holder: Credential) -> list[str]:
    return [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode() for certificate in holder.chain]


def _ec_members(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    numbers = key.public_numbers()
    x, y = (b64url(value.to_bytes(_COORDINATE_BYTES, "big")) for value in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y}
