"""`IdentityAuthority` in memory: a CA with a root and an intermediate that burns tokens as step-ca does."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.agent.model import IssuedCertificate, Version
from certplane.runtime.clock import Clock
from certplane.sandbox.certificates import BACKDATE, CertificateAuthority, leaf_extensions
from certplane.stepca.errors import EnrollmentError, RefusedError


@dataclass
class _Token:
    names: tuple[str, ...]
    used: bool = False


class FakeIdentityAuthority:
    """The contract's rules without HTTPS. `errors` are raised by the next calls, one each, before they do anything.

    `lose_next_answer` makes the next call do its work and then fail, as when a connection breaks.
    """

    def __init__(
        self, clock: Clock, *, lifetime: timedelta = timedelta(hours=24), renewal_after_expiry: bool = False
    ) -> None:
        self.root = CertificateAuthority.root("Fake Root CA")
        self.intermediate = self.root.intermediate("Fake Intermediate CA")
        self.errors: list[Exception] = []
        self.lose_next_answer = False
        self.calls: list[str] = []
        self._clock = clock
        self._lifetime = lifetime
        self._renewal_after_expiry = renewal_after_expiry
        self._tokens: dict[str, _Token] = {}
        self._revoked: set[str] = set()

    def mint_token(self, *names: str) -> str:
        """A one-time token for an identity with these names."""
        token = secrets.token_hex(8)
        self._tokens[token] = _Token(names)
        return token

    def revoke(self, serial_number: str) -> None:
        """From now on the certificate isn't renewed; `serial_number` in lower-case hex."""
        self._revoked.add(serial_number)

    def close(self) -> None:
        """As `StepCaAuthority.close`."""

    async def check(self) -> str:
        """Where it is, as `StepCaAuthority.check` says it of one that is well."""
        return "https://127.0.0.1:1"

    async def enroll(self, token: str, csr_pem: str) -> IssuedCertificate:
        self._begin("enroll")
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        names = _names(csr.extensions)
        known = self._tokens.get(token)
        if known is not None and sorted(known.names) != sorted(names):
            raise EnrollmentError("the token is for other names")
        if known is None or known.used:
            raise RefusedError("refused", status=401, said="not authorized", token_spent=True)
        known.used = True
        return self._answer(csr.public_key(), names, token_spent=True)

    async def renew(self, current: Version) -> IssuedCertificate:
        self._begin("renew")
        leaf = self._presented(current)
        return self._answer(leaf.public_key(), _names(leaf.extensions))

    async def rekey(self, current: Version, csr_pem: str) -> IssuedCertificate:
        self._begin("rekey")
        leaf = self._presented(current)
        return self._answer(x509.load_pem_x509_csr(csr_pem.encode()).public_key(), _names(leaf.extensions))

    async def recover(self, expired: Version) -> IssuedCertificate:
        self._begin("recover")
        if not self._renewal_after_expiry and self._clock.now() >= expired.not_after:
            raise RefusedError("refused", status=401, said="certificate expired")
        leaf = self._known(expired)
        return self._answer(leaf.public_key(), _names(leaf.extensions))

    async def vouch(self, certificate_pem: str, chain_pem: str) -> None:
        self._begin("vouch")
        leaf, *issuers = x509.load_pem_x509_certificates((certificate_pem + chain_pem).encode())
        if not leaf.not_valid_before_utc <= self._clock.now() <= leaf.not_valid_after_utc:
            raise EnrollmentError("it has expired")
        try:
            leaf.verify_directly_issued_by(self.intermediate.certificate)
        except (InvalidSignature, ValueError) as error:
            raise EnrollmentError("it doesn't lead to this CA") from error
        if self.intermediate.certificate not in issuers:
            raise EnrollmentError("its issuer isn't beside it")

    def _begin(self, call: str) -> None:
        self.calls.append(call)
        if self.errors:
            raise self.errors.pop(0)

    def _presented(self, version: Version) -> x509.Certificate:
        """The certificate of a handshake, which an expired one doesn't survive."""
        leaf = self._known(version)
        if self._clock.now() > leaf.not_valid_after_utc:
            raise EnrollmentError("the CA refused this host's certificate: certificate expired")
        return leaf

    def _known(self, version: Version) -> x509.Certificate:
        leaf = x509.load_pem_x509_certificate((version.path / "cert.pem").read_bytes())
        if format(leaf.serial_number, "x") in self._revoked:
            raise RefusedError("refused", status=401, said="certificate has been revoked")
        return leaf

    def _answer(
        self, key: CertificatePublicKeyTypes, names: Sequence[str], *, token_spent: bool = False
    ) -> IssuedCertificate:
        issued = self._sign(key, names)
        if self.lose_next_answer:
            self.lose_next_answer = False
            raise EnrollmentError("the answer was lost", token_spent=token_spent)
        return issued

    def _sign(self, key: CertificatePublicKeyTypes, names: Sequence[str]) -> IssuedCertificate:
        now = self._clock.now().replace(microsecond=0)
        sans = [x509.UniformResourceIdentifier(name) if "://" in name else x509.DNSName(name) for name in names]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])]))
            .issuer_name(self.intermediate.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + self._lifetime)
            .add_extension(x509.SubjectAlternativeName(sans), critical=False)
        )
        for extension, critical in leaf_extensions(key, self.intermediate.certificate):
            builder = builder.add_extension(extension, critical)
        leaf = builder.sign(self.intermediate.key, hashes.SHA256())
        return IssuedCertificate(leaf.public_bytes(Encoding.PEM).decode(), self.intermediate.pem.decode())


def _names(extensions: x509.Extensions) -> list[str]:
    return [str(name.value) for name in extensions.get_extension_for_class(x509.SubjectAlternativeName).value]
