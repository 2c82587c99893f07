"""Certificate signing requests (PKCS#10, RFC 2986): making them, and reading those of others.

A CSR conveys a public key and DNS names. Everything else in one is refused, not ignored, so that nobody believes to
have asked for what was dropped: other subject attributes than the common name, other extensions than subjectAltName (a
keyUsage or extendedKeyUsage serverAuth that tools like to add included: the CA decides these), a challenge password.
The refusal names what it found. The common name may be absent or one of the names.

`cryptography` is lenient where a broker must not be (it loads bad signatures, RSA-512, e=3, and names with NUL), so
each property is checked here; what its parser raises ends as a refusal too.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes, CertificatePublicKeyTypes
from cryptography.x509.oid import AttributeOID, ExtensionOID, NameOID, SignatureAlgorithmOID

from certplane.errors import Reason, RefusalError, Violation
from certplane.pki.der import DerError, read_element
from certplane.pki.keys import KeyType, PrivateKey, check_public_key, public_key_sha256
from certplane.pki.names import DnsNameError, canonical_dns_name
from certplane.pki.pem import PemError, decode_pem

__all__ = ["MAX_CSR_LENGTH", "MAX_DNS_NAMES", "CertificateRequest", "CsrCache", "build_csr", "parse_csr"]

MAX_CSR_LENGTH = 16 * 1024
"""Characters of PEM: a hundred of the longest names would not fit a certificate either."""

MAX_DNS_NAMES = 100
"""What the largest profile of the public CAs allows."""

_FIELD = "csr_pem"
_LABELS = ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
"""RFC 7468 7: the second is an older name of the same."""

_SIGNATURE_ALGORITHMS = frozenset(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
        SignatureAlgorithmOID.RSA_WITH_SHA256,
        SignatureAlgorithmOID.RSA_WITH_SHA384,
        SignatureAlgorithmOID.RSA_WITH_SHA512,
    }
)

_EXTENSION_REQUEST = x509.ObjectIdentifier("1.2.840.113549.1.9.14")
_KNOWN_OIDS = {
    AttributeOID.CHALLENGE_PASSWORD: "challengePassword",
    ExtensionOID.KEY_USAGE: "keyUsage",
    ExtensionOID.EXTENDED_KEY_USAGE: "extendedKeyUsage",
    ExtensionOID.BASIC_CONSTRAINTS: "basicConstraints",
    ExtensionOID.TLS_FEATURE: "tlsFeature (OCSP must-staple)",
    ExtensionOID.SUBJECT_KEY_IDENTIFIER: "subjectKeyIdentifier",
    NameOID.COUNTRY_NAME: "countryName",
    NameOID.ORGANIZATION_NAME: "organizationName",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "organizationalUnitName",
    NameOID.STATE_OR_PROVINCE_NAME: "stateOrProvinceName",
    NameOID.LOCALITY_NAME: "localityName",
    NameOID.EMAIL_ADDRESS: "emailAddress",
}

# SubjectPublicKeyInfo of an uncompressed P-256 point up to its 64 octets of coordinates (RFC 5480 2): one key has one
# such encoding, so that its bytes can be hashed as they stand.
_P256_SPKI_PREFIX = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
_P256_SPKI_LENGTH = 91


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """A CSR that passed every check: `sha256` is over its DER, `dns_names` are canonical, sorted, not empty."""

    der: bytes
    sha256: str
    key_type: KeyType
    public_key_sha256: str
    dns_names: tuple[str, ...]


def parse_csr(pem: str) -> CertificateRequest:
    """Read and check a CSR.

    Args:
        pem: Exactly one PEM block, at most `MAX_CSR_LENGTH` characters.

    Raises:
        RefusalError: CSR_INVALID or KEY_WEAK, with the violated field `csr_pem`.
    """
    try:
        ((_, der),) = decode_pem(pem, *_LABELS, max_blocks=1, max_length=MAX_CSR_LENGTH)
    except PemError as error:
        raise _invalid(f"the CSR {error}") from error
    try:
        csr = x509.load_der_x509_csr(der)
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise _invalid("the CSR can't be read as a PKCS#10 structure") from error
    try:
        public_key = csr.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _invalid("the CSR's public key can't be used: it is malformed, or of a kind that nobody signs") from error
    key_type = check_public_key(public_key, field=_FIELD)
    _check_attributes(csr)
    dns_names = _dns_names(csr)
    _check_subject(csr, dns_names)
    _check_signature(csr)
    return CertificateRequest(
        der=der,
        sha256=hashlib.sha256(der).hexdigest(),
        key_type=key_type,
        public_key_sha256=_public_key_sha256(csr, public_key, key_type),
        dns_names=dns_names,
    )


def build_csr(key: PrivateKey, *, common_name: str = "", sans: Sequence[str] = ()) -> str:
    """A CSR in PEM, signed with SHA-256 (SHA-384 for P-384).

    Args:
        key: The key to certify.
        common_name: The subject's only attribute; empty for an empty subject.
        sans: DNS names, or URIs where they contain `://`. Names are taken as they are.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
    builder = x509.CertificateSigningRequestBuilder(subject)
    if sans:
        names = [x509.UniformResourceIdentifier(san) if "://" in san else x509.DNSName(san) for san in sans]
        # RFC 5280 4.2.1.6: critical when the subject is empty.
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not common_name)
    p384 = isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1"
    csr = builder.sign(key, hashes.SHA384() if p384 else hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode("ascii")


class CsrCache:
    """The last verified CSRs by their text, so that a retry costs a hash. For one thread; refusals aren't kept.

    Safe because a CSR's meaning depends on nothing but its bytes: what may be issued for it is asked each time.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._requests: OrderedDict[bytes, CertificateRequest] = OrderedDict()

    def __len__(self) -> int:
        return len(self._requests)

    def parse(self, pem: str) -> CertificateRequest:
        """As `parse_csr`."""
        if len(pem) > MAX_CSR_LENGTH:
            return parse_csr(pem)  # which refuses it, without hashing whatever was sent
        # A lone surrogate can't be encoded and isn't base64 either: its text must end in a refusal like any other.
        key = hashlib.sha256(pem.encode("utf-8", "surrogatepass")).digest()
        request = self._requests.get(key)
        if request is None:
            request = parse_csr(pem)
            self._requests[key] = request
            if len(self._requests) > self._size:
                self._requests.popitem(last=False)
        else:
            self._requests.move_to_end(key)
        return request


def _check_attributes(csr: x509.CertificateSigningRequest) -> None:
    """Only one extensionRequest attribute with one value."""
    try:
        oids = [attribute.oid for attribute in csr.attributes]
    except ValueError as error:
        raise _invalid("the CSR has an attribute that can't be read, or with several values") from error
    for oid in oids:
        if oid != _EXTENSION_REQUEST:
            raise _invalid(f"the CSR has the attribute {_oid_name(oid)}; only requested extensions are allowed")
    if len(oids) > 1:
        raise _invalid("the CSR has several extensionRequest attributes")


def _dns_names(csr: x509.CertificateSigningRequest) -> tuple[str, ...]:
    try:
        extensions = csr.extensions
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise _invalid(
            "the CSR's extensions can't be read; each may occur once, and names are ASCII (A-labels, xn--...)"
        ) from error
    names: list[x509.GeneralName] = []
    for extension in extensions:
        if not isinstance(extension.value, x509.SubjectAlternativeName):
            raise _invalid(
                f"the CSR asks for the extension {_oid_name(extension.oid)}; only subjectAltName is allowed, "
                "the CA decides the rest"
            )
        names.extend(extension.value)
    if not names:
        raise _invalid("the CSR has no subjectAltName with DNS names")
    if len(names) > MAX_DNS_NAMES:
        raise _invalid(f"the CSR has {len(names)} names; at most {MAX_DNS_NAMES} are allowed")
    canonical: set[str] = set()
    for name in names:
        if not isinstance(name, x509.DNSName):
            raise _invalid(f"the CSR has a subjectAltName of the kind {type(name).__name__}; only DNS names are served")
        canonical.add(_canonical(name.value, "subjectAltName"))
    return tuple(sorted(canonical))


def _check_subject(csr: x509.CertificateSigningRequest, dns_names: tuple[str, ...]) -> None:
    try:
        attributes = list(csr.subject)
    except (ValueError, TypeError) as error:
        raise _invalid("the CSR's subject can't be read") from error
    for attribute in attributes:
        if attribute.oid != NameOID.COMMON_NAME:
            raise _invalid(f"the CSR's subject has {_oid_name(attribute.oid)}; only a common name is allowed")
    if len(attributes) > 1:
        raise _invalid("the CSR's subject has several common names")
    for attribute in attributes:
        value = attribute.value
        if not isinstance(value, str) or _canonical(value, "common name") not in dns_names:
            raise _invalid("the CSR's common name is not among its subjectAltName DNS names")


def _check_signature(csr: x509.CertificateSigningRequest) -> None:
    """Last, since it costs the most: proof that whoever asks holds the key."""
    if csr.signature_algorithm_oid not in _SIGNATURE_ALGORITHMS:
        raise _invalid("the CSR's signature algorithm is not supported; sign with SHA-256, SHA-384 or SHA-512")
    try:
        valid = csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _invalid("the CSR's signature can't be checked") from error
    if not valid:
        raise _invalid("the CSR's signature is not valid for its key")


def _public_key_sha256(
    csr: x509.CertificateSigningRequest,
    public_key: CertificatePublicKeyTypes | CertificateIssuerPublicKeyTypes,
    key_type: KeyType,
) -> str:
    """`public_key_sha256`, for P-256 without encoding the key again: 2 us instead of 22."""
    if key_type is KeyType.EC_P256:
        try:
            info = read_element(csr.tbs_certrequest_bytes)
            version = read_element(info.data, info.content, info.end)
            subject = read_element(info.data, version.end, info.end)
            spki = read_element(info.data, subject.end, info.end).encoded
        except DerError as error:
            raise _invalid("the CSR is not DER") from error
        if len(spki) == _P256_SPKI_LENGTH and spki.startswith(_P256_SPKI_PREFIX):
            return hashlib.sha256(spki).hexdigest()
    return public_key_sha256(public_key)


def _canonical(name: str, where: str) -> str:
    try:
        return canonical_dns_name(name)
    except DnsNameError as error:
        raise _invalid(f"the CSR's {where} holds {error}") from error


def _oid_name(oid: x509.ObjectIdentifier) -> str:
    name = _KNOWN_OIDS.get(oid)
    return f"{name} ({oid.dotted_string})" if name else oid.dotted_string


def _invalid(problem: str) -> RefusalError:
    return RefusalError(Reason.CSR_INVALID, problem, violations=[Violation(_FIELD, problem)])
