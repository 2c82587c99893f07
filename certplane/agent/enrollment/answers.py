"""What the internal CA answered: a certificate that is proven to be ours, or a refusal with a remedy. Pure.

step-ca tells few causes apart for its clients (its log has the rest), so a remedy names all that a person should look
at. Tokens and keys appear in no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certplane.agent.model import IssuedCertificate
from certplane.errors import CertplaneError, Reason, RefusalError
from certplane.pki.identity import verify_identity
from certplane.pki.keys import public_key_sha256
from certplane.pki.reading import READ_ERRORS
from certplane.pki.trust_bundle import TrustBundle
from certplane.stepca.errors import EnrollmentError, RefusedError

if TYPE_CHECKING:  # a running agent loads no HTTP client before it asks the internal CA
    from certplane.stepca.exchange import Reply

_UNAUTHORIZED = 401
NEW_TOKEN = "get a new token and run `certplane-agent enroll` again (the key made on this host is kept)"  # noqa: S105 - advice
"""What to do when a token is spent."""
_ENROLL = "get a one-time token and run `certplane-agent enroll`"
_RE_ENROLL = "get a new token and run `certplane-agent enroll --force`"


def accept_certificate(
    reply: Reply, *, key_sha256: str, names: Sequence[str], anchors: TrustBundle, now: datetime
) -> IssuedCertificate:
    """The certificate of a 201 answer, whole chain, once it is proven to be what was asked for.

    Args:
        reply: the answer of `/sign`, `/renew` or `/rekey`.
        key_sha256: SHA-256 of the SubjectPublicKeyInfo that it must be for.
        names: the subjectAltNames that it must have, no others.
        anchors: what its chain must lead to.
        now: this host's time.

    Raises:
        EnrollmentError: it is for another key, other names or another common name, leads to another root, or can't be
            read.
    """
    try:
        certificates = _certificates(reply)
        leaf_pem, *issuers_pem = (certificate.public_bytes(Encoding.PEM) for certificate in certificates)
        chain_pem = b"".join(issuers_pem)
        leaf = certificates[0]
        _check_ours(leaf, key_sha256, names)
        # The CA's clock counts for what it has just made: this host's may be a little behind or ahead of it.
        judged_at = min(max(now, leaf.not_valid_before_utc), leaf.not_valid_after_utc)
        verify_identity(leaf_pem, chain_pem, anchors, judged_at)
    except (*READ_ERRORS, CertplaneError) as error:
        detail = str(error) if isinstance(error, READ_ERRORS) else "it has no valid path to the internal CA's root"
        raise EnrollmentError(
            f"the certificate from the internal CA is not usable: {detail}",
            remedy="check the provisioner's template, the CA's intermediate and identity.issuer_ca_bundle",
        ) from error
    return IssuedCertificate(certificate_pem=leaf_pem.decode(), chain_pem=chain_pem.decode())


def check_identity(certificate_pem: str, chain_pem: str, anchors: TrustBundle, now: datetime) -> None:
    """Whether a certificate that stands on this host is an identity of the internal CA, in force.

    Raises:
        EnrollmentError: it isn't, or its chain isn't beside it.
    """
    try:
        verify_identity(certificate_pem.encode(), chain_pem.encode(), anchors, now)
    except RefusalError as error:
        if error.refusal.reason is Reason.IDENTITY_EXPIRED:
            raise EnrollmentError("it has expired", remedy=_ENROLL) from error
        beside = "" if chain_pem else "; where the CA has an intermediate, that certificate must stand behind it"
        raise EnrollmentError(
            f"it doesn't lead to the internal CA that identity.step_ca names{beside}",
            remedy=f"check identity.step_ca and identity.issuer_ca_bundle, or {_ENROLL}",
        ) from error


def sign_refused(reply: Reply, origin: str) -> RefusedError:
    """The error for a `/sign` that the CA at `origin` refused; the token counts as spent."""
    said = reply.said or f"HTTP {reply.status}"
    if reply.status == _UNAUTHORIZED:
        # step-ca has one sentence for all of these; an expired token was found out before it was sent
        remedy = f"the token was used before, or is older than the CA's last start, or isn't for {origin}: {NEW_TOKEN}"
    elif reply.status < 500:
        remedy = f"compare identity.name with what the CA's provisioner allows, then {NEW_TOKEN}"
    else:
        remedy = f"check the CA's log, then {NEW_TOKEN}"
    message = f"the internal CA at {origin} refused to enroll this host: {said}"
    return RefusedError(message, status=reply.status, said=said, remedy=remedy, token_spent=True)


def renewal_refused(reply: Reply, origin: str) -> RefusedError:
    """The error for a `/renew` or `/rekey` that the CA at `origin` refused."""
    said = reply.said or f"HTTP {reply.status}"
    if reply.status == _UNAUTHORIZED:
        remedy = (
            "the identity is revoked, or has expired and the CA renews no expired ones, or its provisioner "
            f"allows no renewal: {_RE_ENROLL}"
        )
    else:
        remedy = f"check the CA's log; if that doesn't help, {_RE_ENROLL}"
    message = f"the internal CA at {origin} refused to renew this host's identity: {said}"
    return RefusedError(message, status=reply.status, said=said, remedy=remedy)


def san_names(extensions: x509.Extensions) -> tuple[str, ...]:
    """The subjectAltNames of a certificate or CSR as text: DNS names and URIs as they are, others as `type:value`."""
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    known = (x509.DNSName, x509.UniformResourceIdentifier)
    return tuple(name.value if isinstance(name, known) else f"{type(name).__name__}:{name.value}" for name in names)


def _check_ours(leaf: x509.Certificate, key_sha256: str, names: Sequence[str]) -> None:
    if public_key_sha256(leaf.public_key()) != key_sha256:
        raise ValueError("it is for another key")
    got = san_names(leaf.extensions)
    if sorted(got) != sorted(names):
        raise ValueError(f"it is for {', '.join(got) or 'no name'} instead of {', '.join(names)}")
    for attribute in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        if str(attribute.value).lower() not in {name.lower() for name in names}:
            raise ValueError(f"its common name is {attribute.value!s:.100}, and the broker lets in only {names[0]}")


def _certificates(reply: Reply) -> list[x509.Certificate]:
    """Leaf first; older CAs send only leaf and issuer, so those stand in for a missing `certChain`."""
    answer = reply.json()
    pems = answer.get("certChain") or [pem for pem in (answer.get("crt"), answer.get("ca")) if pem]
    if not isinstance(pems, list) or not pems or not all(isinstance(pem, str) for pem in pems):
        raise ValueError("the answer holds no certificate")
    return [x509.load_pem_x509_certificate(pem.encode()) for pem in pems]
