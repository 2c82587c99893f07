"""What both identity CAs are made of: a root and an intermediate, provisioners, and how long identities live.

`step_ca` writes it into a step-ca configuration, `identity_ca` serves it itself; the part of the `IdentityCa` role
that doesn't depend on which of them answers (minting tokens, issuing, revoking) is here too.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from typing_extensions import override

from certplane.runtime.clock import Clock, SystemClock
from certplane.sandbox.certificates import BACKDATE, CertificateAuthority, Credential, general_name
from certplane.sandbox.errors import ServerRefusedError
from certplane.sandbox.https_client import HttpAnswer, request, trusting
from certplane.sandbox.ports import OTHER_JWK_PROVISIONER, PROVISIONER, X5C_PROVISIONER, IdentityCa
from certplane.sandbox.tokens import ProvisionerKey, TokenClaims, csr_fingerprint, mint_jwk_token, mint_x5c_token

TOKEN_LIFETIME = timedelta(minutes=5)
"""The `step` command's default; the CA itself has none."""


@dataclass(frozen=True, slots=True)
class IdentityRules:
    """The claims of the provisioners, as step-ca calls them.

    Attributes:
        lifetime: of an identity, when the request names none (`defaultTLSCertDuration`).
        shortest: least lifetime that a request may name. step-ca's own default is five minutes.
        longest: most.
        renewal_after_expiry: whether an expired identity may be renewed (`allowRenewalAfterExpiry`).
        renewal: false refuses every renewal (`disableRenewal`).
    """

    lifetime: timedelta = timedelta(hours=24)
    shortest: timedelta = timedelta(seconds=1)
    longest: timedelta = timedelta(hours=24)
    renewal_after_expiry: bool = False
    renewal: bool = True

    backdate: timedelta = BACKDATE
    """How far `notBefore` lies before the moment of signing."""


def _new_root() -> CertificateAuthority:
    return CertificateAuthority.root("Certplane Sandbox Root CA")


@dataclass(frozen=True, slots=True)
class IdentityPki:
    """The keys of one sandbox CA."""

    root: CertificateAuthority = field(default_factory=_new_root)
    intermediate: CertificateAuthority = field(init=False)
    jwk_keys: dict[str, ProvisionerKey] = field(
        default_factory=lambda: {name: ProvisionerKey.generate() for name in (PROVISIONER, OTHER_JWK_PROVISIONER)}
    )
    x5c_authority: CertificateAuthority = field(
        default_factory=lambda: CertificateAuthority.root("Certplane Sandbox X5C Root")
    )
    """Root of the certificates whose holders may ask the X5C provisioner for identities."""

    def __post_init__(self) -> None:
        """Make the intermediate below the root."""
        object.__setattr__(self, "intermediate", self.root.intermediate("Certplane Sandbox Intermediate CA"))


class IdentityCaClient(IdentityCa):
    """The half of `ports.IdentityCa` that talks to the CA over HTTPS, whoever plays it."""

    def __init__(self, pki: IdentityPki, rules: IdentityRules, folder: Path, clock: Clock | None = None) -> None:
        """Write the root to `folder`/root.crt; the CA needn't run yet."""
        self._pki = pki
        self._rules = rules
        self._folder = folder
        self._clock = clock or SystemClock()
        self._url: str | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.roots_file.write_bytes(pki.root.pem)

    @property
    @override
    def url(self) -> str:
        """As the port describes, with these errors.

        Raises:
            RuntimeError: it was not started.
        """
        if self._url is None:
            raise RuntimeError("the identity CA was not started")
        return self._url

    @property
    @override
    def authority(self) -> CertificateAuthority:
        return self._pki.root

    @property
    @override
    def intermediate(self) -> CertificateAuthority:
        return self._pki.intermediate

    @property
    @override
    def roots_file(self) -> Path:
        return self._folder / "root.crt"

    @property
    def provisioner_keys(self) -> dict[str, ProvisionerKey]:
        """The keys of the JWK provisioners by name: for tokens that `mint_token` wouldn't make."""
        return self._pki.jwk_keys

    @override
    def mint_token(
        self,
        subject: str,
        sans: Sequence[str] = (),
        *,
        provisioner: str = PROVISIONER,
        lifetime: timedelta = TOKEN_LIFETIME,
        issued_at: datetime | None = None,
        csr_der: bytes | None = None,
        with_fingerprint: bool = True,
    ) -> str:
        claims = TokenClaims(
            issuer=provisioner,
            audience=f"{self.url}/1.0/sign",
            subject=subject,
            issued_at=issued_at or self._clock.now(),
            lifetime=lifetime,
            sans=tuple(sans),
            root_fingerprint=self._pki.root.fingerprint if with_fingerprint else None,
            csr_fingerprint=None if csr_der is None else csr_fingerprint(csr_der),
        )
        return self._sign_token(provisioner, claims)

    @override
    async def issue(
        self,
        subject: str,
        sans: Sequence[str] = (),
        *,
        provisioner: str = PROVISIONER,
        lifetime: timedelta | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> Credential:
        key = key or ec.generate_private_key(ec.SECP256R1())
        csr = certificate_request(key, subject, sans)
        body = {
            "csr": csr.public_bytes(Encoding.PEM).decode(),
            "ott": self.mint_token(subject, sans, provisioner=provisioner),
        }
        if lifetime is not None:
            body["notAfter"] = go_duration(lifetime)
        answer = accepted(await self.post("/1.0/sign", body))
        chain = [x509.load_pem_x509_certificate(pem.encode()) for pem in answer.json()["certChain"]]
        return Credential(key, tuple(chain))

    @override
    async def revoke(self, serial: int, reason: str = "") -> None:
        claims = TokenClaims(
            issuer=PROVISIONER,
            audience=f"{self.url}/1.0/revoke",
            subject=str(serial),
            issued_at=self._clock.now(),
            lifetime=TOKEN_LIFETIME,
        )
        body = {
            "serial": str(serial),
            "ott": self._sign_token(PROVISIONER, claims),
            "reasonCode": 0,
            "reason": reason,
            "passive": True,
        }
        accepted(await self.post("/1.0/revoke", body))

    async def get(self, path: str) -> HttpAnswer:
        """GET `path`, trusting the root."""
        return await request("GET", self.url + path, trusting(self.roots_file))

    async def post(
        self,
        path: str,
        body: object | None,
        *,
        holder: Credential | None = None,
        bearer: str | None = None,
    ) -> HttpAnswer:
        """POST JSON to `path`, trusting the root; as the holder of an identity if one is given."""
        context = trusting(self.roots_file)
        if holder is not None:
            _present(context, holder, self._folder)
        headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
        content = b"" if body is None else json.dumps(body).encode()
        return await request("POST", self.url + path, context, body=content, headers=headers)

    async def _healthy(self) -> bool:
        return (await self.get("/health")).status == 200

    def _sign_token(self, provisioner: str, claims: TokenClaims) -> str:
        if key := self._pki.jwk_keys.get(provisioner):
            return mint_jwk_token(key, claims)
        if provisioner != X5C_PROVISIONER:
            raise ValueError(f"no provisioner {provisioner} that takes tokens")
        # Its collection key is in the fragment of the audience (step-ca's provisioner/x5c.go).
        claims = TokenClaims(
            **{name: getattr(claims, name) for name in TokenClaims.__slots__ if name != "audience"},
            audience=f"{claims.audience}#x5c/{provisioner}",
        )
        holder = self._pki.x5c_authority.issue("x5c-holder", ["x5c-holder"], lifetime=self._rules.longest * 2)
        return mint_x5c_token(holder, claims)


def certificate_request(
    key: ec.EllipticCurvePrivateKey, subject: str, sans: Sequence[str] = ()
) -> x509.CertificateSigningRequest:
    """A CSR with a common name (left out when empty) and SANs."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else [])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    if sans:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([general_name(san) for san in sans]), critical=False
        )
    return builder.sign(key, hashes.SHA256())


def accepted(answer: HttpAnswer) -> HttpAnswer:
    """The answer, if it is a success.

    Raises:
        ServerRefusedError: it isn't; holds the CA's message.
    """
    if answer.status >= 300:
        try:
            message = str(answer.json()["message"])
        except (ValueError, KeyError, TypeError):
            message = answer.body[:200].decode(errors="replace")
        raise ServerRefusedError("the identity CA", answer.status, message)
    return answer


def go_duration(span: timedelta) -> str:
    """A span as Go writes it, in seconds: "90s"."""
    return f"{span.total_seconds():g}s"


def _present(context: ssl.SSLContext, holder: Credential, folder: Path) -> None:
    """Offer the holder's certificate in handshakes; the ssl module takes keys from files only."""
    certificate, key = holder.write(folder / "clients", f"{holder.certificate.serial_number:x}")
    context.load_cert_chain(certificate, key)
