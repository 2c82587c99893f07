"""The private key of a JWK provisioner of step-ca, and the signatures that the CA knows it by.

A token is a compact JWS (RFC 7515 7.1) with the key's own algorithm (RFC 7518 3.4). step-ca finds the provisioner by
the claim `iss` and the header's `kid`, which is the key's RFC 7638 thumbprint unless its JWK says otherwise.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from certplane.pki.keys import PrivateKeyError, load_private_key

HOW_TO_MAKE: Final = (
    "put an unencrypted EC key of the provisioner there, as JWK or PEM (docs/configuration.md, `bootstrap.key_secret`)"
)
_MOST_TEXT: Final = 16 * 1024


class ProvisionerKeyError(ValueError):
    """A secret is no such key; the text quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class _Curve:
    """What JOSE says of a curve (RFC 7518 3.1, 6.2.1.1)."""

    name: str
    algorithm: str
    curve: ec.EllipticCurve
    digest: hashes.HashAlgorithm
    octets: int


_CURVES: Final = (
    _Curve("P-256", "ES256", ec.SECP256R1(), hashes.SHA256(), 32),
    _Curve("P-384", "ES384", ec.SECP384R1(), hashes.SHA384(), 48),
)


class ProvisionerKey:
    """A key that signs tokens. Never shown: its text is that of any object."""

    def __init__(self, text: str) -> None:
        """Read the secret: one JWK in JSON, or one key in PEM.

        Raises:
            ProvisionerKeyError: it is none that this can use.
        """
        if len(text) > _MOST_TEXT:
            raise ProvisionerKeyError("is far too long for a key")
        text = text.strip()
        self._key, name = _of_jwk(text) if text.startswith("{") else (_of_pem(text), "")
        self._curve: Final = next(each for each in _CURVES if each.curve.name == self._key.curve.name)
        self.key_id: Final = name or self._thumbprint()
        """The `kid` of its tokens."""

    def sign(self, claims: Mapping[str, Any]) -> str:
        """The token that says so."""
        header = {"alg": self._curve.algorithm, "kid": self.key_id, "typ": "JWT"}
        signed = ".".join(_b64url(_json(part)) for part in (header, claims))
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(self._curve.digest)))
        octets = self._curve.octets
        return f"{signed}.{_b64url(r.to_bytes(octets, 'big') + s.to_bytes(octets, 'big'))}"

    def _thumbprint(self) -> str:
        """RFC 7638 3.2: the members that an EC key must have, in the order of their names."""
        numbers, octets = self._key.public_key().public_numbers(), self._curve.octets
        members = {
            "crv": self._curve.name,
            "kty": "EC",
            "x": _b64url(numbers.x.to_bytes(octets, "big")),
            "y": _b64url(numbers.y.to_bytes(octets, "big")),
        }
        return _b64url(hashlib.sha256(_json(members)).digest())


def _of_pem(text: str) -> ec.EllipticCurvePrivateKey:
    if text.count(".") == 4 and not text.startswith("-----"):  # RFC 7516 3.1: a compact JWE has five parts
        raise _encrypted()
    try:
        key = load_private_key(text.encode())
    except PrivateKeyError as error:
        raise ProvisionerKeyError(f"can't be used: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ProvisionerKeyError("is an RSA key; tokens are signed with an EC key, P-256 or P-384")
    return key


def _of_jwk(text: str) -> tuple[ec.EllipticCurvePrivateKey, str]:
    """The key, and the id that it gives itself."""
    try:
        members = json.loads(text)
    except (ValueError, RecursionError):
        # The cause may quote the text: it is cut off on purpose.
        raise ProvisionerKeyError("is neither a key in PEM nor a JWK: it begins like JSON and isn't") from None
    if "ciphertext" in members:
        raise _encrypted()
    if "keys" in members:
        raise ProvisionerKeyError("is a set of keys; one JWK is wanted")
    if members.get("kty") != "EC":
        raise ProvisionerKeyError("isn't an EC key: the JWK's `kty` must be EC")
    curve = next((each for each in _CURVES if each.name == members.get("crv")), None)
    if curve is None:
        raise ProvisionerKeyError("has a curve that isn't supported: the JWK's `crv` must be P-256 or P-384")
    if "d" not in members:
        raise ProvisionerKeyError("is a public key: the JWK has no `d`")
    scalar, x, y = (_number(members, name, curve.octets) for name in ("d", "x", "y"))
    try:
        key = ec.derive_private_key(scalar, curve.curve)
    except ValueError:
        raise ProvisionerKeyError("isn't a key: the JWK's `d` is out of range") from None
    public = key.public_key().public_numbers()
    if (public.x, public.y) != (x, y):
        raise ProvisionerKeyError("isn't one key: the JWK's `d` belongs to another `x` and `y`")
    name = members.get("kid", "")
    if not isinstance(name, str) or not name.isprintable():
        raise ProvisionerKeyError("isn't a key: the JWK's `kid` must be a text")
    return key, name


def _number(members: Mapping[str, Any], name: str, octets: int) -> int:
    """A coordinate, or the private scalar (RFC 7518 6.2)."""
    text = str(members.get(name, ""))
    try:
        value = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ProvisionerKeyError(f"isn't a key: the JWK's `{name}` isn't base64url") from None
    if len(value) != octets:
        raise ProvisionerKeyError(f"isn't a key: the JWK's `{name}` must be {octets} octets")
    return int.from_bytes(value, "big")


def _encrypted() -> ProvisionerKeyError:
    return ProvisionerKeyError("is encrypted: decrypt it with `step crypto jwe decrypt`")


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _b64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
