"""The token by which an expired identity asks for its renewal: a JWS signed with the identity's own key.

step-ca checks it as of the end of the certificate, and only where the provisioner has `allowRenewalAfterExpiry`. The
certificate travels in the header `x5cInsecure`, since an expired one offered in TLS would break the handshake.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_LIFETIME = timedelta(minutes=5)
_EC_ALGORITHMS: dict[str, tuple[str, hashes.HashAlgorithm]] = {
    "secp256r1": ("ES256", hashes.SHA256()),
    "secp384r1": ("ES384", hashes.SHA384()),
}


def renewal_token(chain: Sequence[x509.Certificate], key: SigningKey, *, audience: str, now: datetime) -> str:
    """The bearer token for `POST /renew`.

    Args:
        chain: the expired certificate and its intermediates, leaf first.
        key: the certificate's key: P-256, P-384 or RSA.
        audience: the CA's renewal URL by a name that the CA knows as its own; the port doesn't matter.
        now: start of its five minutes.
    """
    subject = chain[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    start = int(now.timestamp())
    claims = {
        "iss": "step-ca-client/1.0",
        "aud": audience,
        "sub": str(subject[0].value) if subject else "",
        "jti": secrets.token_hex(32),
        "iat": start,
        "nbf": start,
        "exp": int((now + _LIFETIME).timestamp()),
    }
    certificates = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode() for certificate in chain]
    return _sign({"typ": "JWT", "x5cInsecure": certificates}, claims, key)


def _sign(header: dict[str, Any], claims: dict[str, Any], key: SigningKey) -> str:
    algorithm, digest = (
        ("RS256", hashes.SHA256()) if isinstance(key, rsa.RSAPrivateKey) else _EC_ALGORITHMS[key.curve.name]
    )
    signed = f"{_segment({'alg': algorithm, **header})}.{_segment(claims)}".encode()
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(signed, padding.PKCS1v15(), digest)
    else:
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(digest)))
        size = (key.curve.key_size + 7) // 8  # RFC 7518 3.4: r || s, each as long as the curve's order
        signature = r.to_bytes(size, "big") + s.to_bytes(size, "big")
    return f"{signed.decode()}.{_b64url(signature)}"


def _segment(value: dict[str, Any]) -> str:
    return _b64url(json.dumps(value, separators=(",", ":")).encode())


def _b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
