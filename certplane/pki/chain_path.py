"""The way upwards from a leaf, through whatever a CA sent beside it.

Pure: certificates as they came in, those that lead from the leaf to its issuers out, each signed by the next and valid
now. Everything that can't be read, led to, or used is told, and never raised as anything but a `ChainError`: what comes
here is a stranger's, and an order whose chain raised something else would never end.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from certplane.errors import Reason, RefusalError
from certplane.pki.reading import READ_ERRORS

CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far a CA's clock may be ahead of ours before its new certificate counts as not yet valid."""


class ChainError(RefusalError):
    """A chain isn't what was asked for: ISSUER_REJECTED, since whoever made it has to answer for it.

    Attributes:
        may_heal: what came beside the certificate that was asked for is wrong, or it can't be read, or the hour is
            wrong: it may be right when it is fetched again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(Reason.ISSUER_REJECTED, message)
        self.may_heal = False


class Came:
    """One certificate as it came, number `number` of the chain.

    `unread` says why it can't be read, and is empty when it can.
    """

    def __init__(self, number: int, der: bytes) -> None:
        self.number = number
        self.der = der
        self.unread = ""
        self.is_self_issued = False
        self._certificate: x509.Certificate | None = None
        try:
            self._certificate = load(der)
            self.is_self_issued = self._certificate.subject == self._certificate.issuer
        except ChainError as error:
            self.unread = error.refusal.message
        except READ_ERRORS:  # names are parsed when they are asked for
            self.unread = "the certificate chain has a certificate whose names can't be read"

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate.

        Raises:
            ChainError: it can't be read.
        """
        if self._certificate is None:
            raise ChainError(self.unread)
        return self._certificate


def find_path(leaf: Came, came: list[Came], now: datetime) -> list[Came]:
    """The issuers that came, from the leaf's upwards, as far as they lead; empty where the leaf came alone.

    Of several with the same name and key a cross-sign is taken before a root, which clients have anyway, and otherwise
    the first.

    Raises:
        ChainError: others came, and none of them is the leaf's issuer.
    """
    candidates: list[Came] = []
    for each in came:
        if not each.unread and all(each.der != other.der for other in (leaf, *candidates)):
            candidates.append(each)
    candidates.sort(key=lambda each: each.is_self_issued)  # stable: the order as sent within each half
    path: list[Came] = []
    below = leaf
    while not (path and below.is_self_issued):
        issuer = next((each for each in candidates if each not in path and not _not_above(each, below, now)), None)
        if issuer is None:
            break
        path.append(issuer)
        below = issuer
    others = [each for each in came if each.der != leaf.der]
    if others and not path:
        raise ChainError(_no_issuer(leaf, others, now))
    return path


def _not_above(issuer: Came, certificate: Came, now: datetime) -> str:
    """Why `issuer` can't stand above `certificate`; empty when it can."""
    which = f"certificate {issuer.number} of the chain"
    try:
        above, below = issuer.certificate, certificate.certificate
        if above.subject != below.issuer:
            return f"{which} is not the issuer of certificate {certificate.number}"
        if not is_ca(above):
            return f"{which} is no CA's"
        below.verify_directly_issued_by(above)
        check_validity(above, now, which)
    except InvalidSignature:
        return f"{which} has the name of the issuer of certificate {certificate.number} and has not signed it"
    except ChainError as error:
        return error.refusal.message
    except READ_ERRORS:
        return f"{which} can't be read"
    return ""


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether it says that it is a CA's."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _no_issuer(leaf: Came, others: list[Came], now: datetime) -> str:
    """Why nothing that came leads upwards from the leaf: what is wrong with the one of its issuer's name, if any."""
    named = [each for each in others if not each.unread and each.certificate.subject == leaf.certificate.issuer]
    if named:
        return _not_above(named[0], leaf, now)
    unread = next((each.unread for each in others if each.unread), "")
    return unread or "the certificate is not signed by any of the others in the chain"


def dropped(path: list[Came], came: list[Came], now: datetime) -> Iterator[str]:
    """What of `came` isn't in `path` (the leaf and its issuers), a line each; roots above it are left out silently."""
    seen: set[bytes] = set()
    for each in came:
        where = f"certificate {each.number} of {len(came)}"
        if each.der in seen:
            yield f"{where}: it came twice"
        elif each not in path and not _is_root_of(each, path, now):
            yield f"{where}: {each.unread or _why_dropped(each, now)}"
        seen.add(each.der)


def _is_root_of(each: Came, path: list[Came], now: datetime) -> bool:
    """A root that a cross-sign of the path stands for: nobody needs it, and it is no news."""
    if each.unread or not each.is_self_issued or _validity_problem(each, now):
        return False
    return any(each.certificate.subject == other.certificate.subject for other in path[1:])


def _why_dropped(each: Came, now: datetime) -> str:
    return _validity_problem(each, now) or (
        f"{each.certificate.subject.rfc4514_string()} does not lead upwards from the certificate"
    )


def _validity_problem(each: Came, now: datetime) -> str:
    try:
        check_validity(each.certificate, now, each.certificate.subject.rfc4514_string())
    except ChainError as error:
        return error.refusal.message
    return ""


def load(der: bytes) -> x509.Certificate:
    """A certificate of a chain.

    Raises:
        ChainError: it can't be read.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
    except READ_ERRORS as error:
        raise ChainError("the certificate chain has a certificate that can't be read") from error
    # The count of unused bits before the signature is outside of what is signed, and no signature has any: whoever
    # changed it would have made another certificate, with another hash, of the same content.
    signature = certificate.signature
    if not der.endswith(b"\0" + signature):
        raise ChainError("the certificate chain has a certificate whose signature isn't a whole number of octets")
    return certificate


def check_validity(certificate: x509.Certificate, now: datetime, which: str = "the certificate") -> None:
    """Whether it is valid now, give or take `CLOCK_TOLERANCE` at its start; `which` names it in the message.

    Raises:
        ChainError: it isn't.
    """
    if certificate.not_valid_before_utc > now + CLOCK_TOLERANCE:
        raise ChainError(f"{which} is not valid before {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}")
    if certificate.not_valid_after_utc <= now:
        raise ChainError(f"{which} expired at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
