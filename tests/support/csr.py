"""CSRs that no library would make: DER put together by hand, signed for real wherever the key can sign.

`craft` builds a PKCS#10 structure (RFC 2986 4) from parts that a test bends one at a time.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Sequence
from functools import cache
from math import gcd, prod

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
SAN = "2.5.29.17"
ECDSA_SHA256 = "1.2.840.10045.4.3.2"
RSA_SHA256 = "1.2.840.113549.1.1.11"


def tlv(tag: int, *parts: bytes) -> bytes:
    """One element, definite length."""
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def sequence(*parts: bytes) -> bytes:
    return tlv(0x30, *parts)


def octets(value: bytes) -> bytes:
    return tlv(0x04, value)


def integer(value: int) -> bytes:
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    body = bytearray([first * 40 + second])
    for arc in rest:
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(arc & 0x7F | 0x80)
        body.extend(reversed(septets))
    return tlv(0x06, bytes(body))


def name(*attributes: tuple[str, str]) -> bytes:
    """A Name of UTF8String attributes given as (dotted OID, value)."""
    return sequence(*(tlv(0x31, sequence(oid(kind), tlv(0x0C, value.encode()))) for kind, value in attributes))


def common_name(value: str) -> bytes:
    return name((NameOID.COMMON_NAME.dotted_string, value))


def dns_san(value: str | bytes) -> bytes:
    """A dNSName, whatever its octets."""
    return tlv(0x82, value if isinstance(value, bytes) else value.encode())


def extension(dotted: str, value: bytes, *, critical: bool = False) -> bytes:
    return sequence(oid(dotted), *([tlv(0x01, b"\xff")] if critical else []), octets(value))


def san_extension(*names: bytes) -> bytes:
    """The subjectAltName of GeneralNames that are encoded already."""
    return extension(SAN, sequence(*names))


def attribute(dotted: str, *values: bytes) -> bytes:
    return sequence(oid(dotted), tlv(0x31, *values))


def extension_request(*extensions: bytes) -> bytes:
    return attribute(EXTENSION_REQUEST, sequence(*extensions))


def spki(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def rsa_spki(modulus: int, exponent: int = 65537) -> bytes:
    algorithm = sequence(oid("1.2.840.113549.1.1.1"), tlv(0x05))
    return sequence(algorithm, tlv(0x03, b"\0", sequence(integer(modulus), integer(exponent))))


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def rsa_key(bits: int = 2048, exponent: int = 65537) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(exponent, bits)


def pem(der: bytes, label: str = "CERTIFICATE REQUEST") -> str:
    body = base64.b64encode(der).decode()
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def craft(
    *,
    names: Sequence[str | bytes] = ("www.example.test",),
    subject: bytes = b"0\0",
    attributes: Sequence[bytes] | None = None,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    public: bytes | None = None,
    version: int = 0,
    algorithm: bytes | None = None,
    sign: Callable[[bytes], bytes] | None = None,
) -> bytes:
    """A CSR's DER. What isn't given is right: P-256, SHA-256, one SAN, an empty subject."""
    key = key or ec_key()
    if attributes is None:
        attributes = [extension_request(san_extension(*(dns_san(entry) for entry in names)))]
    body = sequence(integer(version), subject, public or spki(key.public_key()), tlv(0xA0, *sorted(attributes)))
    if sign is None:
        sign = _signer(key)
    if algorithm is None:
        is_ec = isinstance(key, ec.EllipticCurvePrivateKey)
        algorithm = sequence(oid(ECDSA_SHA256)) if is_ec else sequence(oid(RSA_SHA256), tlv(0x05))
    return sequence(body, algorithm, tlv(0x03, b"\0", sign(body)))


def _signer(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> Callable[[bytes], bytes]:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return lambda data: key.sign(data, ec.ECDSA(hashes.SHA256()))
    return lambda data: key.sign(data, padding.PKCS1v15(), hashes.SHA256())


@cache
def roca_key() -> rsa.RSAPrivateKey:
    """A key as the broken library of CVE-2017-15361 made them: primes k*M + (65537^a mod M), 1024 bits each."""
    rng = random.Random(15361)
    modulus = prod(n for n in range(2, 702) if all(n % d for d in range(2, n)))
    primes: list[int] = []
    while len(primes) < 2:
        low = (3 << 1022) // modulus
        candidate = rng.randrange(low + 1, (1 << 1024) // modulus) * modulus + pow(
            65537, rng.randrange(1 << 62), modulus
        )
        if candidate.bit_length() == 1024 and pow(2, candidate - 1, candidate) == 1:
            primes.append(candidate)
    return _key_of(*primes)


@cache
def close_prime_key() -> rsa.RSAPrivateKey:
    """A key whose two primes follow one another, as in CVE-2022-26320."""
    p = _next_prime((3 << 1022) + random.Random(26320).getrandbits(1000))
    return _key_of(p, _next_prime(p + 2))


_SMALL_PRIMES = prod(n for n in range(3, 2000, 2) if all(n % d for d in range(3, n, 2)))


def _next_prime(number: int) -> int:
    number |= 1
    while gcd(number, _SMALL_PRIMES) != 1 or pow(2, number - 1, number) != 1:
        number += 2
    return number


def _key_of(p: int, q: int) -> rsa.RSAPrivateKey:
    if p < q:
        p, q = q, p
    phi = (p - 1) * (q - 1)
    assert gcd(65537, phi) == 1
    d = pow(65537, -1, phi)
    public = rsa.RSAPublicNumbers(65537, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    return numbers.private_key()


def load(der: bytes) -> x509.CertificateSigningRequest:
    """What `cryptography` makes of it: to show that it would have accepted."""
    return x509.load_der_x509_csr(der)
