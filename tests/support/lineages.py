"""What tests of the agent's disk need: somebody who signs, and somebody who looks at what services would read."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certplane.agent.install.lineage import FileVersionStore
from certplane.agent.install.material import Outputs
from certplane.agent.keystore.pending import FilePendingKeys
from certplane.agent.model import InstallMode, IssuedCertificate, Version
from certplane.pki.keys import private_key_pem
from tests.fakes.clock import ManualClock

START = datetime(2026, 11, 23, 12, tzinfo=UTC)


class LocalIssuer:
    """A CA with one key; what it signs is valid from an hour before `now`."""

    def __init__(self, *, now: datetime = START) -> None:
        self._now = now
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test Issuer")])
        self.pem = self._sign(self._name, self._key.public_key(), (), timedelta(days=3650), ca=True)

    def issue(
        self,
        csr_pem: str,
        *,
        lifetime: timedelta = timedelta(days=90),
        certificate_id: str = "",
        renew_time: datetime | None = None,
    ) -> IssuedCertificate:
        """What a CA makes of a CSR."""
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        key = csr.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns_names = names.get_values_for_type(x509.DNSName)
        return IssuedCertificate(
            certificate_pem=self._sign(csr.subject, key, dns_names, lifetime),
            chain_pem=self.pem,
            certificate_id=certificate_id,
            renew_time=renew_time,
        )

    def pair(self, *dns_names: str, lifetime: timedelta = timedelta(days=90)) -> tuple[bytes, str]:
        """A key and its certificate, both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        return private_key_pem(key), self._sign(x509.Name([]), key.public_key(), dns_names, lifetime)

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        dns_names: Sequence[str],
        lifetime: timedelta,
        *,
        ca: bool = False,
    ) -> str:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - timedelta(hours=1))
            .not_valid_after(self._now - timedelta(hours=1) + lifetime)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if dns_names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def standing_pair(issuer: LocalIssuer, outputs: Outputs, *dns_names: str) -> None:
    """Put a pair at the configured paths, as another tool would have."""
    key, certificate = issuer.pair(*dns_names)
    content = {
        outputs.key: key,
        outputs.cert: certificate.encode(),
        outputs.chain: issuer.pem.encode(),
        outputs.fullchain: (certificate + issuer.pem).encode(),
        outputs.combined: key + (certificate + issuer.pem).encode(),
    }
    for path, data in content.items():
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def pair_problem(outputs: Outputs) -> str:
    """What is wrong with the files at the configured paths, as a service would find; empty if they hang together.

    Paths at which nothing is yet are passed over: absence isn't a mixed pair.
    """
    keys: set[bytes] = set()
    leaves: set[bytes] = set()
    chains: set[bytes] = set()
    for path, holds in (
        (outputs.key, "k"),
        (outputs.cert, "l"),
        (outputs.chain, "c"),
        (outputs.fullchain, "lc"),
        (outputs.combined, "klc"),
    ):
        if path is None:
            continue
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        if "k" in holds:
            keys.add(_public_of_key(data))
        certificates = x509.load_pem_x509_certificates(data) if holds != "k" else []
        if "l" in holds:
            leaves.add(certificates.pop(0).public_bytes(serialization.Encoding.DER))
        if "c" in holds:
            chains.add(b"".join(each.public_bytes(serialization.Encoding.DER) for each in certificates))
    if len(leaves) > 1 or len(keys) > 1 or len(chains) > 1:
        return f"{len(keys)} keys, {len(leaves)} leaves, {len(chains)} chains"
    publics = {_public_bytes(x509.load_der_x509_certificate(leaf).public_key()) for leaf in leaves}
    return "the key is not the certificate's" if keys and publics and keys != publics else ""


def read_leaf(path: Path) -> str:
    """The serial number of the first certificate in a file, hexadecimal."""
    return format(x509.load_pem_x509_certificate(path.read_bytes()).serial_number, "x")


def _public_of_key(pem: bytes) -> bytes:
    return _public_bytes(serialization.load_pem_private_key(pem, password=None).public_key())


def _public_bytes(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


_ISSUER = LocalIssuer()


@dataclass
class Host:
    """One lineage with its paths in a directory of the host's own."""

    root: Path
    mode: InstallMode = InstallMode.LINK
    name: str = "www"

    @property
    def lineage(self) -> Path:
        return self.root / "state" / self.name

    @property
    def outputs(self) -> Outputs:
        tls = self.root / "etc"
        return Outputs(key=tls / "key.pem", cert=tls / "cert.pem", fullchain=tls / "full.pem", combined=tls / "all.pem")

    @property
    def keys(self) -> FilePendingKeys:
        return FilePendingKeys(self.lineage, clock=ManualClock())

    @property
    def store(self) -> FileVersionStore:
        return FileVersionStore(self.lineage, self.outputs, keys=self.keys, mode=self.mode)

    def stage(self) -> Version:
        request = self.keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)
        return self.store.stage(_ISSUER.issue(request.csr_pem))

    def renew(self) -> Version:
        version = self.stage()
        self.store.activate(version)
        return version

    def shown(self) -> str:
        """The serial number at the configured paths, which must hang together."""
        assert pair_problem(self.outputs) == ""
        assert self.outputs.cert is not None
        return read_leaf(self.outputs.cert)

    def mode_of(self, part: str) -> int:
        path = getattr(self.outputs, part)
        return stat.S_IMODE(path.stat().st_mode)
