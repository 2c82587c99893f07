"""CA bundles as people keep them: which certificates a file has, and which of them may be used now.

The usual way to renew an internal root is to append the new one. When the old one ends, a verifier that takes the first
certificate of the right name fails though the valid one stands behind it (gRPC's BoringSSL does). So whatever verifies
by a bundle is given `in_force` and never the file: what was parsed and is of use now, written anew. A byte order mark,
text and repetitions are gone by then, and what is read is what is used.

A certificate that is not valid yet stays, unless one of its name is valid now: a clock that is behind must not empty a
bundle for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certplane.errors import CertplaneError
from certplane.pki.pem import PemError, decode_pem, has_private_key, pem_text
from certplane.pki.reading import READ_ERRORS

ENDS_SOON = timedelta(days=30)
"""How long before its end a CA is told of; a short-lived one in the last quarter of its life."""

_MAX_LENGTH = 4 * 1024 * 1024
_MAX_CERTIFICATES = 1000
_LABEL = "CERTIFICATE"


class BundleError(CertplaneError):
    """A CA bundle can't be used; the message says why, the caller knows which file it is."""


@dataclass(frozen=True, slots=True)
class CaBundle:
    """The certificates of a bundle, each once, in the file's order."""

    certificates: tuple[x509.Certificate, ...]

    @classmethod
    def from_pem(cls, pem: bytes, *, only_cas: bool = True) -> CaBundle:
        """The bundle of a PEM file; text between the certificates is allowed (RFC 7468 5.2), and so is a BOM.

        Args:
            pem: the file's content.
            only_cas: refuse a certificate that is no CA's. Without it a server's own certificate may be trusted.

        Raises:
            BundleError: no certificate in it, a private key, or something else than certificates.
        """
        try:
            text = pem_text(pem)
        except PemError as error:
            raise BundleError(str(error)) from error
        if has_private_key(text):
            raise BundleError("holds a private key; a CA bundle has certificates only")
        try:
            blocks = decode_pem(text, _LABEL, max_blocks=_MAX_CERTIFICATES, max_length=_MAX_LENGTH)
            certificates = [x509.load_der_x509_certificate(der) for _, der in blocks]
            for certificate in certificates:
                _named(certificate)  # its name can be read
                if only_cas:
                    _check_is_ca(certificate)
        except PemError as error:
            raise BundleError(str(error)) from error
        except READ_ERRORS as error:
            raise BundleError("holds a certificate that can't be read") from error
        return cls(tuple(dict.fromkeys(certificates)))

    def in_force(self, now: datetime) -> tuple[x509.Certificate, ...]:
        """What a verifier may be given now: nothing that has ended; of one name, those that end last come first."""
        return _in_force(self.certificates, now)

    def pem(self, now: datetime) -> bytes:
        """`in_force` as PEM; empty when nothing is left."""
        return encode_certificates(self.in_force(now))

    def nothing_left(self, now: datetime) -> str:
        """Why nothing of it can be used now, going on from the file's name; empty while something can."""
        if self.in_force(now):
            return ""
        last = max(self.certificates, key=lambda certificate: certificate.not_valid_after_utc)
        return f"has no certificate that is still valid: the last, {_named(last)}, ended at {_moment(last)}"

    def warnings(self, now: datetime) -> list[str]:
        """What somebody should know of it: which certificates have ended, and whose end is near. One line each.

        The coming end of one that has a successor of the same name and key is no news: nothing depends on it.
        """
        return _warnings(self.certificates, now)

    def next_end(self, now: datetime) -> datetime:
        """When the next of its CAs ends for good, successors of the same name and key counted in.

        Those that have ended are passed over, unless all have.
        """
        ends = _ends(self.certificates).values()
        return min((end for end in ends if end > now), default=max(ends))


def presentable(chain_pem: bytes, now: datetime) -> bytes:
    """A chain to present, PEM, leaf first, without intermediates that have ended; the leaf stays whatever it is.

    What can't be read is left as it is: whoever uses it says so.
    """
    try:
        leaf, *rest = x509.load_pem_x509_certificates(chain_pem)
    except ValueError:
        return chain_pem
    return encode_certificates((leaf, *(each for each in rest if each.not_valid_after_utc > now)))


def encode_certificates(certificates: Iterable[x509.Certificate]) -> bytes:
    """Certificates as PEM, one after the other."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _in_force(certificates: Iterable[x509.Certificate], now: datetime) -> tuple[x509.Certificate, ...]:
    alive = [certificate for certificate in certificates if certificate.not_valid_after_utc > now]
    valid_names = {each.subject for each in alive if each.not_valid_before_utc <= now}
    usable = [each for each in alive if each.not_valid_before_utc <= now or each.subject not in valid_names]
    places = {name: place for place, name in reversed([*enumerate(each.subject for each in usable)])}
    return tuple(sorted(usable, key=lambda each: (places[each.subject], -each.not_valid_after_utc.timestamp())))


def _ends(certificates: Iterable[x509.Certificate]) -> dict[tuple[x509.Name, bytes], datetime]:
    ends: dict[tuple[x509.Name, bytes], datetime] = {}
    for certificate in certificates:
        ca = _ca(certificate)
        ends[ca] = max(ends.get(ca, certificate.not_valid_after_utc), certificate.not_valid_after_utc)
    return ends


def _warnings(certificates: Sequence[x509.Certificate], now: datetime) -> list[str]:
    lines = []
    ends = _ends(certificates)
    for certificate in certificates:
        end = certificate.not_valid_after_utc
        life = end - certificate.not_valid_before_utc
        if end <= now:
            lines.append(f"{_named(certificate)} ended at {_moment(certificate)} and is passed over; remove it")
        elif end == ends[_ca(certificate)] and end - now <= min(ENDS_SOON, life / 4):
            lines.append(
                f"{_named(certificate)} ends at {_moment(certificate)}; add its successor to the file before that"
            )
    return lines


def _ca(certificate: x509.Certificate) -> tuple[x509.Name, bytes]:
    try:
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except READ_ERRORS:  # a key of a kind that isn't known here has no successor either
        key = certificate.fingerprint(hashes.SHA256())
    return certificate.subject, key


def _check_is_ca(certificate: x509.Certificate) -> None:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = None
    if constraints is None or not constraints.ca:
        raise BundleError(f"holds a certificate that is no CA's: {_named(certificate)}")


def _named(certificate: x509.Certificate) -> str:
    return f"{certificate.subject.rfc4514_string() or 'without a name'} ({certificate.serial_number:x})"


def _moment(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
