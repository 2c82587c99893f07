"""The roles in the sandbox that a real part or our own stand-in can play.

Whoever uses one takes the role, never the class: `scripts/demo` and the tests run with either, and one contract suite
runs on both. Both are async context managers; everything but entering works only while they are entered. Their
methods don't depend on the event loop that started them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from cryptography.hazmat.primitives.asymmetric import ec

from certplane.sandbox.certificates import CertificateAuthority, Credential
from certplane.sandbox.dns_endpoint import DnsEndpoint

PROVISIONER = "certplane"
"""The JWK provisioner whose tokens hosts enroll with."""
OTHER_JWK_PROVISIONER = "certplane-other"
"""A second JWK provisioner of the same CA: the same kind under another name."""
X5C_PROVISIONER = "certplane-x5c"
"""A provisioner of another kind: it makes identities for holders of certificates of a separate CA."""
ACME_PROVISIONER = "certplane-acme"
"""Another kind again; only the real step-ca serves it."""


class DnsServer(Protocol):
    """An authoritative DNS server with updates (RFC 2136, TSIG)."""

    @property
    def endpoint(self) -> DnsEndpoint:
        """Where it answers, its zones and its key."""
        ...

    async def __aenter__(self) -> Self:
        """Start it; returns once it answers for every zone."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        ...


class IdentityCa(Protocol):
    """An internal CA that speaks step-ca's HTTPS interface."""

    @property
    def url(self) -> str:
        """`https://127.0.0.1:port`, the value of `identity.step_ca.url`."""
        ...

    @property
    def authority(self) -> CertificateAuthority:
        """The root: its certificate and its fingerprint (`identity.step_ca.fingerprint`)."""
        ...

    @property
    def intermediate(self) -> CertificateAuthority:
        """The CA that signs identities; with its key, so that tests can make certificates that no provisioner made."""
        ...

    @property
    def roots_file(self) -> Path:
        """PEM file with the root: `server.mtls.agent_ca_bundle`, `identity.issuer_ca_bundle`."""
        ...

    def mint_token(
        self,
        subject: str,
        sans: Sequence[str] = (),
        *,
        provisioner: str = PROVISIONER,
        lifetime: timedelta = ...,
        issued_at: datetime | None = None,
        csr_der: bytes | None = None,
        with_fingerprint: bool = True,
    ) -> str:
        """A one-time token for `POST /sign`.

        Args:
            subject: common name of the identity.
            sans: its names; the subject alone when empty.
            provisioner: one of the two JWK provisioners, or `X5C_PROVISIONER`.
            lifetime: five minutes by default.
            issued_at: now by default; in the past it makes an expired token.
            csr_der: ties the token to this CSR.
            with_fingerprint: whether the token has the claim `sha`.

        Raises:
            ValueError: no provisioner of that name takes tokens.
        """
        ...

    async def issue(
        self,
        subject: str,
        sans: Sequence[str] = (),
        *,
        provisioner: str = PROVISIONER,
        lifetime: timedelta | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> Credential:
        """An identity, made the way a host does it: token, key, CSR, `POST /sign`.

        Raises:
            ServerRefusedError: the CA refused.
        """
        ...

    async def revoke(self, serial: int, reason: str = "") -> None:
        """Revoke by serial: from now on the CA refuses to renew that certificate (the certificate itself stays valid).

        Raises:
            ServerRefusedError: it is revoked already.
        """
        ...

    async def restart(self) -> None:
        """Stop it and start it again on the same port, with its database.

        Tokens minted before are refused afterwards.
        """
        ...

    async def __aenter__(self) -> Self:
        """Start it; returns once it is healthy."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        ...
