"""Certificate signing requests (PKCS#10, RFC 2986): making them, and reading those of others.

A CSR conveys a public key and DNS names. Everything else in one is refused, not ignored, so that nobody believes to
have asked for what was dropped: other subject attributes than the common name, other extensions than subjectAltName (a
keyUsage or extendedKeyUsage serverAuth that tools like to add included: policy and the CA decide these), a challenge
password. Two extensions ask for nothing and are passed over, since keytool and certtool can't leave them out:
subjectKeyIdentifier, and basicConstraints CA:FALSE. The refusal names what it found. The common name may be absent or
one of the names.

`cryptography` is lenient where a broker must not be (it loads bad signatures, RSA-512, e=3, names with NUL, and keys in
encodings that no public CA reads), so each property is checked here; what its parser raises ends as a refusal too. An
order, a validation and a finalisation cost more than a refusal, so what a CA can't read is refused, and what it reads
passes: the key stands in its one encoding, an RSA signature's algorithm may lack its NULL (RFC 4055 5).
tests/integration/test_csr_verdicts.py asks a CA itself.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes, CertificatePublicKeyTypes
from cryptography.x509.oid import AttributeOID, ExtensionOID, NameOID, SignatureAlgorithmOID

from certplane.errors import Reason, RefusalError, Violation
from certplane.pki.der import DerError, Element, read_element, read_sequence
from certplane.pki.keys import KeyType, PrivateKey, check_public_key
from certplane.pki.names import DnsNameError, canonical_dns_name, has_dns_syntax
from certplane.pki.pem import PemError, decode_pem
from certplane.pki.reading import READ_ERRORS

MAX_CSR_LENGTH = 16 * 1024
"""Characters of PEM: a hundred of the longest names would not fit a certificate either."""

MAX_DNS_NAMES = 100
"""What the largest profile of the public CAs allows."""

_MOST_STRANGERS = 4
"""Names validated in full of a CSR that has others than it may: an A-label costs a hundred microseconds."""

_FIELD = "csr_pem"
_ANEW = "make the CSR anew with another tool, such as `openssl req`"
_LABEL = "CERTIFICATE REQUEST"

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
"""Their parameters are absent, or NULL for RSA: the library reads no others."""

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

_EXPECTED = {
    "rsa": "the algorithm of an RSA key has NULL parameters, and its numbers are in their shortest form "
    "(RFC 3279 2.3.1)",
    "ec": "an EC key has a named curve and an uncompressed point (RFC 5480 2)",
}
_NUMERIC_STRING = 0x12

_PLACES = {
    "::PrintableString": "its subject has a PrintableString with a character that none may have, such as `*`",
    "::subject": "its subject is malformed",
    "::spki": "its public key is malformed",
    "::attributes": "its attributes are malformed, or not in the order of DER",
    "::signature_alg": "its signature algorithm has parameters that it can't have",
}
"""What the library's error calls the part that it could not read -> what we call it."""

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


def parse_csr(pem: str, *, known: Collection[str] | None = None) -> CertificateRequest:
    """Read and check a CSR.

    Args:
        pem: Exactly one PEM block, with text beside it or not, at most `MAX_CSR_LENGTH` characters.
        known: Canonical names that the CSR's will be compared with, if they will be. Its names that are among them need
            no validation, and of the others, which will be refused, only the first few are validated in full.

    Raises:
        RefusalError: CSR_INVALID or KEY_WEAK, with the violated field `csr_pem`.
    """
    try:
        der = decode_csr(pem)
    except PemError as error:
        raise _invalid(f"the CSR {error}") from error
    try:
        csr = x509.load_der_x509_csr(der)
    except READ_ERRORS as error:
        raise _invalid(f"the CSR can't be read as a PKCS#10 structure{_place(error)}; {_ANEW}") from error
    try:
        public_key = csr.public_key()
    except READ_ERRORS as error:
        raise _invalid(
            "the CSR's public key can't be used: it is malformed, has explicit curve parameters, or is of a kind that "
            f"nobody signs; use one of {', '.join(KeyType)}"
        ) from error
    key_type = check_public_key(public_key, field=_FIELD)
    parts = _Parts.of(der)
    spki_sha256 = _check_encoding(parts.spki, public_key, key_type)
    _check_attributes(csr)
    dns_names = _dns_names(csr, known)
    _check_subject(csr, parts.subject, dns_names)
    _check_signature(csr, parts.signature)
    return CertificateRequest(
        der=der,
        sha256=hashlib.sha256(der).hexdigest(),
        key_type=key_type,
        public_key_sha256=spki_sha256,
        dns_names=dns_names,
    )


def decode_csr(pem: str) -> bytes:
    """The DER of a CSR's text, whatever it is.

    Raises:
        PemError: not exactly one PEM block of a CSR, or too long.
    """
    ((_, der),) = decode_pem(pem, _LABEL, max_blocks=1, max_length=MAX_CSR_LENGTH)
    return der


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


def _check_attributes(csr: x509.CertificateSigningRequest) -> None:
    """Only one extensionRequest attribute with one value."""
    try:
        oids = [attribute.oid for attribute in csr.attributes]
    except READ_ERRORS as error:
        raise _invalid("the CSR has an attribute that can't be read, or with several values") from error
    for oid in oids:
        if oid != _EXTENSION_REQUEST:
            raise _invalid(f"the CSR has the attribute {_oid_name(oid)}; only requested extensions are allowed")
    if len(oids) > 1:
        raise _invalid("the CSR has several extensionRequest attributes")


def _dns_names(csr: x509.CertificateSigningRequest, known: Collection[str] | None) -> tuple[str, ...]:
    try:
        extensions = csr.extensions
    except READ_ERRORS as error:
        raise _invalid(
            "the CSR's extensions can't be read; each may occur once and is DER, without a default such as CA:FALSE "
            f"written out, and names are ASCII (A-labels, xn--...); {_ANEW}"
        ) from error
    names: list[x509.GeneralName] = []
    for extension in extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            names.extend(extension.value)
        elif not _asks_for_nothing(extension.value):
            raise _invalid(
                f"the CSR asks for the extension {_oid_name(extension.oid)}; only subjectAltName is allowed, since "
                "policy and the CA decide the rest and a wish would be dropped silently: make the CSR without "
                "it, such as with `openssl req`"
            )
    if not names:
        raise _invalid("the CSR has no subjectAltName with DNS names")
    if len(names) > MAX_DNS_NAMES:
        raise _invalid(f"the CSR has {len(names)} names; at most {MAX_DNS_NAMES} are allowed")
    return tuple(sorted(_canonical_names(names, known)))


def _canonical_names(names: Iterable[x509.GeneralName], known: Collection[str] | None) -> set[str]:
    canonical: set[str] = set()
    expected, strangers = frozenset(known or ()), 0
    for name in names:
        if not isinstance(name, x509.DNSName):
            raise _invalid(f"the CSR has a subjectAltName of the kind {type(name).__name__}; only DNS names are served")
        lower = name.value.lower() if name.value.isascii() else name.value
        if lower not in expected:  # those were validated when they were written down
            strangers += 1
            if known is None or strangers <= _MOST_STRANGERS or not has_dns_syntax(lower):
                lower = _canonical(name.value, "subjectAltName")
        canonical.add(lower)
    return canonical


def _asks_for_nothing(value: x509.ExtensionType) -> bool:
    """A name for the key, which the CA makes itself, or the word that this is no CA's key."""
    if isinstance(value, x509.BasicConstraints):
        return not value.ca and value.path_length is None
    return isinstance(value, x509.SubjectKeyIdentifier)


def _check_subject(csr: x509.CertificateSigningRequest, encoded: Element, dns_names: tuple[str, ...]) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):  # strangers' lengths are no line on our stderr
            attributes = list(csr.subject)
    except (ValueError, TypeError) as error:
        raise _invalid(f"the CSR's subject can't be read; its common name is best a UTF8String: {_ANEW}") from error
    for attribute in attributes:
        if attribute.oid != NameOID.COMMON_NAME:
            raise _invalid(f"the CSR's subject has {_oid_name(attribute.oid)}; only a common name is allowed")
    if len(attributes) > 1:
        raise _invalid("the CSR's subject has several common names")
    for attribute in attributes:
        value = attribute.value
        if value == "":  # as good as none
            continue
        if not isinstance(value, str) or (value not in dns_names and _canonical(value, "common name") not in dns_names):
            raise _invalid("the CSR's common name is not among its subjectAltName DNS names")
    _check_strings(encoded)


def _check_strings(subject: Element) -> None:
    """A NumericString holds digits and spaces alone (X.680 41.2), and so no name: the library reads it, CAs don't."""
    try:
        values = [
            read_sequence(attribute)[1] for name in read_sequence(subject) for attribute in read_sequence(name)
        ]  # a Name is a sequence of sets of (type, value)
    except (DerError, IndexError) as error:
        raise _invalid(f"the CSR's subject is not DER; {_ANEW}") from error
    if any(value.tag == _NUMERIC_STRING for value in values):
        raise _invalid("the CSR's common name is a NumericString, which holds digits alone; use a UTF8String")


def _check_signature(csr: x509.CertificateSigningRequest, signature: Element) -> None:
    """Last, since it costs the most: proof that whoever asks holds the key."""
    if csr.signature_algorithm_oid not in _SIGNATURE_ALGORITHMS:
        raise _invalid("the CSR's signature algorithm is not supported; sign with SHA-256, SHA-384 or SHA-512")
    if not signature.value.startswith(b"\0"):
        raise _invalid(f"the CSR's signature is not whole octets, as its first one says; {_ANEW}")
    try:
        valid = csr.is_signature_valid
    except READ_ERRORS as error:
        raise _invalid("the CSR's signature can't be checked") from error
    if not valid:
        raise _invalid("the CSR's signature is not valid for its key")


@dataclass(frozen=True, slots=True)
class _Parts:
    """Pieces of the CSR's DER that the library doesn't hand out as they stand."""

    subject: Element
    spki: bytes
    signature: Element

    @classmethod
    def of(cls, der: bytes) -> Self:
        """CertificationRequest ::= SEQUENCE {info {version, subject, spki, attributes}, algorithm, signature}."""
        try:
            whole = read_element(der)
            info = read_element(der, whole.content, whole.end)
            version = read_element(der, info.content, info.end)
            subject = read_element(der, version.end, info.end)
            spki = read_element(der, subject.end, info.end)
            algorithm = read_element(der, info.end, whole.end)
            signature = read_element(der, algorithm.end, whole.end)
        except DerError as error:
            raise _invalid(f"the CSR is not DER; {_ANEW}") from error
        return cls(subject, spki.encoded, signature)


def _check_encoding(
    spki: bytes, public_key: CertificatePublicKeyTypes | CertificateIssuerPublicKeyTypes, key_type: KeyType
) -> str:
    """The SHA-256 of the key, which must be encoded as everybody encodes it: a CA refuses others, after a validation.

    For P-256 without encoding the key again: 2 us instead of 22.
    """
    is_p256 = key_type is KeyType.EC_P256 and len(spki) == _P256_SPKI_LENGTH and spki.startswith(_P256_SPKI_PREFIX)
    if not is_p256 and spki != public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    ):
        raise _invalid(
            f"the CSR's public key is not in the encoding that CAs read: {_EXPECTED[key_type.partition('-')[0]]}; "
            f"{_ANEW}"
        )
    return hashlib.sha256(spki).hexdigest()


def _place(error: Exception) -> str:
    """Which part the library could not read, where it says so."""
    if isinstance(error, x509.InvalidVersion):
        return ": its version is not 1 (which is written as 0)"
    for part, named in _PLACES.items():
        if part in str(error):
            return f": {named}"
    return ""


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
