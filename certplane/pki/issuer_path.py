"""Paths from a client certificate to the bundle (RFC 5280 6), by `cryptography`'s verifier.

`verify_issuers` is the plain search: of each certificate on the path its signature, its time, and that it is a CA's.
`KnownIssuers` comes to the same with one signature instead of one for each certificate: thousands of hosts have
certificates of one intermediate, and the signature below its own is the same every time.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from certplane.pki.reading import READ_ERRORS
from certplane.pki.trust_bundle import TrustBundle, anchor_of, by_subject

Certificates = tuple[x509.Certificate, ...]

_MAX_DEPTH: Final = 4
"""Intermediates between leaf and anchor."""

_MAX_KNOWN: Final = 64
"""Issuers that are remembered: an internal CA has a few."""

_MIN_RSA_BITS, _MAX_RSA_BITS, _RSA_EXPONENT = 2048, 4096, 65537


@dataclass(frozen=True, slots=True)
class Issuers:
    """The CAs of a path: the leaf's issuer first, the bundle's last. All of them are valid in the time it says.

    `anchor` is `anchor_of` the last one.
    """

    certificates: Certificates
    not_before: datetime
    not_after: datetime
    anchor: str


def verify_issuers(
    leaf: x509.Certificate, between: Sequence[x509.Certificate], bundle: TrustBundle, now: datetime
) -> Issuers:
    """Verify a client certificate along a path to the bundle; the path's CAs.

    Args:
        leaf: The certificate, which clientAuth is wanted of.
        between: CAs that may stand between it and the bundle's (`leading_cas`).
        bundle: Where a path may end.
        now: Aware time; all on the path must be valid.

    Raises:
        VerificationError: there is no path.
    """
    chain = _verify(leaf, between, bundle.store, now)
    return _issuers(tuple(chain[1:]))


class KnownIssuers:
    """Issuers of leaves that were verified: `verify_issuers` with one signature for the next leaf of one of them.

    Nothing else is left out. The leaf, and its issuer as what it is now (time, CA, path length, usages, signature), are
    verified each time, with the issuer itself as the anchor. What isn't repeated is the path above the issuer, and that
    can only come out otherwise by

    - other certificates: what is remembered is of these very ones, between and in the bundle, and of no other bundle;
    - another time: it is used within the validity of all of them;
    - a name that a CA above may not issue for: nothing is remembered of a path with name constraints;
    - another path: nothing is remembered where one of the names has two certificates, so there is one path at most.

    A leaf that isn't verified so is verified plainly, so each refusal, and its reason, is the plain search's. Only
    paths that were verified take a place. For one thread.
    """

    def __init__(self) -> None:
        self._bundle = ""
        self._known: OrderedDict[tuple[Certificates, x509.Name], tuple[Store, Issuers]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def verify(self, leaf: x509.Certificate, between: Certificates, bundle: TrustBundle, now: datetime) -> Issuers:
        """As `verify_issuers`."""
        if bundle.hash != self._bundle:
            self._bundle = bundle.hash
            self._known.clear()
        key = (between, leaf.issuer)
        known = self._known.get(key)
        if known is not None:
            store, issuers = known
            if issuers.not_before <= now <= issuers.not_after:
                with contextlib.suppress(VerificationError):
                    _verify(leaf, (), store, now)
                    self._known.move_to_end(key)
                    return issuers
        issuers = verify_issuers(leaf, between, bundle, now)
        if _is_only_path(issuers.certificates, between, bundle):
            self._known[key] = Store([issuers.certificates[0]]), issuers
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        return issuers


def leading_cas(presented: Iterable[x509.Certificate], bundle: TrustBundle) -> Certificates:
    """Of what was presented, the CAs that the bundle's have signed, directly or through one another.

    Each signature is checked with the key of a CA that is trusted, once for each pair, whereas a path search tries what
    leads nowhere as well.
    """
    waiting = list(dict.fromkeys(presented))
    leading: list[x509.Certificate] = []
    issuers = bundle.by_subject
    while issuers and waiting:
        found = [entry for entry in waiting if _is_issued(entry, issuers)]
        leading += found
        waiting = [entry for entry in waiting if entry not in found]
        issuers = by_subject(found)
    return tuple(leading)


def _verify(
    leaf: x509.Certificate, between: Sequence[x509.Certificate], store: Store, now: datetime
) -> Sequence[x509.Certificate]:
    policy = PolicyBuilder().extension_policies(ca_policy=_CA_EXTENSIONS, ee_policy=_LEAF_EXTENSIONS)
    verifier = policy.store(store).time(now).max_chain_depth(_MAX_DEPTH).build_client_verifier()
    return verifier.verify(leaf, list(between)).chain


def _issuers(certificates: Certificates) -> Issuers:
    return Issuers(
        certificates,
        max(certificate.not_valid_before_utc for certificate in certificates),
        min(certificate.not_valid_after_utc for certificate in certificates),
        anchor_of(certificates[-1]),
    )


def _is_only_path(issuers: Certificates, between: Certificates, bundle: TrustBundle) -> bool:
    """Whether another leaf of the first of `issuers` has this path or none, whatever it says of itself.

    Names are compared as they read, which takes more for equal than the path search does.
    """
    if len(issuers) == 1:
        return False  # the bundle's own: the plain search checks one signature
    presented = by_subject(between)
    for issuer in issuers:
        named = {*bundle.by_subject.get(issuer.subject, ()), *presented.get(issuer.subject, ())}
        if named != {issuer} or any(each.oid == ExtensionOID.NAME_CONSTRAINTS for each in issuer.extensions):
            return False
    return True


def _check_constraints(_: Policy, __: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("no CA")


def _check_key_usage(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("not for signing certificates")


_CA_EXTENSIONS = (
    ExtensionPolicy.webpki_defaults_ca()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _check_constraints)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _check_key_usage)
    .may_be_present(x509.AuthorityKeyIdentifier, Criticality.AGNOSTIC, None)
)
"""Of the CAs on a path, as RFC 5280 6.1.4 asks for it: `cryptography`'s own rules, which are those of public CAs, want
keyUsage, criticality and key identifiers that internal CAs often lack (openssl's roots have no keyUsage, easy-rsa's no
critical basicConstraints)."""
_LEAF_EXTENSIONS = ExtensionPolicy.webpki_defaults_ee().may_be_present(
    x509.AuthorityKeyIdentifier, Criticality.AGNOSTIC, None
)


def _is_issued(certificate: x509.Certificate, issuers: Mapping[x509.Name, Sequence[x509.Certificate]]) -> bool:
    """Whether one of `issuers` has signed it, and it is a CA's and its key of a kind that internal CAs have."""
    try:
        candidates = issuers.get(certificate.issuer, ())
        if not candidates or not _is_ca(certificate) or not _is_usual(certificate.public_key()):
            return False
    except READ_ERRORS:
        return False
    for issuer in candidates:
        with contextlib.suppress(InvalidSignature, *READ_ERRORS):
            certificate.verify_directly_issued_by(issuer)
            return True
    return False


def _is_usual(key: object) -> bool:
    """Keys that cost whoever verifies with them little."""
    if isinstance(key, rsa.RSAPublicKey):
        return _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS and key.public_numbers().e == _RSA_EXPONENT
    return isinstance(key, ec.EllipticCurvePublicKey)


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
