"""Which CA this host believes: a root by its fingerprint, by a bundle, or by both.

With a fingerprint alone the root itself is fetched over a connection that isn't verified, which is safe since its hash
is compared before anything else is sent. With a bundle nothing is fetched. With both they must agree: only the
bundle's certificates that have the fingerprint count.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.agent.enrollment.errors import EnrollmentError, RefusedError, UnreachableError
from certplane.agent.enrollment.exchange import Endpoint, exchange
from certplane.errors import ConfigurationError, ConfigurationProblem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from pathlib import Path

__all__ = ["PinnedRoots", "pinned_roots"]

_CHECK_FINGERPRINT = "compare it with `step certificate fingerprint root_ca.crt` on the CA"


@dataclass(frozen=True, slots=True)
class PinnedRoots:
    """The roots that are believed, and their SHA-256 fingerprints (of the DER, lower-case hex)."""

    pem: str
    sha256: tuple[str, ...]

    @classmethod
    def of(cls, certificates: Sequence[x509.Certificate]) -> PinnedRoots:
        """Exactly these."""
        return cls(
            pem="".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates),
            sha256=tuple(_sha256(certificate) for certificate in certificates),
        )

    def context(self) -> ssl.SSLContext:
        """A TLS context that believes these roots and nothing else, with the host's name checked."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=self.pem)
        return context


def pinned_roots(endpoint: Endpoint, fingerprint: str, bundle: Path | None, timeout: timedelta) -> PinnedRoots:
    """The roots by `fingerprint` (hex; empty for none), by `bundle`, or both. Blocks.

    Raises:
        UnreachableError: the CA can't be asked for its root.
        EnrollmentError: the CA doesn't have that root, or hands out another.
        ConfigurationError: the bundle can't be read, or has no root of that fingerprint.
    """
    wanted = fingerprint.replace(":", "").lower()
    if bundle is not None:
        return _from_bundle(bundle, wanted)
    return _fetched(endpoint, wanted, timeout)


def _from_bundle(bundle: Path, wanted: str) -> PinnedRoots:
    try:
        certificates = x509.load_pem_x509_certificates(bundle.read_bytes())
    except OSError as error:
        raise _bundle_problem(
            bundle, f"can't be read: {error.strerror}", "put the internal CA's root there, PEM"
        ) from error
    except ValueError as error:
        raise _bundle_problem(
            bundle, "holds no certificates in PEM", "put the internal CA's root there, PEM"
        ) from error
    if wanted:
        certificates = [certificate for certificate in certificates if _sha256(certificate) == wanted]
    if not certificates:
        message = f"none of its certificates has the fingerprint {wanted} of identity.step_ca.fingerprint"
        raise _bundle_problem(bundle, message, _CHECK_FINGERPRINT)
    return PinnedRoots.of(certificates)


def _fetched(endpoint: Endpoint, wanted: str, timeout: timedelta) -> PinnedRoots:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # what is fetched proves itself by its hash
    try:
        reply = exchange(endpoint, "GET", f"/root/{wanted}", context=context, timeout=timeout)
    except UnreachableError:
        raise
    except EnrollmentError as error:  # asking for a root changes nothing, so it counts as nothing sent
        raise UnreachableError(error.message, remedy=error.remedy) from error
    if reply.status != 200:
        raise RefusedError(
            f"the CA at {endpoint.origin} has no root with the fingerprint {wanted} (HTTP {reply.status})",
            status=reply.status,
            said=reply.said,
            remedy=f"check identity.step_ca.fingerprint: {_CHECK_FINGERPRINT}",
        )
    try:
        certificate = x509.load_pem_x509_certificate(str(reply.json().get("ca", "")).encode())
    except ValueError as error:
        raise EnrollmentError(
            f"{endpoint.origin} doesn't answer like step-ca", remedy="check identity.step_ca.url"
        ) from error
    if _sha256(certificate) != wanted:
        raise EnrollmentError(
            f"{endpoint.origin} handed out a root with the fingerprint {_sha256(certificate)} instead of {wanted}",
            remedy="something between this host and the CA answers in its place; nothing was sent to it",
        )
    return PinnedRoots.of([certificate])


def _sha256(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def _bundle_problem(bundle: Path, message: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(
        [ConfigurationProblem(str(bundle), None, "identity.step_ca.root_ca_bundle", message, remedy)]
    )
