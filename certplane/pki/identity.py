"""Client certificates of the internal CA: is this one good, now, and whose is it?

`verify_identity` is the whole question: a path to the bundle (RFC 5280 6, by `cryptography`'s verifier: signatures,
validity, CA constraints, clientAuth), then the names and the step-ca provisioner that the certificate says. What was
presented comes from a stranger, junk included: everything wrong with it ends as a `RefusalError`.

`IdentityVerifier` remembers facts, never a decision: which path was found and from when to when it holds. The time is
looked at on every call, and a bundle with other content is another key, so that neither an expiry nor a removed CA
hides behind a remembered success. Who a name is, and whether it is denied, is policy's and the deny-list's.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from certplane.errors import Reason, RefusalError
from certplane.pki.bundle import BundleError, CaBundle
from certplane.pki.der import INTEGER, OCTET_STRING, SEQUENCE, DerError, read_element, read_sequence
from certplane.pki.names import DnsNameError, canonical_dns_name
from certplane.pki.pem import PemError, decode_pem

__all__ = [
    "PROVISIONER_OID",
    "BundleError",
    "IdentityCertificate",
    "IdentityVerifier",
    "TrustBundle",
    "VerifiedPath",
    "anchor_of",
    "verify_identity",
]

PROVISIONER_OID = x509.ObjectIdentifier("1.3.6.1.4.1.37476.9000.64.1")
"""step-ca's record of the provisioner that authorised a certificate."""

PROVISIONER_KINDS = {
    1: "JWK", 2: "OIDC", 3: "GCP", 4: "AWS", 5: "Azure", 6: "ACME",
    7: "X5C", 8: "K8sSA", 9: "SSHPOP", 10: "SCEP", 11: "Nebula", 12: "Wire",
}  # fmt: skip

_MAX_PRESENTED = 10
_MAX_PRESENTED_LENGTH = 64 * 1024
_MAX_DEPTH = 4
"""Intermediates between leaf and anchor; step-ca has one."""

_AUTHORITY = "://"
"""What a policy tells its URIs by (`certplane.config.values`); no DNS name holds it."""

_LABEL = "CERTIFICATE"
_READ_ERRORS = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension)


class TrustBundle:
    """The internal CA's certificates that clients are verified against. Immutable.

    `hash` is over the certificates' content, whatever their order and the comments between them.
    """

    def __init__(self, certificates: tuple[x509.Certificate, ...]) -> None:
        if not certificates:
            raise BundleError("holds no certificate")
        self.certificates = certificates
        self.hash = hashlib.sha256(b"".join(sorted({_fingerprint(entry) for entry in certificates}))).hexdigest()

    @classmethod
    def from_pem(cls, pem: bytes) -> TrustBundle:
        """The bundle of a PEM file (`certplane.pki.bundle`).

        Raises:
            BundleError: no certificate in it, or something else than certificates of CAs.
        """
        return cls(CaBundle.from_pem(pem).certificates)

    @cached_property
    def anchors(self) -> frozenset[str]:
        """What `anchor_of` says of its certificates."""
        return frozenset(map(anchor_of, self.certificates))

    @cached_property
    def store(self) -> Store:
        """The anchors as the verifier takes them."""
        return Store(list(self.certificates))


@dataclass(frozen=True, slots=True)
class IdentityCertificate:
    """A verified client certificate.

    Attributes:
        names: DNS SANs (canonical) and URI SANs with an authority (as written), in the certificate's order; all others
            are no identity.
        common_name: The subject's common name, canonical if it is a DNS name; empty if there is none.
        serial_number: Lower-case hexadecimal.
        issuer: The issuer's name as RFC 4514 writes it.
        provisioner_kind: `JWK`, `ACME`, ... (`PROVISIONER_KINDS`), `unknown-<n>` for a newer one; empty if the
            certificate doesn't say.
        provisioner_name: The provisioner's name in the CA's configuration.
        not_before: Start of the certificate's validity.
        not_after: End of the certificate's validity.
    """

    names: tuple[str, ...]
    common_name: str
    serial_number: str
    issuer: str
    provisioner_kind: str
    provisioner_name: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class VerifiedPath:
    """An identity and the time in which the whole path that proved it is valid; `anchor` is where the path ends."""

    identity: IdentityCertificate
    not_before: datetime
    not_after: datetime
    anchor: str = ""


class IdentityVerifier:
    """`verify_identity` that remembers the last paths it found. For one thread."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._paths: OrderedDict[bytes, VerifiedPath] = OrderedDict()

    def __len__(self) -> int:
        return len(self._paths)

    def verify(self, leaf_pem: bytes, chain_pem: bytes, bundle: TrustBundle, now: datetime) -> VerifiedPath:
        """As `verify_identity`, with the time in which that holds; refusals aren't remembered."""
        if len(leaf_pem) + len(chain_pem) > _MAX_PRESENTED_LENGTH:
            return _verify_path(leaf_pem, chain_pem, bundle, now)  # which refuses it
        key = _presented_hash(leaf_pem, chain_pem, bundle)
        path = self._paths.get(key)
        if path is not None and path.not_before <= now <= path.not_after:
            self._paths.move_to_end(key)
            return path
        path = _verify_path(leaf_pem, chain_pem, bundle, now)
        self._paths[key] = path
        if len(self._paths) > self._size:
            self._paths.popitem(last=False)
        return path


def verify_identity(leaf_pem: bytes, chain_pem: bytes, bundle: TrustBundle, now: datetime) -> IdentityCertificate:
    """Verify a client certificate against the bundle, at `now`.

    Args:
        leaf_pem: The certificate that was presented, one PEM block.
        chain_pem: What was presented beside it, in any order, the leaf again included; may be empty.
        bundle: The anchors: roots, or intermediates that are trusted by themselves.
        now: Aware time; validity is inclusive at both ends (RFC 5280 4.1.2.5).

    Raises:
        RefusalError: IDENTITY_EXPIRED when the leaf is past its time; IDENTITY_UNKNOWN for everything else.
    """
    return _verify_path(leaf_pem, chain_pem, bundle, now).identity


def _verify_path(leaf_pem: bytes, chain_pem: bytes, bundle: TrustBundle, now: datetime) -> VerifiedPath:
    (leaf,) = _presented(leaf_pem, "client certificate", 1)
    intermediates = _presented_chain(chain_pem) if chain_pem.strip() else ()
    if now > leaf.not_valid_after_utc:
        raise RefusalError(
            Reason.IDENTITY_EXPIRED,
            f"the client certificate expired at {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}; renew the identity",
        )
    if now < leaf.not_valid_before_utc:
        raise _unknown(f"the client certificate is not valid before {leaf.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}")
    verifier = PolicyBuilder().store(bundle.store).time(now).max_chain_depth(_MAX_DEPTH).build_client_verifier()
    try:
        path = verifier.verify(leaf, list(intermediates)).chain
        identity = _identity(leaf)
    except VerificationError as error:
        raise _unknown("the client certificate has no valid path to a CA that this broker trusts") from error
    except _READ_ERRORS as error:
        raise _unknown("the client certificate can't be read") from error
    return VerifiedPath(
        identity=identity,
        not_before=max(certificate.not_valid_before_utc for certificate in path),
        not_after=min(certificate.not_valid_after_utc for certificate in path),
        anchor=anchor_of(path[-1]),
    )


def anchor_of(certificate: x509.Certificate) -> str:
    """What stays of a CA when its certificate is renewed: SHA-256 over its name and its key."""
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(certificate.subject.public_bytes() + key).hexdigest()


@lru_cache(maxsize=64)
def _presented_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Read once for all the hosts that present the same, which nearly all do; what can't be read is read again."""
    return _presented(pem, "client certificate's chain", _MAX_PRESENTED)


def _presented(pem: bytes, what: str, most: int) -> tuple[x509.Certificate, ...]:
    try:
        text = pem.decode("ascii")
        blocks = decode_pem(text, _LABEL, max_blocks=most, max_length=_MAX_PRESENTED_LENGTH)
        return tuple(x509.load_der_x509_certificate(der) for _, der in blocks)
    except (PemError, *_READ_ERRORS) as error:
        raise _unknown(f"the {what} can't be read") from error


def _identity(leaf: x509.Certificate) -> IdentityCertificate:
    _check_usage(leaf)
    common_names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(common_names) > 1:
        raise _unknown("the client certificate has several common names")
    kind, name = _provisioner(leaf)
    return IdentityCertificate(
        names=_names(leaf),
        common_name=_canonical(str(common_names[0].value)) if common_names else "",
        serial_number=format(leaf.serial_number, "x"),
        issuer=_name_text(leaf.issuer),
        provisioner_kind=kind,
        provisioner_name=name,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
    )


@lru_cache(maxsize=256)
def _name_text(name: x509.Name) -> str:
    return name.rfc4514_string()


def _check_usage(leaf: x509.Certificate) -> None:
    """The verifier wants clientAuth where usages are listed, and takes a certificate without a list for any use."""
    if not any(extension.oid == ExtensionOID.EXTENDED_KEY_USAGE for extension in leaf.extensions):
        raise _unknown("the client certificate is not marked for clientAuth (RFC 5280 4.2.1.12)")


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        sans = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    names: dict[str, None] = {}
    for san in sans:
        # A dNSName that reads like a URI is no URI, and the other way round: each kind names its own only, since a CA
        # checks a name by the rules of the kind that it is asked for.
        is_uri = isinstance(san, x509.UniformResourceIdentifier)
        if isinstance(san, x509.DNSName | x509.UniformResourceIdentifier) and is_uri == (_AUTHORITY in san.value):
            names[san.value if is_uri else _canonical(san.value)] = None
    return tuple(names)


def _canonical(name: str) -> str:
    """The canonical name, or the text as it is, which then names nobody in a policy."""
    try:
        return canonical_dns_name(name)
    except DnsNameError:
        return name


def _provisioner(leaf: x509.Certificate) -> tuple[str, str]:
    """Kind and name from step-ca's extension.

    SEQUENCE {type INTEGER, name OCTET STRING, credentialID OCTET STRING, keyValuePairs OPTIONAL}
    (smallstep/certificates, authority/provisioner).
    """
    found = [extension.value for extension in leaf.extensions if extension.oid == PROVISIONER_OID]
    if not found:
        return "", ""
    (value,) = found  # cryptography refuses a certificate with the same extension twice
    if not isinstance(value, x509.UnrecognizedExtension):
        raise TypeError("an extension that cryptography has learnt to read")
    try:
        number, name = _read_provisioner(value.value)
    except (DerError, UnicodeDecodeError) as error:
        raise _unknown("the client certificate's provisioner extension can't be read") from error
    return PROVISIONER_KINDS.get(number, f"unknown-{number}"), name


def _read_provisioner(der: bytes) -> tuple[int, str]:
    sequence = read_element(der)
    fields = read_sequence(sequence)
    tags = [sequence.tag, *(field.tag for field in fields[:3])]
    if sequence.end != len(der) or tags != [SEQUENCE, INTEGER, OCTET_STRING, OCTET_STRING]:
        raise DerError("not the provisioner's structure")
    return int.from_bytes(fields[0].value, "big", signed=True), fields[1].value.decode("utf-8")


def _fingerprint(certificate: x509.Certificate) -> bytes:
    return certificate.fingerprint(hashes.SHA256())


def _presented_hash(leaf_pem: bytes, chain_pem: bytes, bundle: TrustBundle) -> bytes:
    digest = hashlib.sha256(len(leaf_pem).to_bytes(4, "big"))
    digest.update(leaf_pem)
    digest.update(chain_pem)
    digest.update(bundle.hash.encode("ascii"))
    return digest.digest()


def _unknown(message: str) -> RefusalError:
    return RefusalError(Reason.IDENTITY_UNKNOWN, message)
