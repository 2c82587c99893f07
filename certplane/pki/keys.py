"""Private keys: which kinds there are, how they are made, and which public keys are refused.

Kinds are those that public CAs sign for TLS: P-256, P-384, RSA of 2048, 3072 and 4096 bits. A public key is checked as
the CA/Browser Forum's Baseline Requirements 6.1.6 ask and public CAs do, so that a weak key ends here instead of
costing an order. A list of known-compromised keys (Debian 2006 to 2008, published test keys) is not shipped: the CA
has one, and keys that were revoked as compromised here are the store's key ledger's.
"""

from __future__ import annotations

import hashlib
import math
from enum import StrEnum

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PublicKeyTypes

from certplane.errors import CertplaneError, Reason, RefusalError, Violation
from certplane.pki.pem import PemError, decode_pem, has_private_key, pem_text

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class KeyType(StrEnum):
    """Kinds of keys, by their names in the configuration (`key_type`, docs/configuration.md)."""

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"


class PrivateKeyError(CertplaneError):
    """Bytes are not a private key that can be used here. The message never holds any of them."""


_CURVES: dict[str, KeyType] = {"secp256r1": KeyType.EC_P256, "secp384r1": KeyType.EC_P384}
_RSA_SIZES: dict[int, KeyType] = {2048: KeyType.RSA_2048, 3072: KeyType.RSA_3072, 4096: KeyType.RSA_4096}
_RSA_EXPONENT = 65537

_MIN_EXPONENT, _MAX_EXPONENT = 65537, 1 << 31
"""The Baseline Requirements 6.1.6 allow more, but the software of most public CAs reads no exponent of over 31 bits."""

_KEY_LABELS = (
    "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY",
    "EC PARAMETERS",  # `openssl ecparam -genkey` writes them in front
    "CERTIFICATE",  # a combined file, as HAProxy reads it
)  # fmt: skip
_MAX_KEY_BLOCKS, _MAX_KEY_LENGTH = 20, 64 * 1024

_FERMAT_ROUNDS = 12
"""Factors a modulus whose primes differ by less than about 2^(bits/4 + 4): the broken generators of CVE-2022-26320 need
one round. A CA does a hundred; each costs 3 us here and the CA has the last word."""


def _primes(below: int) -> list[int]:
    return [n for n in range(2, below) if all(n % d for d in range(2, math.isqrt(n) + 1))]


_SMALL_PRIMES_PRODUCT = math.prod(_primes(752))
"""Boulder's list ends at 751."""


def _powers_of_65537(prime: int) -> frozenset[int]:
    powers = {1}
    power = _RSA_EXPONENT % prime
    while power not in powers:
        powers.add(power)
        power = power * _RSA_EXPONENT % prime
    return frozenset(powers)


_ROCA_GROUPS = tuple((prime, group) for prime in _primes(168)[1:] if len(group := _powers_of_65537(prime)) < prime - 1)
"""CVE-2017-15361: the broken library's primes are k*M + (65537^a mod M), M the product of the first primes, so its
moduli are powers of 65537 modulo each of them. For the shortest keys M ends at 167, so every size is caught; primes
where 65537 generates everything tell nothing. A sound modulus has the fingerprint with probability 2^-27.8."""


def generate_private_key(key_type: KeyType) -> PrivateKey:
    """A new key from the operating system's randomness."""
    match key_type:
        case KeyType.EC_P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyType.EC_P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyType.RSA_2048 | KeyType.RSA_3072 | KeyType.RSA_4096:
            return rsa.generate_private_key(_RSA_EXPONENT, int(key_type.removeprefix("rsa-")))


def private_key_pem(key: PrivateKey) -> bytes:
    """The key as PKCS#8 PEM, unencrypted (RFC 5958)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_private_key(pem: bytes) -> PrivateKey:
    """The key in a PEM: PKCS#8, SEC 1 or PKCS#1. Certificates and EC parameters may stand beside it.

    Raises:
        PrivateKeyError: not a key, an encrypted one, or of a kind that isn't in `KeyType`.
    """
    keys = []
    try:
        text = pem_text(pem)
        if has_private_key(text):
            blocks = decode_pem(text, *_KEY_LABELS, max_blocks=_MAX_KEY_BLOCKS, max_length=_MAX_KEY_LENGTH)
            keys = [(label, der) for label, der in blocks if label.endswith("PRIVATE KEY")]
    except PemError as error:
        raise PrivateKeyError(f"not a private key in PEM: it {error}") from None
    if len(keys) != 1:
        raise PrivateKeyError(f"not a private key in PEM: it holds {f'{len(keys)} of them' if keys else 'none'}")
    ((label, der),) = keys
    if label == "ENCRYPTED PRIVATE KEY":
        raise PrivateKeyError("the private key is encrypted; store it unencrypted with mode 0600")
    try:
        key = serialization.load_der_private_key(der, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause may quote the key's bytes: it is cut off on purpose.
        raise PrivateKeyError("not a private key in PEM: its content is no PKCS#8, SEC 1 or PKCS#1 key") from None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return key
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size in _RSA_SIZES:
        return key
    raise PrivateKeyError(f"the private key is of an unsupported kind; use one of {', '.join(KeyType)}")


def public_key_sha256(public_key: CertificatePublicKeyTypes | PublicKeyTypes) -> str:
    """SHA-256 over the SubjectPublicKeyInfo, DER, in hexadecimal: what names a key everywhere in Certplane."""
    spki = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def check_public_key(public_key: CertificatePublicKeyTypes | PublicKeyTypes, *, field: str = "csr_pem") -> KeyType:
    """The key's kind, if it is one that a public CA signs and isn't known to be weak.

    Args:
        public_key: A key as loaded, which `cryptography` does not judge.
        field: The request's field that a refusal names.

    Raises:
        RefusalError: KEY_WEAK, saying what is wrong with the key.
    """
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        key_type = _CURVES.get(public_key.curve.name)  # the loader has checked that the point is on the curve
        if key_type is None:
            raise _weak(field, f"the curve {public_key.curve.name} is not supported")
        return key_type
    if isinstance(public_key, rsa.RSAPublicKey):
        numbers = public_key.public_numbers()
        return _check_rsa(numbers.n, numbers.e, field)
    kind = type(public_key).__name__.removesuffix("PublicKey").lstrip("_")
    raise _weak(field, f"keys of the kind {kind} are not supported")


def _check_rsa(modulus: int, exponent: int, field: str) -> KeyType:
    key_type = _RSA_SIZES.get(modulus.bit_length())
    if key_type is None:
        raise _weak(field, f"an RSA modulus of {modulus.bit_length()} bits is not supported")
    if not _MIN_EXPONENT <= exponent < _MAX_EXPONENT or exponent % 2 == 0:
        raise _weak(field, "the RSA exponent must be odd and from 65537 to 2^31 - 1; 65537 is the usual one")
    if math.gcd(modulus, _SMALL_PRIMES_PRODUCT) != 1:
        raise _weak(field, "the RSA modulus has a small factor")
    if all(modulus % prime in group for prime, group in _ROCA_GROUPS):
        raise _weak(field, "the RSA modulus has the fingerprint of a broken generator (CVE-2017-15361)")
    if _has_close_factors(modulus):
        raise _weak(field, "the RSA modulus has two factors so close that it can be factored")
    return key_type


def _has_close_factors(modulus: int) -> bool:
    """Fermat's method, a few rounds."""
    a = math.isqrt(modulus)
    if a * a == modulus:
        return True
    for _ in range(_FERMAT_ROUNDS):
        a += 1
        remainder = a * a - modulus
        if math.isqrt(remainder) ** 2 == remainder:
            return True
    return False


def _weak(field: str, problem: str) -> RefusalError:
    message = f"{problem}; use one of {', '.join(KeyType)}"
    return RefusalError(Reason.KEY_WEAK, message, violations=[Violation(field, message)])
