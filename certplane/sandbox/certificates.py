"""Certificate authorities of the sandbox: made in memory, good for a day or for what the caller says.

The identity CA, Pebble's own HTTPS certificates and a broker's server certificate come from here. Nothing here is for
use outside the sandbox: keys are written unencrypted into the sandbox's folder (mode 0600).
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certplane.runtime.clock import SystemClock

BACKDATE = timedelta(minutes=1)
"""How far before now validity starts, as step-ca does, so that a slightly slow clock doesn't refuse a new
certificate."""

CA_LIFETIME = timedelta(days=3650)
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Credential:
    """A private key with its certificate and the intermediates above it, leaf first, without the root."""

    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]

    @property
    def certificate(self) -> x509.Certificate:
        """The leaf."""
        return self.chain[0]

    @property
    def chain_pem(self) -> bytes:
        """Leaf and intermediates as PEM."""
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.chain)

    @property
    def key_pem(self) -> bytes:
        """The key as unencrypted PKCS #8 PEM."""
        return private_key_pem(self.key)

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write `<name>.crt` and `<name>.key` (0600) into `folder` and return both paths."""
        folder.mkdir(parents=True, exist_ok=True)
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        certificate.write_bytes(self.chain_pem)
        write_private(key, self.key_pem)
        return certificate, key


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """A root, or an intermediate below one."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    intermediates: tuple[x509.Certificate, ...] = ()
    """What a leaf needs above it: this CA first, the root left out. Empty for a root."""

    @classmethod
    def root(cls, name: str) -> CertificateAuthority:
        """A new self-signed root with common name `name`."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _ca_certificate(name, key.public_key(), issuer=_common_name(name), issuer_key=key, path_length=1)
        return cls(key, certificate)

    def intermediate(self, name: str) -> CertificateAuthority:
        """A new intermediate, signed by this CA, that may sign leaves only."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.certificate.subject
        certificate = _ca_certificate(name, key.public_key(), issuer=issuer, issuer_key=self.key, path_length=0)
        return CertificateAuthority(key, certificate, (certificate, *self.intermediates))

    @property
    def pem(self) -> bytes:
        """This CA's certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER certificate, lower case hex: the form that step-ca and `agent.yml` use."""
        return hashlib.sha256(self.certificate.public_bytes(Encoding.DER)).hexdigest()

    def issue(
        self,
        common_name: str,
        sans: Sequence[str] = (),
        *,
        lifetime: timedelta = DAY,
        not_before: datetime | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
        extensions: Sequence[x509.ExtensionType] = (),
    ) -> Credential:
        """A leaf for TLS servers and clients.

        Args:
            common_name: the subject; may be empty.
            sans: DNS names, IP addresses, or URIs (whatever has `://`).
            lifetime: from `not_before`, or from now when that isn't given (validity then starts a minute earlier).
            not_before: start of validity, for certificates that are expired or not yet valid.
            key: the leaf's key; a new P-256 key when not given.
            extensions: added as they are, not critical.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        start = SystemClock().now() if not_before is None else not_before
        builder = (
            x509.CertificateBuilder()
            .subject_name(_common_name(common_name))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - BACKDATE if not_before is None else start)
            .not_valid_after(start + lifetime)
        )
        for extension, critical in leaf_extensions(key.public_key(), self.certificate):
            builder = builder.add_extension(extension, critical)
        if sans:
            names = x509.SubjectAlternativeName([general_name(san) for san in sans])
            builder = builder.add_extension(names, critical=not common_name)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        leaf = builder.sign(self.key, hashes.SHA256())
        return Credential(key, (leaf, *self.intermediates))


def leaf_extensions(
    public_key: CertificatePublicKeyTypes, issuer: x509.Certificate
) -> list[tuple[x509.ExtensionType, bool]]:
    """What step-ca's default template puts on a leaf with an EC key, with its criticality; names not included."""
    return [
        (_key_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
        (_authority_key_identifier(issuer), False),
    ]


def general_name(san: str) -> x509.GeneralName:
    """A SAN by its look: URI, IP address, email address or DNS name; the rule of step-ca's `x509util.SplitSANs`."""
    try:
        return x509.IPAddress(ipaddress.ip_address(san))
    except ValueError:
        pass
    if "://" in san:
        return x509.UniformResourceIdentifier(san)
    if "@" in san:
        return x509.RFC822Name(san)
    return x509.DNSName(san)


def private_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as unencrypted PKCS #8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])


def _ca_certificate(
    name: str,
    public_key: ec.EllipticCurvePublicKey,
    *,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    path_length: int,
) -> x509.Certificate:
    now = SystemClock().now()
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(_common_name(name))
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(issuer_id, critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    subject_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_id)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
