"""Which CA this host believes: a root by its fingerprint, by a bundle, or by both.

With a fingerprint alone the root itself is fetched over a connection that isn't verified, which is safe since its hash
is compared before anything else is sent. With a bundle nothing is fetched. With both they must agree: only the
bundle's certificates that have the fingerprint count. What has ended of a bundle counts for nothing.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.config.bundles import read_ca_bundle, require_in_force
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.pki.reading import READ_ERRORS
from certplane.pki.trust_bundle import TrustBundle
from certplane.stepca.errors import EnrollmentError, RefusedError, UnreachableError
from certplane.stepca.exchange import Endpoint, exchange

_ROOT_BUNDLE_KEY = "identity.step_ca.root_ca_bundle"
_ISSUER_BUNDLE_KEY = "identity.issuer_ca_bundle"
_CHECK_FINGERPRINT = "compare it with `step certificate fingerprint root_ca.crt` on the CA"


@dataclass(frozen=True, slots=True)
class Trust:
    """How the internal CA is known, as configured.

    Attributes:
        fingerprint: the root's SHA-256, lower-case hex; empty when only the bundle is used.
        root_ca_bundle: PEM file with the roots of the CA's HTTPS; None when only the fingerprint is used.
        issuer_ca_bundle: PEM file with what identities must lead to; None for the roots above.
        problem: makes a problem of a configured key, a message and a remedy (`Source.problem`).
    """

    fingerprint: str
    root_ca_bundle: Path | None
    issuer_ca_bundle: Path | None
    problem: Callable[[str, str, str], ConfigurationProblem]

    def anchors(self, roots: PinnedRoots, now: datetime) -> TrustBundle:
        """What an identity's chain must lead to. Blocks.

        Raises:
            ConfigurationError: the bundle can't be used.
        """
        if self.issuer_ca_bundle is None:
            return TrustBundle(roots.certificates)
        return TrustBundle(self.read_bundle(self.issuer_ca_bundle, _ISSUER_BUNDLE_KEY, now))

    def read_bundle(self, path: Path, key: str, now: datetime) -> tuple[x509.Certificate, ...]:
        """What is in force of the bundle in `path`, which is the value of `key`. Blocks.

        Raises:
            ConfigurationError: it can't be read, isn't one, or all of it has ended.
        """
        at = self.problem(key, "", "")
        bundle = read_ca_bundle(path, at=at)
        require_in_force(bundle, now, path, at=at)
        return bundle.in_force(now)


@dataclass(frozen=True, slots=True)
class PinnedRoots:
    """The roots that are believed."""

    certificates: tuple[x509.Certificate, ...]

    @property
    def sha256(self) -> Sequence[str]:
        """Their fingerprints: SHA-256 of the DER, lower-case hex."""
        return [_sha256(certificate) for certificate in self.certificates]

    def context(self) -> ssl.SSLContext:
        """A TLS context that believes these roots and nothing else, with the host's name checked."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=b"".join(root.public_bytes(Encoding.DER) for root in self.certificates))
        return context


def pinned_roots(endpoint: Endpoint, trust: Trust, timeout: timedelta, *, now: datetime) -> PinnedRoots:
    """The roots of the CA at `endpoint`, those of a bundle as far as they are in force. Blocks.

    Raises:
        UnreachableError: the CA can't be asked for its root.
        EnrollmentError: the CA doesn't have that root, or hands out another.
        ConfigurationError: the bundle can't be used, or has no root of that fingerprint.
    """
    if trust.root_ca_bundle is None:
        return PinnedRoots((_fetched(endpoint, trust.fingerprint, timeout),))
    certificates = trust.read_bundle(trust.root_ca_bundle, _ROOT_BUNDLE_KEY, now)
    if trust.fingerprint:
        certificates = tuple(root for root in certificates if _sha256(root) == trust.fingerprint)
    if not certificates:
        message = f"{trust.root_ca_bundle} has no certificate with the fingerprint {trust.fingerprint}"
        raise ConfigurationError([trust.problem(_ROOT_BUNDLE_KEY, message, _CHECK_FINGERPRINT)])
    return PinnedRoots(certificates)


def _fetched(endpoint: Endpoint, fingerprint: str, timeout: timedelta) -> x509.Certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # what is fetched proves itself by its hash
    try:
        reply = exchange(endpoint, "GET", f"/root/{fingerprint}", context=context, timeout=timeout)
    except UnreachableError:
        raise
    except EnrollmentError as error:  # asking for a root changes nothing, so it counts as nothing sent
        raise UnreachableError(error.message, remedy=error.remedy) from error
    if reply.status != 200:
        raise RefusedError(
            f"the CA at {endpoint.origin} has no root with the fingerprint {fingerprint} (HTTP {reply.status})",
            status=reply.status,
            said=reply.said,
            remedy=f"check identity.step_ca.fingerprint: {_CHECK_FINGERPRINT}",
        )
    try:
        certificate = x509.load_pem_x509_certificate(str(reply.json().get("ca", "")).encode())
    except READ_ERRORS as error:
        raise EnrollmentError(
            f"{endpoint.origin} doesn't answer like step-ca", remedy="check identity.step_ca.url"
        ) from error
    if _sha256(certificate) != fingerprint:
        raise EnrollmentError(
            f"{endpoint.origin} handed out a root with the fingerprint {_sha256(certificate)} instead of {fingerprint}",
            remedy="something between this host and the CA answers in its place; nothing was sent to it",
        )
    return certificate


def _sha256(certificate: x509.Certificate) -> str:
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
