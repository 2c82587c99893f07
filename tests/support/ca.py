"""A private CA for tests: a root, an intermediate, and leaves with whatever a test needs to be wrong in them.

    ca = PrivateCa("internal")
    host = ca.issue(["web1.example"], provisioner=("JWK", "hosts"))
    server = ca.issue_server(["localhost"])

Made like step-ca's: leaves come from the intermediate, and say their provisioner in extension
1.3.6.1.4.1.37476.9000.64.1.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certplane.rpc.credentials import KeyPair

_PROVISIONER = x509.ObjectIdentifier("1.3.6.1.4.1.37476.9000.64.1")
_KINDS = {"JWK": 1, "OIDC": 2, "ACME": 6, "X5C": 7}


@dataclass(frozen=True)
class Leaf:
    """A certificate with its key and the CAs between it and the root."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    intermediates: tuple[x509.Certificate, ...]

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def chain_pem(self) -> bytes:
        """Leaf first, without the root."""
        return b"".join(entry.public_bytes(Encoding.PEM) for entry in (self.certificate, *self.intermediates))

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def pair(self) -> KeyPair:
        return KeyPair(self.key_pem, self.chain_pem)

    @property
    def serial_number(self) -> str:
        return format(self.certificate.serial_number, "x")

    @property
    def issuer(self) -> str:
        return self.certificate.issuer.rfc4514_string()

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """The chain and the key (0600) as files of `directory`; returns both paths."""
        cert, key = directory / f"{name}.crt", directory / f"{name}.key"
        cert.write_bytes(self.chain_pem)
        key.touch(mode=0o600)
        key.write_bytes(self.key_pem)
        return cert, key


class PrivateCa:
    """A root and one intermediate, valid for ten years around `now`."""

    def __init__(self, name: str, *, now: datetime | None = None) -> None:
        self.name = name
        self._now = now or datetime.now(UTC).replace(microsecond=0)
        years = timedelta(days=3650)
        self.root_key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._ca(f"{name} Root CA", self.root_key, None, None, years)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.intermediate = self._ca(f"{name} Intermediate CA", self._key, self.root, self.root_key, years, length=0)

    @property
    def root_pem(self) -> bytes:
        return self.root.public_bytes(Encoding.PEM)

    def issue(
        self,
        names: Sequence[str],
        *,
        common_name: str = "",
        provisioner: tuple[str, str] | None = ("JWK", "hosts"),
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        usages: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH,),
        key: ec.EllipticCurvePrivateKey | None = None,
        extra: Sequence[x509.ExtensionType] = (),
    ) -> Leaf:
        """A leaf of the intermediate, by default a client's that is valid for a day.

        Args:
            names: SANs: URIs where they contain `://`, addresses where they are one, else DNS names.
            common_name: The subject's only attribute; empty for an empty subject.
            provisioner: Kind and name of step-ca's provisioner; None leaves the extension out.
            not_before: Start of validity; an hour ago by default.
            not_after: End of validity.
            usages: Extended key usages.
            key: The key; a new one by default.
            extra: Extensions added as they are, critical.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self.intermediate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or self._now - timedelta(hours=1))
            .not_valid_after(not_after or self._now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(_digital_signature(), critical=True)
        )
        if names:
            sans = x509.SubjectAlternativeName([_general_name(name) for name in names])
            builder = builder.add_extension(sans, critical=not subject)
        for extension in extra:
            builder = builder.add_extension(extension, critical=True)
        if provisioner is not None:
            builder = builder.add_extension(x509.UnrecognizedExtension(_PROVISIONER, _record(*provisioner)), False)
        return Leaf(builder.sign(self._key, hashes.SHA256()), key, (self.intermediate,))

    def issue_server(self, names: Sequence[str], **changes: object) -> Leaf:
        """A server's leaf; `changes` as in `issue`."""
        options: dict[str, object] = {"provisioner": None, "usages": (ExtendedKeyUsageOID.SERVER_AUTH,), **changes}
        return self.issue(names, **options)  # type: ignore[arg-type]  # passed through as they are

    def _ca(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: x509.Certificate | None,
        issuer_key: ec.EllipticCurvePrivateKey | None,
        life: timedelta,
        *,
        length: int | None = 1,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = issuer_key or key
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - timedelta(days=1))
            .not_valid_after(self._now + life)
            .add_extension(x509.BasicConstraints(ca=True, path_length=length), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .add_extension(_certificate_signing(), critical=True)
            .sign(signer, hashes.SHA256())
        )


def _general_name(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _record(kind: str, name: str) -> bytes:
    """SEQUENCE {INTEGER kind, OCTET STRING name, OCTET STRING credential id}, short lengths only."""
    text = name.encode()
    content = bytes([0x02, 1, _KINDS[kind], 0x04, len(text)]) + text + b"\x04\x03kid"
    return bytes([0x30, len(content)]) + content


def _digital_signature() -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, False, False, False, False)


def _certificate_signing() -> x509.KeyUsage:
    return x509.KeyUsage(False, False, False, False, False, True, True, False, False)
