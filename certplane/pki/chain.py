"""Certificate chains as a public CA or the broker hands them out: taking them apart and checking them.

What a CA returns is checked against what was asked for before anything is stored or installed: the key, the names, the
validity now, and that its issuers lead upwards from it. A CA's chain may hold more than that, as servers and clients
bear it: from what came, the certificates that lead upwards are taken, and the rest is dropped and named (a root,
doubles, strangers, an expired cross-sign at the end). Refusing the whole would spend one certificate more for each
try, since the same chain comes again. The root's own place in the trust stores of the world isn't checked: that is the
CA's business, and a private one's root is not known here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from certplane.pki.chain_path import Came, ChainError, check_validity, dropped, find_path, is_ca, load
from certplane.pki.keys import public_key_sha256
from certplane.pki.names import DnsNameError, canonical_dns_name
from certplane.pki.pem import PemError, decode_pem, encode_pem, find_pem
from certplane.pki.reading import READ_ERRORS

MAX_CERTIFICATES = 10
MAX_CHAIN_LENGTH = 32 * 1024
"""Characters of PEM; a real chain has 4 to 8 thousand. Half of what a message of the broker may be: beside the chain an
answer has its names twice, and what can't be handed out must not be taken for issued."""

MOST_CAME = 100
"""Certificates of a CA's answer that are looked at: more than are handed out, since what doesn't belong is dropped."""

_LABEL = "CERTIFICATE"


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
    """A checked chain: `certificate_pem` the leaf, `chain_pem` its issuers, leaf's first, without a root.

    `dropped` says what else came and was left out, for a log: a line for each certificate, roots not mentioned.
    """

    certificate_pem: str
    chain_pem: str
    facts: CertificateFacts
    dropped: tuple[str, ...] = ()


def leaf_facts(pem: str) -> CertificateFacts:
    """The facts of the first certificate of a PEM text.

    Raises:
        ChainError: the text isn't certificates in PEM, or the first can't be read.
    """
    return _facts(load(_blocks(pem)[0]))


def split_chain(fullchain_pem: str) -> tuple[str, str]:
    """The leaf and the rest of a PEM chain, each as PEM; the rest is empty when there is none.

    Raises:
        ChainError: the text isn't certificates in PEM.
    """
    leaf, *rest = _blocks(fullchain_pem)
    return encode_pem(_LABEL, leaf), "".join(encode_pem(_LABEL, der) for der in rest)


def found_chain(text: str) -> tuple[str, int]:
    """The certificates of a CA's answer in PEM, as they came, and how many blocks beside them are left out.

    Empty if there are none. Whatever stands between them is left out too.
    """
    found, passed = find_pem(text, _LABEL)
    return "".join(encode_pem(_LABEL, der) for der in found[:MOST_CAME]), passed + len(found[MOST_CAME:])


def top_issuer(fullchain_pem: str, now: datetime) -> str:
    """Common name of the issuer of the last certificate that leads upwards from the leaf; empty if it has none.

    The leaf is the first certificate that isn't a CA's: what else was asked of it, `check_issued_chain` looks at.

    Raises:
        ChainError: nothing leads upwards, or there is no leaf.
    """
    came = [Came(number, der) for number, der in enumerate(_blocks(fullchain_pem, most=MOST_CAME), 1)]
    leaf = next(filter(_may_be_leaf, came), None)
    if leaf is None:
        raise ChainError(came[0].unread or "the certificate chain has no server's certificate")
    last = [leaf, *find_path(leaf, came, now)][-1]
    names = last.certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def check_issued_chain(
    fullchain_pem: str,
    *,
    public_key_sha256: str,
    dns_names: Collection[str],
    now: datetime,
    most: int = MAX_CERTIFICATES,
) -> IssuedChain:
    """Check a new certificate with its chain against what was asked for.

    Args:
        fullchain_pem: PEM, in any order, though leaf first is what CAs should send (RFC 8555 9.1); no other blocks.
            Of a CA's answer, that is what `found_chain` leaves.
        public_key_sha256: The key that was sent (`certplane.pki.keys.public_key_sha256`).
        dns_names: The names that were sent, canonical; the certificate must have exactly these.
        now: The time at which it must be valid, give or take `CLOCK_TOLERANCE` at its start.
        most: More certificates are an error; `MOST_CAME` for what a CA sent.

    Raises:
        ChainError: anything is wrong; the message says what.
    """
    try:
        came = [Came(number, der) for number, der in enumerate(_blocks(fullchain_pem, most=most), 1)]
    except ChainError as error:
        error.may_heal = True
        raise
    leaf, facts = _choose_leaf(came, public_key_sha256, tuple(sorted(dns_names)))
    _check_is_leaf(leaf.certificate)
    try:
        check_validity(leaf.certificate, now)
        path = find_path(leaf, came, now)
        issuers = path[:-1] if path and path[-1].is_self_issued else path
        chain_pem = "".join(encode_pem(_LABEL, each.der) for each in issuers)
        certificate_pem = encode_pem(_LABEL, leaf.der)
        if len(issuers) >= MAX_CERTIFICATES or len(certificate_pem) + len(chain_pem) > MAX_CHAIN_LENGTH:
            allowed = f"{MAX_CERTIFICATES} certificates or {MAX_CHAIN_LENGTH} characters"
            raise ChainError(f"the certificate and its issuers are more than {allowed}")  # noqa: TRY301 - one of its kind
    except ChainError as error:
        error.may_heal = leaf.certificate.not_valid_after_utc > now
        raise
    return IssuedChain(
        certificate_pem=certificate_pem,
        chain_pem=chain_pem,
        facts=facts,
        dropped=tuple(dropped([leaf, *path], came, now)),
    )


def _choose_leaf(came: list[Came], key_sha256: str, dns_names: tuple[str, ...]) -> tuple[Came, CertificateFacts]:
    """The certificate of the key that was sent, the first that has the names too.

    Raises:
        ChainError: there is none of the key, or none of these has the names.
    """
    problem: ChainError | None = None
    for each in came:
        try:
            facts = _facts(each.certificate)
            others = _has_other_names(each.certificate)
        except ChainError as error:
            error.may_heal = True  # what was cut or changed on the way can't be read either
            problem = problem or error
            continue
        if facts.public_key_sha256 != key_sha256:
            continue
        if facts.dns_names == dns_names and not others:
            return each, facts
        problem = ChainError(
            f"the certificate is for {', '.join(facts.dns_names) or 'no DNS name'} instead of {', '.join(dns_names)}"
        )
    raise problem or ChainError("the certificate is for another key than the request's")


def _blocks(pem: str, *, most: int = MAX_CERTIFICATES) -> list[bytes]:
    length = MAX_CHAIN_LENGTH if most == MAX_CERTIFICATES else len(pem)  # an answer's length has had its bound before
    try:
        blocks = decode_pem(pem, _LABEL, max_blocks=most, max_length=length)
    except PemError as error:
        raise ChainError(f"the certificate chain {error}") from error
    return [der for _, der in blocks]


def _may_be_leaf(each: Came) -> bool:
    try:
        return not is_ca(each.certificate)
    except (ChainError, *READ_ERRORS):
        return False


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
    except READ_ERRORS as error:
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
