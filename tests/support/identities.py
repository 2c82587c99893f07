"""What enrolment tests share: versions on disk out of issued certificates, and a `StepCaAuthority` for a sandbox CA."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification

from certplane.agent.enrollment.stepca import StepCaAuthority
from certplane.agent.model import IssuedCertificate, Version
from certplane.errors import ConfigurationProblem
from certplane.pki.keys import KeyType, PrivateKey, generate_private_key, private_key_pem, public_key_sha256
from certplane.runtime.clock import Clock, SystemClock
from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.ports import IdentityCa
from certplane.stepca.exchange import Endpoint
from certplane.stepca.trust import Trust


def problem(key: str, message: str, remedy: str = "") -> ConfigurationProblem:
    """What `Source.problem` makes, for settings that come from no file."""
    return ConfigurationProblem("agent.yml", 1, key, message, remedy)


def new_key() -> PrivateKey:
    """A P-256 key."""
    return generate_private_key(KeyType.EC_P256)


def authority_for(
    ca: IdentityCa,
    *,
    url: str = "",
    fingerprint: str | None = None,
    root_ca_bundle: Path | None = None,
    issuer_ca_bundle: Path | None = None,
    timeout: timedelta = timedelta(seconds=5),
    clock: Clock | None = None,
) -> StepCaAuthority:
    """The agent's client for `ca`, which knows it by its fingerprint unless told otherwise."""
    return StepCaAuthority(
        Endpoint.from_url(url or ca.url),
        trust=Trust(
            fingerprint=ca.authority.fingerprint if fingerprint is None else fingerprint,
            root_ca_bundle=root_ca_bundle,
            issuer_ca_bundle=issuer_ca_bundle,
            problem=problem,
        ),
        timeout=timeout,
        clock=clock or SystemClock(),
        rng=random.Random(1),
    )


def store(folder: Path, number: int, issued: IssuedCertificate, key: PrivateKey) -> Version:
    """`issued` with its key as a version on disk, as the version store writes it."""
    path = folder / "versions" / str(number)
    path.mkdir(parents=True)
    (path / "privkey.pem").write_bytes(private_key_pem(key))
    (path / "privkey.pem").chmod(0o600)
    (path / "cert.pem").write_text(issued.certificate_pem)
    (path / "chain.pem").write_text(issued.chain_pem)
    (path / "fullchain.pem").write_text(issued.certificate_pem + issued.chain_pem)
    leaf = leaf_of(issued)
    return Version(
        number=number,
        path=path,
        dns_names=tuple(names_of(leaf)),
        serial_number=format(leaf.serial_number, "x"),
        public_key_sha256=public_key_sha256(leaf.public_key()),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
    )


def identity_version(folder: Path, ca: CertificateAuthority, name: str, **how: Any) -> Version:
    """An identity for `name` by `ca` as a version on disk; `how` is passed to `CertificateAuthority.issue`."""
    credential = ca.issue(name, [name], **how)
    chain = [certificate.public_bytes(Encoding.PEM).decode() for certificate in credential.chain]
    return store(folder, 1, IssuedCertificate(chain[0], "".join(chain[1:])), credential.key)


def leaf_of(issued: IssuedCertificate) -> x509.Certificate:
    """The certificate itself."""
    return x509.load_pem_x509_certificate(issued.certificate_pem.encode())


def names_of(leaf: x509.Certificate) -> list[str]:
    """Its subjectAltNames."""
    return [str(name.value) for name in leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]


def leads_to(issued: IssuedCertificate, root: x509.Certificate, at: datetime) -> bool:
    """Whether its chain leads to `root`."""
    verifier = verification.PolicyBuilder().store(verification.Store([root])).time(at).build_client_verifier()
    try:
        verifier.verify(leaf_of(issued), x509.load_pem_x509_certificates(issued.chain_pem.encode()))
    except verification.VerificationError:
        return False
    return True
