"""Client certificates of the internal CA: is this one good, now, and whose is it?

`verify_identity` is the whole question: a path to the bundle (RFC 5280 6, by `cryptography`'s verifier: signatures,
validity, CA constraints, clientAuth), then the names and the step-ca provisioner that the certificate says. What was
presented comes from a stranger, junk included: everything wrong with it ends as a `RefusalError`.

What a stranger presents must not cost more than it says. Of the certificates beside the leaf only a few are read, and
only those that the bundle's CAs have signed, directly or through one another, reach the path search: a handful of
signature checks with the CAs' own keys, whatever else is presented. Names are compared, not validated.

`IdentityVerifier` remembers facts, never a decision: which path was found and from when to when it holds, over which
CAs it leads (`issuer_path`: the next host's is one signature), and for some seconds that none was. The time is looked
at on every call, and a bundle with other content is another key, so that neither an expiry nor a removed CA hides
behind a remembered success. Who a name is, and whether it is denied, is policy's and the deny-list's.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID
from cryptography.x509.verification import VerificationError

from certplane.errors import Reason, Refusal, RefusalError
from certplane.pki.der import INTEGER, OCTET_STRING, SEQUENCE, DerError, read_element, read_sequence
from certplane.pki.issuer_path import Issuers, KnownIssuers, leading_cas, verify_issuers
from certplane.pki.names import has_dns_syntax
from certplane.pki.pem import PemError, decode_pem
from certplane.pki.reading import READ_ERRORS
from certplane.pki.trust_bundle import TrustBundle

PROVISIONER_OID = x509.ObjectIdentifier("1.3.6.1.4.1.37476.9000.64.1")
"""step-ca's record of the provisioner that authorised a certificate."""

PROVISIONER_KINDS = {
    1: "JWK", 2: "OIDC", 3: "GCP", 4: "AWS", 5: "Azure", 6: "ACME",
    7: "X5C", 8: "K8sSA", 9: "SSHPOP", 10: "SCEP", 11: "Nebula", 12: "Wire",
}  # fmt: skip

_MAX_PRESENTED = 4
"""Three beside the leaf, which may be repeated among them: step-ca has one intermediate, and some send the root too."""
_MAX_LEAF_LENGTH = 64 * 1024
_MAX_CHAIN_LENGTH = 16 * 1024
"""Characters of PEM beside the leaf: three certificates of RSA-4096 CAs are 8,000."""
_MOST_SAID = 200
"""Octets of the path search's own words."""
_MAX_NAMES = 100
"""Of one identity, which has one or two."""

_MAX_REFUSALS = 10_000
_REFUSAL_STANDS = timedelta(seconds=5)
"""How long a refusal is remembered: a host that asks in a loop costs once, and a mended one waits no longer."""

_AUTHORITY = "://"
"""What a policy tells its URIs by (`certplane.config.values`); no DNS name holds it."""

_LABEL = "CERTIFICATE"


@dataclass(frozen=True, slots=True)
class IdentityCertificate:
    """A verified client certificate.

    Attributes:
        names: DNS SANs in lower case and URI SANs with an authority (as written), in the certificate's order; all
            others are no identity. A policy's names are canonical, so what isn't names nobody there.
        common_name: The subject's common name in lower case; empty if there is none.
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


@dataclass(frozen=True, slots=True)
class PresentedLeaf:
    """A client certificate whose path is still to be looked for.

    Attributes:
        sha256: Over what was presented as the leaf, in hexadecimal.
        issuer: What it says of its issuer, as `IdentityCertificate.issuer`.
        serial_number: What it says of its serial number, as `IdentityCertificate.serial_number`.
    """

    sha256: str
    issuer: str
    serial_number: str


class IdentityVerifier:
    """`verify_identity` that remembers the last paths it found, and shortly where there was none. For one thread."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._paths: OrderedDict[bytes, VerifiedPath] = OrderedDict()
        self._refusals: OrderedDict[bytes, tuple[datetime, Refusal]] = OrderedDict()
        self._issuers = KnownIssuers()

    def __len__(self) -> int:
        return len(self._paths)

    def verify(
        self,
        leaf_pem: bytes,
        chain_pem: bytes,
        bundle: TrustBundle,
        now: datetime,
        *,
        permit: Callable[[PresentedLeaf], None] | None = None,
    ) -> VerifiedPath:
        """As `verify_identity`, with the time in which that holds.

        Args:
            leaf_pem: See there.
            chain_pem: See there.
            bundle: See there.
            now: See there.
            permit: Asked before a path is looked for; what it raises ends the call, and isn't remembered.
        """
        _check_lengths(leaf_pem, chain_pem)  # before any of it is hashed
        key = _presented_hash(leaf_pem, chain_pem, bundle)
        path = self._paths.get(key)
        if path is not None and path.not_before <= now <= path.not_after:
            self._paths.move_to_end(key)
            return path
        self._check_refused(key, now)
        try:
            leaf, presented = _presented_leaf(leaf_pem)
        except RefusalError as error:
            self._remember_refusal(key, now, error.refusal)
            raise
        if permit is not None:
            permit(presented)
        try:
            path = _verify_path(leaf, chain_pem, bundle, now, self._issuers.verify)
        except RefusalError as error:
            self._remember_refusal(key, now, error.refusal)
            raise
        self._paths[key] = path
        if len(self._paths) > self._size:
            self._paths.popitem(last=False)
        return path

    def _check_refused(self, key: bytes, now: datetime) -> None:
        remembered = self._refusals.get(key)
        if remembered is None:
            return
        since, refusal = remembered
        if since <= now < since + _REFUSAL_STANDS:
            raise RefusalError(refusal.reason, refusal.message)
        del self._refusals[key]

    def _remember_refusal(self, key: bytes, now: datetime, refusal: Refusal) -> None:
        self._refusals[key] = (now, refusal)
        if len(self._refusals) > _MAX_REFUSALS:
            self._refusals.popitem(last=False)


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
    _check_lengths(leaf_pem, chain_pem)
    leaf, _ = _presented_leaf(leaf_pem)
    return _verify_path(leaf, chain_pem, bundle, now, verify_issuers).identity


def _check_lengths(leaf_pem: bytes, chain_pem: bytes) -> None:
    if len(leaf_pem) > _MAX_LEAF_LENGTH:
        raise _unknown(f"the client certificate can't be read: it is longer than {_MAX_LEAF_LENGTH} characters")
    if len(chain_pem) > _MAX_CHAIN_LENGTH:
        raise _unknown(
            f"the client certificate's chain can't be read: it is longer than {_MAX_CHAIN_LENGTH} characters; present "
            "the intermediates alone"
        )


def _verify_path(
    leaf: x509.Certificate,
    chain_pem: bytes,
    bundle: TrustBundle,
    now: datetime,
    verify: Callable[[x509.Certificate, tuple[x509.Certificate, ...], TrustBundle, datetime], Issuers],
) -> VerifiedPath:
    if now > leaf.not_valid_after_utc:
        raise RefusalError(
            Reason.IDENTITY_EXPIRED,
            f"the client certificate expired at {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}; renew the identity",
        )
    if now < leaf.not_valid_before_utc:
        raise _unknown(f"the client certificate is not valid before {leaf.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}")
    between = _between(chain_pem, bundle) if chain_pem.strip() else ()
    try:
        _check_named(leaf)
        issuers = verify(leaf, between, bundle, now)
        identity = _identity(leaf)
    except RefusalError:
        raise
    except VerificationError as error:
        raise _unknown(
            f"the client certificate has no valid path to a CA that this broker trusts{_said(error)}"
        ) from error
    except Exception as error:
        # A stranger's bytes in a parser that is not ours: whatever it raises is said of them.
        raise _unreadable("client certificate", error) from error
    return VerifiedPath(
        identity=identity,
        not_before=max(leaf.not_valid_before_utc, issuers.not_before),
        not_after=min(leaf.not_valid_after_utc, issuers.not_after),
        anchor=issuers.anchor,
    )


def _between(chain_pem: bytes, bundle: TrustBundle) -> tuple[x509.Certificate, ...]:
    """What was presented and leads to the bundle.

    Found once for all the hosts that present the same, which nearly all do; what can't be read is read again. It takes
    no more than nine signatures, and as many as the bundle has CAs of one name. It is the bundle that remembers it,
    so that neither outlives the other.
    """
    return bundle.leading(
        chain_pem, lambda: leading_cas(_presented(chain_pem, "client certificate's chain", _MAX_PRESENTED), bundle)
    )


def _presented_leaf(pem: bytes) -> tuple[x509.Certificate, PresentedLeaf]:
    (leaf,) = _presented(pem, "client certificate", 1)
    try:
        serial_number, issuer = format(leaf.serial_number, "x"), _name_text(leaf.issuer)
    except READ_ERRORS as error:
        raise _unreadable("client certificate", error) from error
    return leaf, PresentedLeaf(hashlib.sha256(pem).hexdigest(), issuer, serial_number)


def _presented(pem: bytes, what: str, most: int) -> tuple[x509.Certificate, ...]:
    try:
        text = pem.decode("ascii")
        blocks = decode_pem(text, _LABEL, max_blocks=most, max_length=_MAX_LEAF_LENGTH)
        return tuple(x509.load_der_x509_certificate(der) for _, der in blocks)
    except PemError as error:
        remedy = "; present the intermediates alone" if most > 1 else ""
        raise _unknown(f"the {what} can't be read: it {error}{remedy}") from error
    except READ_ERRORS as error:
        raise _unreadable(what, error) from error


def _check_named(leaf: x509.Certificate) -> None:
    """Say what a path search only says no to."""
    if not any(extension.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME for extension in leaf.extensions):
        raise _unknown(
            "the client certificate has no subjectAltName, and a common name alone names no identity: have the CA put "
            "the name into a DNS or URI subjectAltName (with step-ca: the token's `sans`)"
        )


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
    if len(sans) > _MAX_NAMES:
        raise _unknown(f"the client certificate has {len(sans)} names; an identity has at most {_MAX_NAMES}")
    names: dict[str, None] = {}
    for san in sans:
        # A dNSName that reads like a URI is no URI, and the other way round: each kind names its own only, since a CA
        # checks a name by the rules of the kind that it is asked for.
        is_uri = isinstance(san, x509.UniformResourceIdentifier)
        if isinstance(san, x509.DNSName | x509.UniformResourceIdentifier) and is_uri == (_AUTHORITY in san.value):
            names[san.value if is_uri else _canonical(san.value)] = None
    return tuple(names)


def _canonical(name: str) -> str:
    """The name in lower case, or the text as it is where it can't be a DNS name."""
    lower = name.lower()
    return lower if has_dns_syntax(lower) else name


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


def _presented_hash(leaf_pem: bytes, chain_pem: bytes, bundle: TrustBundle) -> bytes:
    digest = hashlib.sha256(len(leaf_pem).to_bytes(4, "big"))
    digest.update(leaf_pem)
    digest.update(chain_pem)
    digest.update(bundle.hash.encode("ascii"))
    return digest.digest()


def _unreadable(what: str, error: Exception) -> RefusalError:
    """The refusal of what `cryptography` can't read, with the parser's name for it: its text may quote the bytes."""
    if isinstance(error, x509.UnsupportedGeneralNameType):
        return _unknown(
            f"the {what} can't be read ({type(error).__name__}): its subjectAltName has a name of a kind that nothing "
            "here reads; have the CA put DNS names or URIs alone there"
        )
    return _unknown(f"the {what} can't be read")


def _said(error: VerificationError) -> str:
    """What a path search found wrong with a certificate, without what it quotes of it; nothing if it has no issuer."""
    said = str(error).removeprefix("validation failed: ").partition(" (encountered processing")[0]
    if said.startswith("candidates exhausted"):
        return ""
    return f": {said[:_MOST_SAID]}" if said.isprintable() else ": it holds text that can't be shown"


def _unknown(message: str) -> RefusalError:
    return RefusalError(Reason.IDENTITY_UNKNOWN, message)
