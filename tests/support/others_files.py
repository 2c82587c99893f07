"""Certificates as other programs leave them on a host: certbot, acme.sh, lego, each with the files that it keeps."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from certplane.sandbox.certificates import CertificateAuthority, leaf_extensions

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class Pair:
    """A key and its certificate, PEM, with the issuer's."""

    key: bytes
    cert: bytes
    chain: bytes

    @property
    def fullchain(self) -> bytes:
        return self.cert + self.chain

    @property
    def serial(self) -> str:
        return format(x509.load_pem_x509_certificate(self.cert).serial_number, "x")


@dataclass
class PublicCa:
    """A CA with an intermediate, as a public one is."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    name: str = "R11"

    def __post_init__(self) -> None:
        self.root = CertificateAuthority.root("Root X1")
        self.intermediate = self.root.intermediate(self.name)

    def pair(
        self, *names: str, key: Key | None = None, age: timedelta = timedelta(days=1), life: timedelta = timedelta(90)
    ) -> Pair:
        """A certificate that was issued `age` ago, for `life`."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        begin = (self.now - age).replace(microsecond=0)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]))
            .issuer_name(self.intermediate.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + life)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        )
        for extension, critical in leaf_extensions(key.public_key(), self.intermediate.certificate):
            builder = builder.add_extension(extension, critical)
        leaf = builder.sign(self.intermediate.key, hashes.SHA256())
        return Pair(pem_of(key), leaf.public_bytes(Encoding.PEM), self.intermediate.pem)


def pem_of(key: Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certbot_lineage(folder: Path, name: str, pair: Pair, *, number: int = 1, hook: str = "", server: str = "") -> Path:
    """As certbot writes them: `archive/NAME/*N.pem`, `live/NAME` with links there, `renewal/NAME.conf`; returns `live`."""
    live, archive, renewal = folder / "live" / name, folder / "archive" / name, folder / "renewal"
    for each in (live, archive, renewal):
        each.mkdir(parents=True, exist_ok=True)
    (folder / "live" / "README").write_text("This directory contains your keys and certificates.\n")
    for kind, data in (
        ("cert", pair.cert),
        ("chain", pair.chain),
        ("fullchain", pair.fullchain),
        ("privkey", pair.key),
    ):
        file = archive / f"{kind}{number}.pem"
        file.write_bytes(data)
        file.chmod(0o600 if kind == "privkey" else 0o644)
        link = live / f"{kind}.pem"
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../archive/{name}/{file.name}")
    lines = [
        "# renew_before_expiry = 30 days",
        "version = 2.11.0",
        f"archive_dir = {archive}",
        *(f"{kind} = {live}/{kind}.pem" for kind in ("cert", "privkey", "chain", "fullchain")),
        "",
        "# Options used in the renewal process",
        "[renewalparams]",
        "account = 0123456789abcdef0123456789abcdef",
        "authenticator = dns-cloudflare",
        f"server = {server or 'https://acme-v02.api.letsencrypt.org/directory'}",
        "key_type = ecdsa",
        *([f"renew_hook = {hook}"] if hook else []),
    ]
    (renewal / f"{name}.conf").write_text("\n".join(lines) + "\n")
    return live


def acme_sh_certificate(home: Path, name: str, pair: Pair, *, names: tuple[str, ...] = (), settings: str = "") -> Path:
    """As acme.sh keeps one with an EC key: `HOME/NAME_ecc/`; returns that folder."""
    folder = home / f"{name}_ecc"
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in (
        (f"{name}.key", pair.key),
        (f"{name}.cer", pair.cert),
        ("ca.cer", pair.chain),
        ("fullchain.cer", pair.fullchain),
    ):
        (folder / file).write_bytes(data)
    (folder / f"{name}.conf").write_text(
        f"Le_Domain='{name}'\nLe_Alt='{','.join(names) or 'no'}'\nLe_Webroot='dns_cf'\nLe_Keylength='ec-256'\n"
        f"Le_API='https://acme-v02.api.letsencrypt.org/directory'\n{settings}"
    )
    return folder


def lego_certificate(folder: Path, name: str, pair: Pair) -> Path:
    """As lego keeps one: `FOLDER/certificates/NAME.*`; returns that folder."""
    certificates = folder / "certificates"
    certificates.mkdir(parents=True, exist_ok=True)
    file = name.replace("*", "_")
    (certificates / f"{file}.key").write_bytes(pair.key)
    (certificates / f"{file}.crt").write_bytes(pair.fullchain)
    (certificates / f"{file}.issuer.crt").write_bytes(pair.chain)
    (certificates / f"{file}.json").write_text(
        json.dumps({"domain": name, "certUrl": "https://acme-v02.api.letsencrypt.org/acme/cert/1"})
    )
    return certificates
