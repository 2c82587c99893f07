"""A certificate authority in memory, shaped as step-ca's and the public ones are: root, intermediate, leaf.

Every property of a certificate can be bent, to see who notices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.csr import integer, octets, sequence

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
PROVISIONER = x509.ObjectIdentifier("1.3.6.1.4.1.37476.9000.64.1")

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
BOTH_AUTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def provisioner_extension(kind: int = 1, name: str = "certplane", credential: str = "key-id") -> bytes:
    """The value of step-ca's extension."""
    return sequence(integer(kind), octets(name.encode()), octets(credential.encode()))


def certificate_pem(*certificates: x509.Certificate) -> str:
    return "".join(entry.public_bytes(serialization.Encoding.PEM).decode() for entry in certificates)


@dataclass(frozen=True)
class IssuedLeaf:
    certificate: x509.Certificate
    key: Key
    chain: tuple[x509.Certificate, ...]

    @property
    def pem(self) -> str:
        return certificate_pem(self.certificate)

    @property
    def chain_pem(self) -> str:
        return certificate_pem(*self.chain)

    @property
    def fullchain_pem(self) -> str:
        return self.pem + self.chain_pem


def _new_key(kind: str) -> Key:
    return rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


@dataclass(eq=False)
class Authority:
    """A root with one intermediate. `now` is when all certificates are made."""

    name: str = "Test"
    key_kind: str = "ec"
    now: datetime = NOW
    root_key: Key = field(init=False)
    intermediate_key: Key = field(init=False)
    root: x509.Certificate = field(init=False)
    intermediate: x509.Certificate = field(init=False)

    def __post_init__(self) -> None:
        self.root_key = _new_key(self.key_kind)
        self.intermediate_key = _new_key(self.key_kind)
        self.root = self.certificate_authority(f"{self.name} Root", self.root_key, path_length=1)
        self.intermediate = self.certificate_authority(
            f"{self.name} Intermediate",
            self.intermediate_key,
            path_length=0,
            issuer=self.root,
            issuer_key=self.root_key,
        )

    @property
    def root_pem(self) -> bytes:
        return certificate_pem(self.root).encode()

    @property
    def intermediate_pem(self) -> bytes:
        return certificate_pem(self.intermediate).encode()

    def certificate_authority(
        self,
        name: str,
        key: Key,
        *,
        path_length: int,
        issuer: x509.Certificate | None = None,
        issuer_key: Key | None = None,
        lifetime: timedelta = timedelta(days=3650),
        ca: bool = True,
    ) -> x509.Certificate:
        """A CA certificate, self-signed unless an issuer is given."""
        signing_key = issuer_key or key
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(issuer.subject if issuer else _name(name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - timedelta(days=1))
            .not_valid_after(self.now + lifetime)
            .add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
            .add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if issuer is not None:
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key())
            builder = builder.add_extension(identifier, critical=False)
        return builder.sign(signing_key, hashes.SHA256())

    def issue(
        self,
        *sans: str | x509.GeneralName,
        common_name: str | Sequence[str] = "",
        key: Key | None = None,
        usages: Sequence[x509.ObjectIdentifier] = BOTH_AUTH,
        provisioner: bytes | None = None,
        not_before: timedelta = timedelta(minutes=-1),
        lifetime: timedelta = timedelta(days=1),
        serial_number: int | None = None,
        extra: Iterable[tuple[x509.ExtensionType, bool]] = (),
        by_root: bool = False,
    ) -> IssuedLeaf:
        """A leaf as step-ca makes them: names in the SAN, both usages, identifiers."""
        key = key or _new_key(self.key_kind)
        common_names = [common_name] if isinstance(common_name, str) else list(common_name)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, value) for value in common_names if value])
        issuer, issuer_key = (self.root, self.root_key) if by_root else (self.intermediate, self.intermediate_key)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(serial_number or x509.random_serial_number())
            .not_valid_before(self.now + not_before)
            .not_valid_after(self.now + not_before + lifetime)
            .add_extension(_key_usage("digital_signature"), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if sans:
            names = [_general_name(san) if isinstance(san, str) else san for san in sans]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject.rdns)
        if provisioner is not None:
            builder = builder.add_extension(x509.UnrecognizedExtension(PROVISIONER, provisioner), critical=False)
        for value, critical in extra:
            builder = builder.add_extension(value, critical=critical)
        chain = () if by_root else (self.intermediate,)
        return IssuedLeaf(builder.sign(issuer_key, hashes.SHA256()), key, chain)


def _general_name(san: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(san) if "://" in san else x509.DNSName(san)


def _key_usage(*used: str) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: name in used for name in names})
