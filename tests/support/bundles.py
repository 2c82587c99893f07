"""Roots that were renewed with their key: certificates of one name, some of which have ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certplane.pki.bundle import encode_certificates
from certplane.sandbox.certificates import CertificateAuthority

DAY = timedelta(days=1)

_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def root(
    authority: CertificateAuthority, *, begins: timedelta, ends: timedelta, now: datetime | None = None
) -> x509.Certificate:
    """Another certificate of an authority's own name and key."""
    return named_root(authority.certificate.subject, authority.key, begins=begins, ends=ends, now=now)


def named_root(
    name: x509.Name | str,
    key: ec.EllipticCurvePrivateKey,
    *,
    begins: timedelta,
    ends: timedelta,
    now: datetime | None = None,
) -> x509.Certificate:
    """A root of this name and key, valid from and until spans around now."""
    now = now or datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) if isinstance(name, str) else name
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.KeyUsage(**dict.fromkeys(_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def pem(*certificates: x509.Certificate) -> bytes:
    """Them, one after the other."""
    return encode_certificates(certificates)
