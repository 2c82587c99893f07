"""Certificate chains as a public CA or the broker hands them out: taking them apart and checking them.

What a CA returns is checked against what was asked for before anything is stored or installed: the key, the names, the
order of the chain, the validity now. The root's own place in the trust stores of the world isn't checked: that is the
CA's business, and a private one's root is not known here.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtensionOID

from certplane.errors import Reason, RefusalError
from certplane.pki.keys import public_key_sha256
from certplane.pki.names import DnsNameError, canonical_dns_name
from certplane.pki.pem import PemError, decode_pem, encode_pem

__all__ = [
    "MAX_CERTIFICATES",
    "MAX_CHAIN_LENGTH",
    "CertificateFacts",
    "ChainError",
    "IssuedChain",
    "check_issued_chain",
    "leaf_facts",
    "split_chain",
]

MAX_CERTIFICATES = 10
MAX_CHAIN_LENGTH = 32 * 1024
"""Characters of PEM; a real chain has 4 to 8 thousand. Half of what a message of the broker may be: beside the chain an
answer has its names twice, and what can't be handed out must not be taken for issued."""

CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far a CA's clock may be ahead of ours before its new certificate counts as not yet valid."""

_LABEL = "CERTIFICATE"


class ChainError(RefusalError):
    """A chain isn't what was asked for: ISSUER_REJECTED, since whoever made it has to answer for it."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.ISSUER_REJECTED, message)


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What one certificate says.

    `dns_names` and `uris` are its SANs, the first canonical where they can be, both sorted; `serial_number` is
    lower-case hexadecimal; `issuer` the issuer's name as RFC 4514 writes it.
    """

    dns_names: tuple[str, ...]
    uris: tuple[str, ...]
    serial_number: str
    issuer: str
    not_before: datetime
    not_after: datetime
    public_key_sha256: str


@dataclass(frozen=True, slots=True)
class IssuedChain:
    """A checked chain: `certificate_pem` the leaf, `chain_pem` its issuers, leaf's first, without a root."""

    certificate_pem: str
    chain_pem: str
    facts: CertificateFacts


def leaf_facts(pem: str) -> CertificateFacts:
    """The facts of the first certificate of a PEM text.

    Raises:
        ChainError: the text isn't certificates in PEM, or the first can't be read.
    """
    return _facts(_load(_blocks(pem)[0]))


def split_chain(fullchain_pem: str) -> tuple[str, str]:
    """The leaf and the rest of a PEM chain, each as PEM; the rest is empty when there is none.

    Raises:
        ChainError: the text isn't certificates in PEM.
    """
    leaf, *rest = _blocks(fullchain_pem)
    return encode_pem(_LABEL, leaf), "".join(encode_pem(_LABEL, der) for der in rest)


def check_issued_chain(
    fullchain_pem: str, *, public_key_sha256: str, dns_names: Collection[str], now: datetime
) -> IssuedChain:
    """Check a new certificate with its chain against what was asked for.

    Args:
        fullchain_pem: PEM, leaf first; nothing but certificates.
        public_key_sha256: The key that was sent (`certplane.pki.keys.public_key_sha256`).
        dns_names: The names that were sent, canonical; the certificate must have exactly these.
        now: The time at which it must be valid, give or take `CLOCK_TOLERANCE` at its start.

    Raises:
        ChainError: anything is wrong; the message says what.
    """
    ders = _blocks(fullchain_pem)
    certificates = [_load(der) for der in ders]
    leaf = certificates[0]
    facts = _facts(leaf)
    if facts.public_key_sha256 != public_key_sha256:
        raise ChainError("the certificate is for another key than the request's")
    if facts.dns_names != tuple(sorted(dns_names)) or _has_other_names(leaf):
        raise ChainError(
            f"the certificate is for {', '.join(facts.dns_names) or 'no DNS name'} "
            f"instead of {', '.join(sorted(dns_names))}"
        )
    _check_is_leaf(leaf)
    _check_validity(certificates, now)
    _check_links(certificates)
    rest = ders[1:]
    if rest and _is_self_issued(certificates[-1]):
        rest = rest[:-1]
    return IssuedChain(
        certificate_pem=encode_pem(_LABEL, ders[0]),
        chain_pem="".join(encode_pem(_LABEL, der) for der in rest),
        facts=facts,
    )


def _blocks(pem: str) -> list[bytes]:
    try:
        blocks = decode_pem(pem, _LABEL, max_blocks=MAX_CERTIFICATES, max_length=MAX_CHAIN_LENGTH)
    except PemError as error:
        raise ChainError(f"the certificate chain {error}") from error
    return [der for _, der in blocks]


def _load(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ChainError("the certificate chain has a certificate that can't be read") from error
    # The count of unused bits before the signature is outside of what is signed, and no signature has any: whoever
    # changed it would have made another certificate, with another hash, of the same content.
    signature = certificate.signature
    if not der.endswith(b"\0" + signature):
        raise ChainError("the certificate chain has a certificate whose signature isn't a whole number of octets")
    return certificate


def _facts(certificate: x509.Certificate) -> CertificateFacts:
    try:
        sans = _alternative_names(certificate)
        return CertificateFacts(
            dns_names=tuple(sorted({_canonical(name) for name in sans if isinstance(name, x509.DNSName)})),
            uris=tuple(sorted({name.value for name in sans if isinstance(name, x509.UniformResourceIdentifier)})),
            serial_number=format(certificate.serial_number, "x"),
            issuer=certificate.issuer.rfc4514_string(),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            public_key_sha256=public_key_sha256(certificate.public_key()),
        )
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise ChainError("the certificate can't be read") from error


def _alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _canonical(name: x509.DNSName) -> str:
    try:
        return canonical_dns_name(name.value)
    except DnsNameError:
        return name.value


def _has_other_names(leaf: x509.Certificate) -> bool:
    return any(not isinstance(name, x509.DNSName) for name in _alternative_names(leaf))


def _check_is_leaf(leaf: x509.Certificate) -> None:
    try:
        constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        pass
    else:
        if constraints.ca:
            raise ChainError("the certificate is a CA's, not a server's")
    if any(extension.oid == ExtensionOID.PRECERT_POISON for extension in leaf.extensions):
        raise ChainError("the certificate is a precertificate (RFC 6962 3.1)")


def _check_validity(certificates: list[x509.Certificate], now: datetime) -> None:
    for number, certificate in enumerate(certificates):
        which = "the certificate" if number == 0 else f"certificate {number + 1} of the chain"
        if certificate.not_valid_before_utc > now + CLOCK_TOLERANCE:
            raise ChainError(f"{which} is not valid before {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}")
        if certificate.not_valid_after_utc <= now:
            raise ChainError(f"{which} expired at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")


def _check_links(certificates: list[x509.Certificate]) -> None:
    """Each is signed by the next (RFC 8555 9.1 asks for that order)."""
    for number, (certificate, issuer) in enumerate(itertools.pairwise(certificates), 1):
        try:
            certificate.verify_directly_issued_by(issuer)
            constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise ChainError(f"certificate {number} of the chain is not signed by the one after it") from error
        except (x509.ExtensionNotFound, x509.DuplicateExtension) as error:
            raise ChainError(f"certificate {number + 1} of the chain is no CA's") from error
        if not constraints.ca:
            raise ChainError(f"certificate {number + 1} of the chain is no CA's")


def _is_self_issued(certificate: x509.Certificate) -> bool:
    return certificate.subject == certificate.issuer
